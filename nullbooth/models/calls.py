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

Resolution = int | tuple[int, int] | None  # in pixels: side, or height and width; None: the model's own


# Arguments of a pipeline's call that NullBooth sets itself.
OWN = ("prompt", "num_inference_steps", "guidance_scale", "latents", "generator", "output_type", "height", "width")


@dataclass
class Trajectory:
    """Inputs of the denoiser for `n` prompts over `C` calls, float32 on the CPU.

    latents: `[C, n, ...]`, as the sampler visits them; timesteps: `[C]`, as the denoiser receives them;
    conditions: tensors `[branches, n, ...]` by keyword (dots for nested ones), constant over the trajectory; the
    branches are the unconditional and the conditional half under classifier-free guidance;
    constants: tensors by keyword that are the same for all prompts.
    """

    latents: Tensor
    timesteps: list[float]
    conditions: dict[str, Tensor]
    constants: dict[str, Tensor] = field(default_factory=dict)


class _SeenError(Exception):
    """Raised to leave a pipeline once the arguments of its denoiser are recorded; not a failure."""


@dataclass
class _Recorder:
    only_first: bool = False
    gradients: bool = False  # keep gradients, devices and dtypes of the arguments
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
                    f"{len(sample)} samples: this pipeline is not supported yet; use another model"
                )
            kept[key] = value if self.gradients else value.detach().float().cpu()
        if self.only_first:
            raise _SeenError


def flatten(kwargs: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of nested keyword arguments by dotted name; other values are left out."""
    flat: dict[str, Tensor] = {}
    for key, value in kwargs.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            flat[prefix + key] = value
    return flat


def unflatten(flat: dict[str, Tensor]) -> dict[str, Any]:
    """Nest tensors by dotted name; the inverse of `flatten`."""
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
    """Return height and width of a picture in pixels."""
    side = resolution or resolution_of(pipeline)
    return (side, side) if isinstance(side, int) else side


def initial_latents(pipeline: Any, seeds: list[int], resolution: Resolution = None) -> Tensor:
    """Return standard normal noise `[n, c, h, w]` float32, from one CPU generator per seed; `[n, tokens, c]` if the
    family packs latents."""
    height, width = (pixels // pipeline.vae_scale_factor for pixels in shape_of(pipeline, resolution))
    channels = denoiser_of(pipeline).config.in_channels // family(pipeline).square
    return packed(pipeline, torch.stack([seeded_noise(seed, (channels, height, width)) for seed in seeds]))


def call_options(pipeline: Any, resolution: Resolution, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the user's `arguments`, with others that set the size of pictures and leave prompts unchanged.

    Raises InputError for `arguments` that the pipeline does not have, or that NullBooth sets itself."""
    known = inspect.signature(pipeline.__call__).parameters
    for key in arguments:
        if key not in known or key in OWN or key.endswith("_embeds"):
            why = "set elsewhere, for every picture" if key in known else f"unknown to {type(pipeline).__name__}"
            raise InputError(f"sampler.arguments.{key}: this argument is {why}; remove it")
    height, width = shape_of(pipeline, resolution)
    wanted = {"height": height, "width": width, "use_resolution_binning": False, "clean_caption": False}
    return {k: v for k, v in wanted.items() if k in known} | arguments


def for_each(options: dict[str, Any], prompts: int) -> dict[str, Any]:
    """Return the options with negative prompts repeated for each of `prompts`, because some pipelines do not."""
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
    """Call a pipeline and record the inputs of its denoiser, up to the first pass or for all; see _Recorder."""
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
    """Return `call_options`, and print warnings about prompts that are longer than what the text encoder reads."""
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
    """Return the inputs of the denoiser's first call, for all prompts in one pass, without running the denoiser, which
    need not be on the GPU. Takes the arguments of `record`, and raises its errors."""
    options = checked_options(pipeline, prompts, resolution, arguments or {})
    seen = recorded_call(pipeline, prompts, 2, guidance, seed, resolution, options, only_first=True)
    return split_branches(seen, len(prompts))


def spoken(pipeline: Any, prompts: list[str], resolution: Resolution, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Return the conditions of `first_call` without guidance, a row per prompt, with gradients to text embeddings."""
    options = call_options(pipeline, resolution, arguments)
    return recorded_call(pipeline, prompts, 2, 1.0, 0, resolution, options, only_first=True, gradients=True).conditions


def split_branches(seen: _Recorder, n: int) -> Trajectory:
    """Split a recorded batch by branch, with latents, which all branches share, kept once. Raises ValueError."""
    latents = torch.stack(seen.samples).unflatten(1, (-1, n))  # [T, branches, n, ...]
    if not all(latents[:, 0].equal(branch) for branch in latents.unbind(1)):
        raise ValueError("the branches of guidance have different latents: this pipeline is not supported yet")
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
    """Return the keyword arguments of one denoiser call on `rows` of the prompts, with all branches in one batch.

    latents: `[n, ...]` at one timestep; conditions: `[branches, n, ...]`; constants: the same for all prompts. Floats
    get device and dtype of the weights; the timestep is `[branches * rows]` float32."""
    weight = next(denoiser.parameters())
    branches = len(next(iter(conditions.values())))
    given = {k: v[:, rows].flatten(0, 1) for k, v in conditions.items()} | (constants or {})
    given[latents_name(denoiser)] = sample = latents[rows].repeat(branches, *[1] * (latents.ndim - 1))
    given = {k: v.to(weight.device, weight.dtype if v.is_floating_point() else v.dtype) for k, v in given.items()}
    given["timestep"] = torch.full((len(sample),), timestep, device=weight.device)
    return unflatten(given)
