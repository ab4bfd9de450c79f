"""Pictures from a pipeline, with noise that depends on the seed alone: the same for every method and batch size."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nullbooth.errors import InputError
from nullbooth.models.calls import call_options, for_each, initial_latents
from nullbooth.models.loading import denoiser_of, device_of, family
from nullbooth.models.noise import step_generators
from nullbooth.models.precision import passes_in


@torch.no_grad()
def sample(
    pipeline: Any,
    prompts: list[str],
    seeds: list[int],
    *,
    steps: int,
    guidance: float,
    batch: int = 8,
    precision: str = "fp32",
    resolution: int | None = None,
    arguments: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Draw one picture per prompt, with the seed at its index; return `[n, 3, h, w]` float32 in [-1, 1], on the CPU."""
    pictures, device, denoiser = [], device_of(pipeline), denoiser_of(pipeline)
    with passes_in(device, precision, denoiser.dtype):
        for i in range(0, len(prompts), batch):
            texts = prompts[i : i + batch]
            images = pipeline(
                texts,
                num_inference_steps=steps,
                guidance_scale=guidance,
                latents=initial_latents(pipeline, seeds[i : i + batch], resolution).to(device, denoiser.dtype),
                generator=step_generators(seeds[i : i + batch]),
                output_type="pt",
                **for_each(call_options(pipeline, resolution, arguments or {}), len(texts)),
            ).images
            pictures.append(images.float().cpu() * 2 - 1)
            progress(i + len(texts), len(prompts))
    return torch.cat(pictures)


def without_halves(pipeline: Any) -> str | None:
    """Return the reason why a pipeline cannot draw two prompts in one picture, or None if it can."""
    if family(pipeline).pack:
        return f"{type(pipeline).__name__} packs its latents, which have no left and right"
    if "callback_on_step_end" not in inspect.signature(pipeline.__call__).parameters:
        return f"{type(pipeline).__name__} has no callback between its steps (callback_on_step_end)"
    return None


@torch.no_grad()
def sample_halves(
    pipeline: Any,
    left: str,
    right: str,
    seed: int,
    *,
    steps: int,
    guidance: float,
    precision: str = "fp32",
    resolution: int | None = None,
    arguments: dict[str, Any] | None = None,
) -> Tensor:
    """Draw one picture whose halves follow two prompts; return `[3, h, w]` float32 in [-1, 1], on the CPU.

    Both prompts are denoised from the same noise. After each step, the left half of the latents of the first is joined
    with the right half of the second (MultiDiffusion, arXiv 2302.08113, with two regions that do not overlap).
    Raises InputError for the reasons of `without_halves`.
    """
    if why := without_halves(pipeline):
        raise InputError(f"two prompts in one picture: {why}")
    device, denoiser = device_of(pipeline), denoiser_of(pipeline)
    latents = initial_latents(pipeline, [seed], resolution)

    def join(_pipeline: Any, _step: int, _timestep: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        first, second = given["latents"]
        half = first.shape[-1] // 2
        joined = torch.cat([first[..., :half], second[..., half:]], -1)
        return {"latents": torch.stack([joined, joined])}

    with passes_in(device, precision, denoiser.dtype):
        images = pipeline(
            [left, right],
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=latents.repeat(2, 1, 1, 1).to(device, denoiser.dtype),
            generator=step_generators([seed, seed]),
            output_type="pt",
            callback_on_step_end=join,
            callback_on_step_end_tensor_inputs=["latents"],
            **for_each(call_options(pipeline, resolution, arguments or {}), 2),
        ).images
    return images[0].float().cpu() * 2 - 1
