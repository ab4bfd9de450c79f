"""Rival methods that NullBooth is compared with, implemented with peft and diffusers.

    method             trains                                                 preserves the prior by
    dreambooth         the whole denoiser (arXiv 2208.12242)                   nothing
    dreambooth-prior   the same                                               pictures of the class by the base model
    custom-diffusion   cross-attention to_k and to_v (arXiv 2212.04488)        the same
    lora               low-rank changes of the sites (arXiv 2106.09685)        nothing (train.weight_decay, if set)
    prior-prediction   the same                                               the base's predictions for class captions
    replay             the same                                               the base's predictions for the protected
                                                                              prompts, on their stored trajectories
    oft                rotations of the sites' weights (arXiv 2306.07280)      preserved angles
    corda              low-rank changes, from the directions that protected   their initial values
                       prompts use least (arXiv 2406.05223, knowledge-preserved)

All but the first three change the same sites as NullBooth. None trains token embeddings.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from torch import Tensor, nn

from nullbooth.inputs.methods import METHODS, OURS
from nullbooth.learning.trainable import Plain, Trainable


@dataclass(frozen=True)
class Options:
    """Settings of the change that a method trains."""

    rank: int = 16  # for OFT, the size of a block
    alpha: float | None = None  # None: the rank
    # Runs the frozen denoiser on protected inputs, one sample at a time, for methods that start from these.
    passes: Callable[[], None] | None = None


def build(method: str, denoiser: nn.Module, sites: dict[str, nn.Linear], options: Options) -> Trainable:
    """Return the trainable of a rival method, from its builder in `METHODS`. Raises ValueError if it has none."""
    if method not in METHODS or not METHODS[method].builder:
        rivals = ", ".join(name for name, known in METHODS.items() if known.builder)
        raise ValueError(f"method {method!r}: use one of {OURS}, {rivals}")
    module, _, function = METHODS[method].builder.partition(":")
    return getattr(import_module(module), function)(denoiser, sites, options)


class FineTune(Plain, nn.Module):
    """Parameters of a denoiser, or those that peft adds to it. A `Trainable`."""

    timesteps: Tensor

    def __init__(self, denoiser: nn.Module, choose: Callable[[], object], keep: bool, merges: bool = False):
        """choose: makes parameters of the frozen denoiser trainable, or adds trainable ones.

        keep: keep a copy of the original weights, which takes as much memory as the model; merges: compute the change
        from merged weights, because the parameters of peft are not two factors of it.
        """
        super().__init__()
        self._merges = merges
        self._original = {name: p.detach().clone() for name, p in denoiser.named_parameters()} if keep else {}
        denoiser.requires_grad_(False)
        choose()
        self._named = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
        self.learned = nn.ParameterList(self._named.values())
        self._layers = _peft_layers(denoiser)
        device = next(denoiser.parameters()).device
        self.register_buffer("timesteps", torch.zeros(1, dtype=torch.float64, device=device), persistent=False)

    def attached(self, denoiser: nn.Module) -> Any:
        """Do nothing: the parameters are in the denoiser already."""
        return nullcontext(self)

    @contextmanager
    def disabled(self, denoiser: Any) -> Iterator[None]:
        """Run the base model inside the context. Only for parameters that peft added beside the weights."""
        denoiser.disable_adapters()
        try:
            yield
        finally:
            denoiser.enable_adapters()

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save, float32 on the CPU: `down: [1, r, in]` and `up: [out, r]` of low-rank methods,
        else `delta` of each changed weight."""
        saved: dict[str, Tensor] = {}
        for name, layer in self._layers.items():
            if self._merges:
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


def whole_denoiser(denoiser: nn.Module, sites: dict[str, nn.Linear], options: Options) -> FineTune:
    """Train every weight of the denoiser (DreamBooth)."""
    return FineTune(denoiser, lambda: denoiser.requires_grad_(True), keep=True)


def keys_and_values(denoiser: nn.Module, sites: dict[str, nn.Linear], options: Options) -> FineTune:
    """Train the keys and values of the sites (Custom Diffusion)."""

    def choose() -> None:
        for name, site in sites.items():
            site.weight.requires_grad_(name.rsplit(".", 1)[-1] in ("to_k", "to_v"))

    return FineTune(denoiser, choose, keep=True)


def lora(denoiser: nn.Module, sites: dict[str, nn.Linear], options: Options) -> FineTune:
    """Train low-rank changes of the sites (LoRA)."""
    from peft import LoraConfig

    config = LoraConfig(**_low_rank(sites, options), init_lora_weights="gaussian")
    return FineTune(denoiser, lambda: _put(denoiser, config), keep=False)


def oft(denoiser: nn.Module, sites: dict[str, nn.Linear], options: Options) -> FineTune:
    """Train rotations of the sites' weights (OFT)."""
    from peft import OFTConfig

    config = OFTConfig(r=0, oft_block_size=options.rank, target_modules=list(sites))
    return FineTune(denoiser, lambda: _put(denoiser, config), keep=True, merges=True)


def corda(denoiser: nn.Module, sites: dict[str, nn.Linear], options: Options) -> FineTune:
    """Train low-rank changes, from the directions that protected prompts use least (CorDA, knowledge-preserved)."""
    from peft import LoraConfig
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    kind = CordaConfig(corda_method="kpm")
    config = LoraConfig(**_low_rank(sites, options), init_lora_weights="corda", corda_config=kind)

    def choose() -> None:
        preprocess_corda(denoiser, config, run_model=options.passes)
        _put(denoiser, config)

    return FineTune(denoiser, choose, keep=True, merges=True)


def _low_rank(sites: dict[str, nn.Linear], options: Options) -> dict[str, Any]:
    return {"r": options.rank, "lora_alpha": options.alpha or options.rank, "target_modules": list(sites)}


def _put(denoiser: Any, config: Any) -> None:
    denoiser.add_adapter(config)
    cast_training_params(denoiser)  # peft uses the dtype of the weights; small updates need float32


def _peft_layers(denoiser: nn.Module) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in denoiser.named_modules() if isinstance(module, BaseTunerLayer)}
