"""Calls of a denoiser, as the model's own pipeline makes them."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nullbooth.errors import InputError
from nullbooth.models.families import constants
from nullbooth.models.loading import denoiser_of, device_of, family, latents_name, packed, resolution_of
from nullbooth.models.noise import prompt_seed, seeded_noise, step_generators
from nullbooth.models.prompt_length import check_read

Resolution = int | tuple[int, int] | None  # pixels of a picture's side, its height and width, or the model's own


# Arguments of a pipeline's call that are ours.
OWN = ("prompt", "num_inference_steps", "guidance_scale", "latents", "generator", "output_type", "height", "width")


@dataclass
class Trajectory:
    """Denoiser inputs of `n` prompts over `C` calls.

    latents: `[C, n, ...]` as the sampler visits them; timesteps: `[C]` as the denoiser is given them;
    conditions: tensors `[branches, n, ...]` by keyword (dots for nested ones), constant over the trajectory,
    where branches are the unconditional and the conditional half under classifier-free guidance;
    constants: tensors by keyword that are the same for all prompts.
    """

    latents: Tensor
    timesteps: list[float]
    conditions: dict[str, Tensor]
    constants: dict[str, Tensor] = field(default_factory=dict)


class _SeenError(Exception):
    """The denoiser was given all that is to be known: no error, but the way out of a pipeline."""


@dataclass
class _Recorder:
    only_first: bool = False
    gradients: bool = False  # keep them, where things lie and in the type that they have
    samples: list[Tensor] = field(default_factory=list)
    timesteps: list[float] = field(default_factory=list)
    conditions: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, denoiser: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = dict(inspect.signature(denoiser.forward).bind(*args, **kwargs).arguments)
        sample, timestep = given.pop(latents_name(denoiser)), given.pop("timestep")
        self.samples.append(sample.detach().float().cpu())
        self.timesteps.append(float(timestep if timestep.ndim == 0 else timestep[0]))
        if self.conditions:
            return
        for key, value in flatten(given).items():
            kept = self.constants if key in constants() else self.conditions
            if key not in constants() and (not value.ndim or len(value) != len(sample)):
                raise ValueError(
                    f"{type(denoiser).__name__} is given {key} of shape {tuple(value.shape)}, not one row for each of "
                    f"{len(sample)} samples: this pipeline is not supported yet"
                )
            kept[key] = value if self.gradients else value.detach().float().cpu()
        if self.only_first:
            raise _SeenError


def flatten(kwargs: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Tensors of nested keyword arguments under dotted names."""
    flat: dict[str, Tensor] = {}
    for key, value in kwargs.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            flat[prefix + key] = value
    return flat


