"""Saved adapters at work in diffusers pipelines: any number of them, each with a scale, and taken away bit by bit."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nullbooth import inversion, models
from nullbooth.adapter import AdapterInfo, nearest_index, read_adapter, split_word, timestep_argument
from nullbooth.text import InputError


class LoadedAdapter:
    """An adapter at work in a denoiser: weights are set once per timestep, so that a pass costs what it did before.

    Several may be at work in one denoiser: their changes add up, each by its own timesteps and `scale`.
    """

    def __init__(self, denoiser: nn.Module, tensors: dict[str, Tensor], info: AdapterInfo, scale: float):
        parameters = dict(denoiser.named_parameters())
        self.info, self._scale, self._at = info, float(scale), None
        self._timesteps = torch.tensor(info.timesteps, dtype=torch.float64)
        self._weights: dict[str, nn.Parameter] = {}
        tensors, _ = split_word(tensors)
        for name in sorted({key.rsplit(".", 1)[0] for key in tensors}):
            expected = self._shape(tensors, name)
            weight = parameters.get(f"{name}.weight", parameters.get(name))
            if weight is None or weight.shape != expected:
                raise InputError(
                    f"this adapter changes {name} of shape {tuple(expected)}, which this "
                    f"{type(denoiser).__name__} does not have: it was made for {info.denoiser} {info.model}"
                )
            self._weights[name] = weight
        self._device = next(denoiser.parameters()).device
        self._tensors = {key: value.to(self._device) for key, value in tensors.items()}
        self._together = _at_work.setdefault(denoiser, [])
        known = {name: base for other in self._together for name, base in other.original.items()}
        self.original = {
            name: known[name] if name in known else weight.detach().clone() for name, weight in self._weights.items()
        }
        self._together.append(self)
        self._handles = [denoiser.register_forward_pre_hook(self._before, with_kwargs=True)]

    @property
    def alone(self) -> bool:
        """Whether no other adapter is at work in the same denoiser."""
        return self._together == [self]

    @property
    def scale(self) -> float:
        """What the change of the weights is multiplied by; setting it acts at once."""
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._scale = float(value)
        if self._at is not None:
            self._set(self._weights)

    @staticmethod
    def _shape(tensors: dict[str, Tensor], name: str) -> torch.Size:
        if f"{name}.delta" in tensors:
            return tensors[f"{name}.delta"].shape
        return torch.Size((tensors[f"{name}.up"].shape[0], tensors[f"{name}.down"].shape[-1]))

    def learn_word(self, handles: list) -> None:
        """Take hooks by which text encoders read the identifier's own vectors, to be removed with this adapter.

        Raises InputError if another adapter at work has such a word of the same name.
        """
        self._handles += handles
        word = self.info.identifier
        if any(other is not self and other.info.identifier == word for other in self._together):
            raise InputError(f"the word {word!r} is learned by another adapter at work too; unload that one first")

    def nearest(self, timestep: float) -> int:
        """Index of the adapter's cached timestep nearest to a timestep."""
        return int(nearest_index(self._timesteps, torch.tensor(timestep)))

    def change(self, name: str, step: int) -> Tensor:
        """Change of the site's weight `[out, in]` at a cached timestep, without `scale`."""
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
        """Whether the site's change depends on the timestep."""
        return f"{name}.keep" in self._tensors or len(self._tensors.get(f"{name}.down", ())) > 1

    @torch.no_grad()
    def _before(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        steps = nearest_index(self._timesteps, timestep_argument(args, kwargs).cpu()).unique()
        if len(steps) > 1:
            raise ValueError("a loaded adapter takes one timestep per call; train-time batches use Adapter.attached")
        if int(steps[0]) != self._at:
            self.set_step(int(steps[0]))

    def _follow(self) -> None:
        """Be where the weights are: a pipeline with offloading moves them about."""
        device = next((weight.device for weight in self._weights.values()), self._device)
        if device != self._device:
            self._tensors = {key: value.to(device) for key, value in self._tensors.items()}
            self.original = {name: value.to(device) for name, value in self.original.items()}
            self._device = device

    def set_step(self, step: int) -> None:
        """Give the weights the values that they have at a cached timestep."""
        changing = [name for name in self._weights if self._at is None or self.varies(name)]
        self._at = step
        self._set(changing)

    @torch.no_grad()
    def _set(self, names: Iterable[str]) -> None:
        """Give weights their own values and the changes of all adapters at work."""
        if not (names := list(names)):  # and what autocast has cast is good for the next step too
            return
        for adapter in {self, *self._together}:
            adapter._follow()
        with torch.autocast(self._device.type, enabled=False):
            for name in names:
                acting = [a for a in self._together if a._at is not None and name in a._weights]
                changes = sum(a.scale * a.change(name, a._at) for a in acting)
                self._weights[name].copy_(self.original[name].float() + changes if acting else self.original[name])
        torch.clear_autocast_cache()  # it would keep the low-precision copies of the step before

    def merge(self) -> None:
        """Make the change part of the denoiser's own weights, for good, so that another can be learned on top of it.

        Raises InputError where it is another one at each timestep: that stays at work, for batches of one timestep. And
        where another adapter is at work, which, unloaded, would take this one with it.
        """
        if not self.alone:
            raise InputError("another adapter is at work in the same denoiser: unload or merge it first")
        if any(map(self.varies, self._weights)):
            raise InputError(f"scope {self.info.scope} has other weights at each timestep, which cannot be merged")
        self.set_step(0)
        self._handles.pop(0).remove()  # the denoiser's; those of a word stay
        self._together.remove(self)

    def unload(self) -> None:
        """Give the denoiser its own weights back, bit by bit, but for what other adapters at work change."""
        for handle in self._handles:
            handle.remove()
        if self in self._together:
            self._together.remove(self)
            self._set(self._weights)


_at_work: WeakKeyDictionary[nn.Module, list[LoadedAdapter]] = WeakKeyDictionary()


def load_adapter(pipeline: Any, path: Path | str, scale: float = 1.0, model: str | None = None) -> LoadedAdapter:
    """Make a diffusers pipeline use a saved adapter, with any number of steps (nearest cached timestep).

    `scale` multiplies the change of the weights, and may be set later. Undo with `.unload()`. Several adapters can be
    loaded, and unloaded in any order. Raises InputError if the file is damaged, or of another model: one with other
    layers, or another identity than `model` where that is given.
    """
    tensors, info = read_adapter(path, model)
    _, word = split_word(tensors)
    try:
        loaded = LoadedAdapter(models.denoiser_of(pipeline), tensors, info, scale)
        try:
            if word:
                loaded.learn_word(inversion.install(pipeline, info.identifier, word))
        except InputError:
            loaded.unload()
            raise
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return loaded


def load_tuned(
    config: dict[str, Any], sampler: dict[str, Any], adapters: Iterable[str], model: str, scale: float = 1.0
) -> Any:
    """The pipeline that a job's config names, where it is to run, with its sampler, and adapters of `model` at work, at
    `scale`.

    Raises InputError as `load_adapter` does, and for what cannot be loaded.
    """
    device = models.pick_device(config["device"])
    pipeline = models.load_pipeline(config["model"], device, **{key: config[key] for key in models.OF_PIPELINE})
    models.set_sampler(pipeline, sampler["scheduler"], sampler["options"])
    for path in adapters:
        load_adapter(pipeline, path, scale, model)
    return pipeline
