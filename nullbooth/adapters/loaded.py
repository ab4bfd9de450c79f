"""Saved adapters loaded into diffusers pipelines: any number, each with a scale, and unloaded exactly."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from nullbooth.adapters.file import AdapterInfo, read_adapter, split_word
from nullbooth.adapters.word import install
from nullbooth.errors import InputError
from nullbooth.models import loading, schedulers
from nullbooth.models.precision import pick_device
from nullbooth.models.timesteps import nearest_index, timestep_argument

SAMPLED = 64  # entries of each weight that are compared to detect changes by others
_FUSED = (
    "this pipeline has fused projections and does not use those that the adapter changes: call "
    "unfuse_qkv_projections() first"
)
_UNGUIDED = (
    "this adapter's protected prompts were sampled without guidance (sampler.guidance of 1 or less), so the empty "
    "prompt and negative prompts are not protected. With guidance, other pictures change more: draw with "
    "guidance_scale=1, or train the adapter again with sampler.guidance set to the guidance you draw with"
)


@dataclass(eq=False)
class _AtWork:
    """Adapters loaded into one denoiser, and the weights that they last wrote."""

    adapters: list["LoadedAdapter"] = field(default_factory=list)
    written: dict[str, Tensor] = field(default_factory=dict)  # `sampled` of each weight as last written

    def set_by_others(self, weights: dict[str, nn.Parameter]) -> list[str]:
        """Return the names of weights that differ from what was last written."""
        known = {name: sampled(weight) for name, weight in weights.items() if name in self.written}
        if not known:
            return []
        # The weights may have been cast or moved since. Compare all at once, to wait for the GPU only once.
        before = torch.cat([self.written[name].to(seen) for name, seen in known.items()])
        equal = (before == torch.cat(list(known.values()))) | before.isnan()
        pieces = equal.cpu().split([len(seen) for seen in known.values()])
        return [name for name, same in zip(known, pieces, strict=True) if not bool(same.all())]


def sampled(weight: Tensor) -> Tensor:
    """Return at most SAMPLED entries of a weight, evenly spaced from first to last, whatever its memory layout."""
    places = torch.linspace(0, weight.numel() - 1, min(SAMPLED, weight.numel()), dtype=torch.float64).long()
    return weight.detach()[torch.unravel_index(places.to(weight.device), weight.shape)]


class LoadedAdapter:
    """An adapter loaded into a denoiser. Weights are set once per timestep, so that a pass costs no more than before.

    Several may be loaded into one denoiser: their changes add up, each with its own timesteps and `scale`. Saving the
    denoiser meanwhile saves the changed weights, or raises InputError if they depend on the timestep. If something else
    sets the weights meanwhile, InputError is raised before they would be overwritten.
    """

    def __init__(self, denoiser: nn.Module, tensors: dict[str, Tensor], info: AdapterInfo, scale: float):
        called, denoiser = denoiser, uncompiled(denoiser)
        parameters = dict(denoiser.named_parameters())
        self.info, self._scale = info, checked_scale(scale)
        self._at: int | None = None  # index of a cached timestep
        self._pipeline: ref | None = None  # set until the warning about guidance was given
        self._timesteps = torch.tensor(info.timesteps, dtype=torch.float64)
        self._weights: dict[str, nn.Parameter] = {}
        self._owners: dict[str, tuple[nn.Module, str]] = {}
        tensors, _ = split_word(tensors)
        for name in sorted({key.rsplit(".", 1)[0] for key in tensors}):
            expected = self._shape(tensors, name)
            found = [key for key in (f"{name}.weight", name, f"{name}.base_layer.weight") if key in parameters]
            weight = parameters[found[0]] if found else None
            check_weight(name, weight)
            if weight is None or weight.shape != expected:
                raise InputError(
                    f"this adapter changes {name} of shape {tuple(expected)}, which this "
                    f"{type(denoiser).__name__} does not have; it was made for {info.denoiser} {info.model}"
                )
            self._weights[name] = weight
            module, _, own = found[0].rpartition(".")
            self._owners[name] = denoiser.get_submodule(module), own
        self._attentions = [module for module in denoiser.modules() if hasattr(module, "fused_projections")]
        self._check_unfused()
        self._device = next(denoiser.parameters()).device
        self._tensors = {key: value.to(self._device) for key, value in tensors.items()}
        self._work = _at_work.setdefault(denoiser, _AtWork())
        self._together = self._work.adapters
        self._check_own()
        known = {name: base for other in self._together for name, base in other.original.items()}
        self.original: dict[str, Tensor] = {
            name: known[name] if name in known else weight.detach().clone() for name, weight in self._weights.items()
        }
        self._together.append(self)
        # A compiled module ignores hooks that are added later; the wrapper around it calls them.
        self._handles = [called.register_forward_pre_hook(self._before, with_kwargs=True)]
        self._handles.append(denoiser.register_state_dict_pre_hook(self._before_saving))

    @property
    def alone(self) -> bool:
        """True if no other adapter is loaded into the same denoiser."""
        return self._together == [self]

    @property
    def scale(self) -> float:
        """Factor of the change of the weights. Setting it takes effect at once."""
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        value = checked_scale(value)
        self._check_own()
        self._scale = value
        if self._at is not None:
            self._set(self._weights)

    @staticmethod
    def _shape(tensors: dict[str, Tensor], name: str) -> torch.Size:
        if f"{name}.delta" in tensors:
            return tensors[f"{name}.delta"].shape
        return torch.Size((tensors[f"{name}.up"].shape[0], tensors[f"{name}.down"].shape[-1]))

    def warn_if_guided(self, pipeline: Any) -> None:
        """Warn once when this pipeline uses guidance, if the protected prompts were sampled without it."""
        self._pipeline = ref(pipeline) if self.info.guided is False else None

    def learn_word(self, handles: list) -> None:
        """Own the hooks that give text encoders the identifier's learned vectors; `unload` removes them.

        Raises InputError if another loaded adapter has learned vectors for the same identifier.
        """
        self._handles += handles
        word = self.info.identifier
        if any(other is not self and other.info.identifier == word for other in self._together):
            raise InputError(f"another loaded adapter has learned vectors for {word!r} too; unload that one first")

    def nearest(self, timestep: float) -> int:
        """Return the index of the cached timestep nearest to `timestep`."""
        return int(nearest_index(self._timesteps, torch.tensor(timestep)))

    def change(self, name: str, step: int) -> Tensor:
        """Return the change of a site's weight, `[out, in]` float32, at a cached timestep, without `scale`."""
        t = self._tensors
        if f"{name}.up" in t:
            down = t[f"{name}.down"]
            return t[f"{name}.up"] @ down[step if len(down) > 1 else 0]
        delta = t[f"{name}.delta"]
        if f"{name}.keep" not in t:
            return delta
        v, gain, keep = (t[f"{name}.{key}"][step] for key in ("vectors", "gain", "keep"))
        return keep * delta + ((delta @ v) * gain) @ v.T

    def varies(self, name: str) -> bool:
        """Return True if the change of a site depends on the timestep."""
        return f"{name}.keep" in self._tensors or len(self._tensors.get(f"{name}.down", ())) > 1

    def _check_unfused(self) -> None:
        if any(map(fused, self._attentions)):
            raise InputError(_FUSED)

    def _set_by_others(self) -> list[str]:
        """Return the names of weights that others have changed, or replaced in the denoiser."""
        gone = [name for name, (module, own) in self._owners.items() if getattr(module, own) is not self._weights[name]]
        return gone or self._work.set_by_others(self._weights)

    def _check_own(self) -> None:
        if names := self._set_by_others():
            raise InputError(
                f"something else has set the weights of {names[0]} while an adapter is loaded (load_state_dict, a "
                "moving average, a fused LoRA). The adapter's unload() leaves such weights unchanged. Unload adapters "
                "before anything else sets weights, and load them again afterwards"
            )

    @torch.no_grad()
    def _before_saving(self, *_: Any) -> None:
        """Make sure that saved weights are those used for drawing, or raise InputError if these vary over time."""
        if any(map(self.varies, self._weights)):
            raise InputError(
                f"scope {self.info.scope} has different weights at each timestep, which one saved model cannot hold: "
                "unload the adapter first, and keep its own file for nullbooth.load_adapter"
            )
        if self._at is None:
            self.set_step(0)

    @torch.no_grad()
    def _before(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        steps = nearest_index(self._timesteps, timestep_argument(args, kwargs).cpu()).unique()
        if len(steps) > 1:
            raise ValueError("a loaded adapter takes one timestep per call; use Adapter.attached for training batches")
        self._check_unfused()
        self._check_own()
        if self._pipeline and getattr(self._pipeline(), "do_classifier_free_guidance", False):
            self._pipeline = None
            warnings.warn(_UNGUIDED, stacklevel=2)
        if int(steps[0]) != self._at:
            self.set_step(int(steps[0]))

    def _follow(self) -> None:
        """Move the tensors to the device of the weights, which a pipeline with offloading changes."""
        device = next((weight.device for weight in self._weights.values()), self._device)
        if device != self._device:
            self._tensors = {key: value.to(device) for key, value in self._tensors.items()}
            self.original = {name: value.to(device) for name, value in self.original.items()}
            self._device = device

    def set_step(self, step: int) -> None:
        """Set the weights to their values at a cached timestep. Raises InputError if others have changed them."""
        self._check_own()
        changing = [name for name in self._weights if self._at is None or self.varies(name)]
        self._at = step
        self._set(changing)

    @torch.no_grad()
    def _set(self, names: Iterable[str]) -> None:
        """Set weights to their original values plus the changes of all loaded adapters."""
        if not (names := list(names)):  # so that autocast's cached copies stay valid
            return
        for adapter in {self, *self._together}:
            adapter._follow()
        with torch.autocast(self._device.type, enabled=False):
            for name in names:
                check_weight(name, self._weights[name])
                acting = [(a, a._at) for a in self._together if a._at is not None and name in a._weights]
                changes = sum(a.scale * a.change(name, at) for a, at in acting)
                self._weights[name].copy_(self.original[name].float() + changes if acting else self.original[name])
                self._work.written[name] = sampled(self._weights[name])
        torch.clear_autocast_cache()  # it holds low-precision copies of the weights before

    def merge(self) -> None:
        """Merge the change into the denoiser's own weights for good, so that another adapter can be trained on top.

        Raises InputError if the change depends on the timestep; the adapter then stays loaded. Raises InputError too if
        another adapter is loaded, because unloading that one later would undo this change.
        """
        if not self.alone:
            raise InputError("another adapter is loaded in the same denoiser: unload or merge it first")
        if any(map(self.varies, self._weights)):
            raise InputError(f"scope {self.info.scope} has different weights at each timestep, which cannot be merged")
        self.set_step(0)
        for _ in range(2):
            self._handles.pop(0).remove()  # those of the denoiser; hooks of text encoders stay
        self._together.remove(self)
        self._work.written.clear()

    def unload(self) -> None:
        """Restore the denoiser's weights bit by bit, except for the changes of other loaded adapters.

        Raises InputError if something else has set weights meanwhile: these stay unchanged, the others are restored,
        and the adapter is unloaded nevertheless.
        """
        for handle in self._handles:
            handle.remove()
        if self not in self._together:
            return
        others = self._set_by_others()
        self._together.remove(self)
        self._set(name for name in self._weights if name not in others)
        remaining = {name for adapter in self._together for name in adapter._weights}
        for name in self._weights:
            if name not in remaining:
                self._work.written.pop(name, None)
        if others:
            raise InputError(
                f"something else has set the weights of {others[0]} while the adapter was loaded: they stay as they "
                "are, with or without its change. If in doubt, load the pipeline again"
            )


def fused(attention: nn.Module) -> bool:
    """Return True if an attention of diffusers computes queries, keys and values by one matrix. In its older class,
    `fused_projections` stays set after unfusing, and only the processor tells."""
    if not attention.fused_projections or hasattr(attention, "unfuse_projections"):
        return bool(attention.fused_projections)
    return "Fused" in type(attention.processor).__name__


def uncompiled(denoiser: nn.Module) -> nn.Module:
    """Return the module inside a wrapper of torch.compile, or `denoiser` itself. Raises InputError if it was compiled
    in place and would ignore an adapter."""
    inner = getattr(denoiser, "_orig_mod", denoiser)
    if getattr(inner, "_compiled_call_impl", None) is not None:
        raise InputError(
            f"this {type(inner).__name__} was compiled in place (by its method compile) and would ignore the adapter: "
            "use pipe.unet = torch.compile(pipe.unet), or the same for pipe.transformer"
        )
    return inner


def checked_scale(scale: float) -> float:
    """Return a scale as a float. Raises InputError if it is not finite."""
    if not math.isfinite(float(scale)):
        raise InputError(f"scale {scale!r}: must be a finite number")
    return float(scale)


def check_weight(name: str, weight: Tensor | None) -> None:
    """Raise InputError for a weight that cannot be set, with the reason and how to fix it."""
    if weight is None:
        return
    if weight.is_meta:
        raise InputError(
            f"{name} is offloaded layer by layer (enable_sequential_cpu_offload), which an adapter cannot follow: use "
            "enable_model_cpu_offload"
        )
    if weight.is_inference():
        raise InputError(
            f"{name} was made in torch.inference_mode and cannot be changed later: load the pipeline outside of it"
        )
    if not weight.is_floating_point():
        raise InputError(f"{name} is quantised ({weight.dtype}): load the pipeline in bf16, fp16 or fp32")


_at_work: WeakKeyDictionary[nn.Module, _AtWork] = WeakKeyDictionary()


def load_adapter(pipeline: Any, path: Path | str, scale: float = 1.0, model: str | None = None) -> LoadedAdapter:
    """Load a saved adapter into a diffusers pipeline. It uses the nearest cached timestep, for any number of steps.

    `scale` multiplies the change of the weights and may be set later. Undo with `.unload()`. Several adapters can be
    loaded, and unloaded in any order. Raises InputError if the file is damaged, if the pipeline lacks a layer that it
    changes, or if it was made for another model than `model` (an identity; None accepts any).
    """
    tensors, info = read_adapter(path, model)
    _, word = split_word(tensors)
    try:
        loaded = LoadedAdapter(loading.denoiser_of(pipeline), tensors, info, scale)
        try:
            loaded.warn_if_guided(pipeline)
            if word:
                loaded.learn_word(install(pipeline, info.identifier, word))
        except InputError:
            loaded.unload()
            raise
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return loaded


def load_tuned(
    config: dict[str, Any], sampler: dict[str, Any], adapters: Iterable[str], model: str, scale: float = 1.0
) -> Any:
    """Load the pipeline of a job's config on its device, with its sampler and with adapters of `model` at `scale`.

    Raises InputError like `load_adapter`, and if the pipeline cannot be loaded.
    """
    device = pick_device(config["device"])
    pipeline = loading.load_pipeline(loading.ModelSource.of(config), device, config["offload"])
    schedulers.set_sampler(pipeline, sampler["scheduler"], sampler["options"])
    for path in adapters:
        load_adapter(pipeline, path, scale, model)
    return pipeline