def unflatten(flat: dict[str, Tensor]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        inner = nested
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return nested


@contextmanager
def _recording(denoiser: nn.Module, only_first: bool, gradients: bool) -> Iterator[_Recorder]:
    recorder = _Recorder(only_first, gradients)
    handle = denoiser.register_forward_pre_hook(recorder, with_kwargs=True)
    try:
        yield recorder
    finally:
        handle.remove()


def shape_of(pipeline: Any, resolution: Resolution) -> tuple[int, int]:
    """Height and width of a picture in pixels."""
    side = resolution or resolution_of(pipeline)
    return (side, side) if isinstance(side, int) else side


def initial_latents(pipeline: Any, seeds: list[int], resolution: Resolution = None) -> Tensor:
    """Initial noise `[n, c, h, w]` of unit variance, one CPU generator per seed; `[n, tokens, c]` where latents are
    packed."""
    height, width = (pixels // pipeline.vae_scale_factor for pixels in shape_of(pipeline, resolution))
    channels = denoiser_of(pipeline).config.in_channels // family(pipeline).square
    return packed(pipeline, torch.stack([seeded_noise(seed, (channels, height, width)) for seed in seeds]))


def call_options(pipeline: Any, resolution: Resolution, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments that make a pipeline draw at this size and take prompts as they are, whatever its defaults; and those
    that the user gives it. Raises InputError for arguments that the pipeline does not have, or that are not the user's.
    """
    known = inspect.signature(pipeline.__call__).parameters
    for key in arguments:
        if key not in known or key in OWN or key.endswith("_embeds"):
            why = "set elsewhere, for every picture" if key in known else f"none of {type(pipeline).__name__}'s"
            raise InputError(f"sampler.arguments.{key}: an argument that is {why}; take it away")
    height, width = shape_of(pipeline, resolution)
    wanted = {"height": height, "width": width, "use_resolution_binning": False, "clean_caption": False}
    return {k: v for k, v in wanted.items() if k in known} | arguments


def for_each(options: dict[str, Any], prompts: int) -> dict[str, Any]:
    """Arguments of a call with so many prompts: a negative prompt once for each, as some pipelines do not repeat it."""
    texts = {k: [v] * prompts for k, v in options.items() if k.startswith("negative_prompt") and isinstance(v, str)}
    return options | texts


def recorded_call(
    pipeline: Any,
    texts: list[str],
    steps: int,
    guidance: float,
    seed: int,
    resolution: Resolution,
    options: dict,
    only_first: bool = False,
    gradients: bool = False,
) -> _Recorder:
    """What a pipeline gives its denoiser in one call, or before the first pass of it; with gradients on request."""
    call = inspect.unwrap(type(pipeline).__call__) if gradients else type(pipeline).__call__  # in no_grad by default
    seeds = [prompt_seed(text, seed) for text in texts]
    latents = initial_latents(pipeline, seeds, resolution)
    with _recording(denoiser_of(pipeline), only_first, gradients) as seen, suppress(_SeenError):
        call(
            pipeline,
            texts,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=latents.to(device_of(pipeline), denoiser_of(pipeline).dtype),
            output_type="latent",
            generator=step_generators(seeds),
            **for_each(options, len(texts)),
        )
    return seen


def checked_options(
    pipeline: Any, prompts: list[str], resolution: Resolution, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Return `call_options`, and print a warning for each prompt that the text encoder does not read to its end."""
    for warning in check_read(pipeline, prompts, arguments.get("max_sequence_length")):
        print(warning)
    return call_options(pipeline, resolution, arguments)


@torch.no_grad()
def first_call(
    pipeline: Any,
    prompts: list[str],
    *,
    guidance: float,
    seed: int,
    resolution: Resolution = None,
    arguments: dict[str, Any] | None = None,
) -> Trajectory:
    """What the denoiser is given at the first call, all prompts in one pass: it does not run, and need not be on the
    GPU. Arguments and errors as of `record`."""
    options = checked_options(pipeline, prompts, resolution, arguments or {})
    seen = recorded_call(pipeline, prompts, 2, guidance, seed, resolution, options, only_first=True)
    return split_branches(seen, len(prompts))


def spoken(pipeline: Any, prompts: list[str], resolution: Resolution, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The conditions of `first_call` without guidance, one row a prompt, with gradients to what text encoders read."""
    options = call_options(pipeline, resolution, arguments)
    return recorded_call(pipeline, prompts, 2, 1.0, 0, resolution, options, only_first=True, gradients=True).conditions


def split_branches(seen: _Recorder, n: int) -> Trajectory:
    """The halves of a guided batch see the same latents: keep them once, and the conditions by branch."""
    latents = torch.stack(seen.samples).unflatten(1, (-1, n))  # [T, branches, n, ...]
    if not all(latents[:, 0].equal(branch) for branch in latents.unbind(1)):
        raise ValueError("the branches of guidance do not see the same latents: this pipeline is not supported yet")
    conditions = {k: v.unflatten(0, (-1, n)) for k, v in seen.conditions.items()}
    return Trajectory(latents[:, 0], seen.timesteps, conditions, seen.constants)


def denoiser_inputs(
    denoiser: nn.Module,
    latents: Tensor,
    timestep: float,
    conditions: dict[str, Tensor],
    rows: slice,
    constants: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Keyword arguments of one denoiser call on `rows` of the prompts, all branches in one batch.

    latents: `[n, ...]` at one timestep; conditions: `[branches, n, ...]`; constants: the same for all prompts.
    """
    weight = next(denoiser.parameters())
    branches = len(next(iter(conditions.values())))
    given = {k: v[:, rows].flatten(0, 1) for k, v in conditions.items()} | (constants or {})
    given[latents_name(denoiser)] = sample = latents[rows].repeat(branches, *[1] * (latents.ndim - 1))
    given = {k: v.to(weight.device, weight.dtype if v.is_floating_point() else v.dtype) for k, v in given.items()}
    given["timestep"] = torch.full((len(sample),), timestep, device=weight.device)
    return unflatten(given)
