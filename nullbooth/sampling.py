"""Pictures from a pipeline, with noise that belongs to the seed: the same for every method and batch size."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nullbooth.identity import step_generators
from nullbooth.models import denoiser_of, device_of, passes_in
from nullbooth.trajectories import call_options, initial_latents


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
    """One picture per prompt and seed, float32 `[n, 3, h, w]` in [-1, 1], on the CPU."""
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
                **call_options(pipeline, resolution, arguments or {}),
            ).images
            pictures.append(images.float().cpu() * 2 - 1)
            progress(i + len(texts), len(prompts))
    return torch.cat(pictures)
