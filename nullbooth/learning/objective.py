"""Training objectives: noised latents, targets, weights, and timesteps."""

from typing import Any

import torch
from torch import Tensor

from nullbooth.models.schedulers import objective_of


def is_flow(scheduler: Any) -> bool:
    """Return True for flow-matching schedulers, which predict the velocity along straight lines from data to noise."""
    return objective_of(scheduler) == "flow"


def noised(scheduler: Any, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return noisy latents and the target of the scheduler's prediction type, shaped like `x: [b, ...]`; `t: [b]`.

    Flow matching (arXiv 2403.03206): x_t = (1 - s) x + s n with s = t / num_train_timesteps, target n - x. Raises
    ValueError for an unknown prediction type.
    """
    if is_flow(scheduler):
        s = (t / scheduler.config.num_train_timesteps).view(-1, *[1] * (x.ndim - 1)).to(x)
        return (1 - s) * x + s * noise, noise - x
    noisy = scheduler.add_noise(x, noise, t)
    match scheduler.config.prediction_type:
        case "epsilon":
            return noisy, noise
        case "v_prediction":
            return noisy, scheduler.get_velocity(x, noise, t)
        case "sample":
            return noisy, x
    raise ValueError(f"scheduler: unknown prediction_type {scheduler.config.prediction_type!r}")


def min_snr_weights(scheduler: Any, t: Tensor, gamma: float) -> Tensor:
    """Return Min-SNR-gamma (arXiv 2303.09556) loss weights `[b]` for timesteps `t: [b]` and the prediction type.

    Raises ValueError for flow matching.
    """
    if is_flow(scheduler):
        raise ValueError("train.min_snr: a flow-matching scheduler has no signal-to-noise weights; leave it null")
    alpha = scheduler.alphas_cumprod.to(t.device)[t.long()].float()
    snr = alpha / (1 - alpha)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    return snr.clamp(max=gamma) / divisor[scheduler.config.prediction_type].clamp(min=1e-8)


def draw_timesteps(scheduler: Any, cached: Tensor, n: int, mode: str, generator: torch.Generator) -> Tensor:
    """Draw `n` timesteps: from the whole schedule (`all`), or from those with a projector (`cached`)."""
    if mode == "cached":
        t = cached[torch.randint(len(cached), (n,), generator=generator)]
    else:
        t = torch.randint(scheduler.config.num_train_timesteps, (n,), generator=generator).double()
    return t if is_flow(scheduler) else t.round().long()
