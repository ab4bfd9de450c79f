"""Timesteps of denoiser calls and of sampler steps."""

from typing import Any

import torch
from torch import Tensor

from nullbooth.errors import InputError


def nearest_index(timesteps: Tensor, timestep: Tensor) -> Tensor:
    """Index `[b]` of the entry of `timesteps: [T]` nearest to each entry of `timestep: []` or `[b]`."""
    distance = (timesteps[None] - timestep.reshape(-1, 1).to(timesteps)).abs()
    return distance.argmin(1)


def timestep_argument(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The timestep of a denoiser call: its second argument."""
    value = kwargs["timestep"] if "timestep" in kwargs else args[1]
    return torch.as_tensor(value)


def step_timesteps(scheduler: Any, timesteps: list[float], steps: int) -> list[float]:
    """One timestep for each step of a sampler, out of those of its calls.

    A sampler of second order calls at the end of a step once more (Heun), or between (DPM2): the first call, and each
    second one after it, are the steps. Raises InputError where that is not so.
    """
    for found in (list(dict.fromkeys(timesteps)), timesteps[:: getattr(scheduler, "order", 1)]):
        if len(found) == len(set(found)) == steps:
            return found
    if len(timesteps) == steps:
        raise InputError(
            f"sampler.steps: {steps}: only {len(set(timesteps))} of their timesteps differ as the denoiser is given "
            "them, which is in the precision of `weights`; take fewer steps, or weights: fp32"
        )
    raise InputError(
        f"sampler.scheduler: {type(scheduler).__name__} calls the denoiser {len(timesteps)} times in {steps} steps, "
        "and not in pairs; choose another, such as DDIMScheduler"
    )


def calls_of(timesteps: list[float], cached: list[float], step: int) -> list[int]:
    """The calls that step `step` stands for: those to whose timestep no other cached one is nearer."""
    nearest = nearest_index(torch.tensor(cached, dtype=torch.float64), torch.tensor(timesteps, dtype=torch.float64))
    return [call for call, index in enumerate(nearest.tolist()) if index == step]
