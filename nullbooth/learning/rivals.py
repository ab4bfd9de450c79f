"""What NullBooth is compared with: the methods that a user would otherwise take, by the means of peft and diffusers.

    method             what learns                                            what keeps the prior
    dreambooth         the whole denoiser (arXiv 2208.12242)                   nothing
    dreambooth-prior   the same                                               pictures of the class by the base model
    custom-diffusion   cross-attention to_k and to_v (arXiv 2212.04488)        the same
    lora               low-rank changes of the sites (arXiv 2106.09685)        nothing (train.weight_decay, if set)
    prior-prediction   the same                                               the base's predictions for class captions
    replay             the same                                               the base's predictions for the protected
                                                                              prompts, on their stored trajectories
    oft                rotations of the sites' weights (arXiv 2306.07280)      their angles
    corda              low-rank changes, from the directions that protected   where they start
                       prompts use least (arXiv 2406.05223, knowledge-preserved)

All but the first three change the same sites as NullBooth. No token embedding is trained by any of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from torch import Tensor, nn

from nullbooth.inputs.settings import OF_WEIGHTS, RIVALS

_UNLIKE_LORA = ("oft", "corda")  # peft methods whose change is not up @ down


class FineTune(nn.Module):
    """Parameters of a denoiser, or those that peft put into it, in the place of an `Adapter` in training.

    `passes` runs the frozen denoiser on protected inputs, one sample at a time, for methods that look at them first.
    """

    scope = "weights"

    def __init__(
        self,
        denoiser: nn.Module,
        sites: dict[str, nn.Linear],
        method: str,
        rank: int = 16,
        alpha: float | None = None,
        passes: Callable[[], None] | None = None,
    ):
        super().__init__()
        if method not in RIVALS:
            raise ValueError(f"method {method!r}: use one of nullbooth, {', '.join(RIVALS)}")
        self.method = method
        kept = denoiser.named_parameters() if method in OF_WEIGHTS else ()  # for others, as large as the model
        self._original = {name: p.detach().clone() for name, p in kept}
        denoiser.requires_grad_(False)
        if method.startswith("dreambooth"):
            denoiser.requires_grad_(True)
        elif method == "custom-diffusion":
            for name, site in sites.items():
                site.weight.requires_grad_(name.rsplit(".", 1)[-1] in ("to_k", "to_v"))
        else:
            denoiser.add_adapter(_peft_config(denoiser, list(sites), method, rank, alpha, passes))
            cast_training_params(denoiser)  # peft makes factors of the weights' dtype; small steps need float32
        self._named = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
        self.learned = nn.ParameterList(self._named.values())
        self._layers = _peft_layers(denoiser)
        device = next(denoiser.parameters()).device
        self.register_buffer("timesteps", torch.zeros(1, dtype=torch.float64, device=device), persistent=False)

    def attached(self, denoiser: nn.Module) -> Any:
        """Nothing to attach: the parameters are the denoiser's."""
        return nullcontext(self)

    @contextmanager
    def disabled(self, denoiser: nn.Module) -> Iterator[None]:
        """The base model, for a while. Only for what peft put beside the weights."""
        denoiser.disable_adapters()
        try:
            yield
        finally:
            denoiser.enable_adapters()

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """What is saved: `down: [1, r, in]` and `up: [out, r]` of low-rank methods, else `delta` of what changed."""
        saved: dict[str, Tensor] = {}
        for name, layer in self._layers.items():
            if self.method in _UNLIKE_LORA:
                layer.merge()
                saved[f"{name}.delta"] = layer.get_base_layer().weight - self._original[f"{name}.weight"]
                layer.unmerge()
            else:
                saved[f"{name}.down"] = layer.lora_A["default"].weight[None]
                saved[f"{name}.up"] = layer.lora_B["default"].weight * layer.scaling["default"]
        if not self._layers:
            for name, parameter in self._named.items():
                saved[f"{name.removesuffix('.weight')}.delta"] = parameter - self._original[name]
        return {key: value.detach().float().cpu().contiguous().clone() for key, value in saved.items()}


def _peft_layers(denoiser: nn.Module) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in denoiser.named_modules() if isinstance(module, BaseTunerLayer)}


def _peft_config(
    denoiser: nn.Module,
    names: list[str],
    method: str,
    rank: int,
    alpha: float | None,
    passes: Callable[[], None] | None,
) -> Any:
    from peft import LoraConfig, OFTConfig
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    if method == "oft":
        return OFTConfig(r=0, oft_block_size=rank, target_modules=names)
    if method != "corda":
        return LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=names, init_lora_weights="gaussian")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha or rank,
        target_modules=names,
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="kpm"),
    )
    preprocess_corda(denoiser, config, run_model=passes)
    return config
