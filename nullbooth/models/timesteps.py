"""Timesteps of denoiser calls and of sampler steps."""

from typing import Any

import torch
from torch import Tensor

from nullbooth.errors import InputError


def nearest_index(timesteps: Tensor, timestep: Tensor) -> Tensor:
    """Return the indices `[b]` int64 of the entries of `timesteps: [T]` nearest to those of `timestep: []` or `[b]`."""
    distance = (timesteps[None] - timestep.reshape(-1, 1).to(timesteps)).abs()
    return distance.argmin(1)


def timestep_argument(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """Return the timestep of a denoiser call, `timestep` or the second positional argument."""
    value = kwargs["timestep"] if "timestep" in kwargs else args[1]
    return torch.as_tensor(value)


def step_timesteps(scheduler: Any, timesteps: list[float], steps: int) -> list[float]:
    """Select one timestep for each step of a sampler from the timesteps of its calls.

    A second-order sampler calls the denoiser again at the end of a step (Heun) or within it (DPM2), so that the steps
    are the first call and every second one after it. Raises InputError if the calls do not match.
    """
    for found in (list(dict.fromkeys(timesteps)), timesteps[:: getattr(scheduler, "order", 1)]):
        if len(found) == len(set(found)) == steps:
            return found
    if len(timesteps) == steps:
        raise InputError(
            f"sampler.steps: {steps}: only {len(set(timesteps))} distinct timesteps remain after rounding to the "
            "precision of `weights`; use fewer steps, or weights: fp32"
        )
    raise InputError(
        f"sampler.scheduler: {type(scheduler).__name__} calls the denoiser {len(timesteps)} times in {steps} steps, "
        "and not in pairs; choose another, such as DDIMScheduler"
    )


def calls_of(timesteps: list[float], cached: list[float], step: int) -> list[int]:
    """Return the indices of the calls whose timestep is nearest to the cached timestep of index `step`."""
    nearest = nearest_index(torch.tensor(cached, dtype=torch.float64), torch.tensor(timesteps, dtype=torch.float64))
    return [call for call, index in enumerate(nearest.tolist()) if index == step]
