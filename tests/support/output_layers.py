"""A method outside NullBooth, in one file, which trains the output layers of the sites. For tests of the table."""

from torch import nn

from nullbooth.inputs.methods import Method
from nullbooth.learning.rivals import FineTune, Options

METHOD = Method("output-layers", "output_layers:build", own_weights=True)


def build(denoiser: nn.Module, sites: dict[str, nn.Linear], options: Options) -> FineTune:
    def choose() -> None:
        for name, site in sites.items():
            site.weight.requires_grad_(name.endswith("to_out.0"))

    return FineTune(denoiser, choose, keep=True)
