"""Sampling trajectories of the protected prompts: what the denoiser is given at every timestep."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nullbooth.identity import prompt_seed, seeded_noise, step_generators
from nullbooth.models import denoiser_of
from nullbooth.text import InputError
from nullbooth.tokens import check_read


@dataclass
class Trajectory:
    """Denoiser inputs of `n` prompts over `T` calls.

    latents: `[T, n, ...]` as the sampler visits them; timesteps: `[T]` as the denoiser is given them;
    conditions: tensors `[branches, n, ...]` by keyword (dots for nested ones), constant over the trajectory,
    where branches are the unconditional and the conditional half under classifier-free guidance.
    """

    latents: Tensor
    timesteps: list[float]
    conditions: dict[str, Tensor]


@dataclass
class _Recorder:
    samples: list[Tensor] = field(default_factory=list)
    timesteps: list[float] = field(default_factory=list)
    conditions: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        args = list(args)
        sample = args.pop(0) if args else kwargs["sample"]
        timestep = args.pop(0) if args else kwargs["timestep"]
        self.samples.append(sample.detach().float().cpu())
        self.timesteps.append(float(timestep if timestep.ndim == 0 else timestep[0]))
        if not self.conditions:
            found = {**({"encoder_hidden_states": args[0]} if args else {}), **flatten(kwargs)}
            batch = len(sample)
            self.conditions = {
                k: v.detach().float().cpu()
                for k, v in found.items()
                if k not in ("sample", "timestep") and v.ndim and len(v) == batch
            }


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
def _recording(denoiser: nn.Module) -> Iterator[_Recorder]:
    recorder = _Recorder()
    handle = denoiser.register_forward_pre_hook(recorder, with_kwargs=True)
    try:
        yield recorder
    finally:
        handle.remove()


def initial_latents(pipeline: Any, seeds: list[int]) -> Tensor:
    """Initial noise `[n, c, h, w]` of unit variance, one CPU generator per seed."""
    denoiser = denoiser_of(pipeline)
    size = denoiser.config.sample_size
    shape = (denoiser.config.in_channels, size, size)
    return torch.stack([seeded_noise(seed, shape) for seed in seeds])


@torch.no_grad()
def record(
    pipeline: Any,
    prompts: list[str],
    *,
    steps: int,
    guidance: float,
    seed: int,
    batch: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trajectory:
    """Sample every prompt once with the pipeline itself and keep what its denoiser was given.

    Raises InputError for more steps than the scheduler has, and for prompts far longer than the text encoder reads.
    """
    limit = pipeline.scheduler.config.get("num_train_timesteps", steps)
    if steps > limit:
        raise InputError(f"sampler.steps: {steps}: {type(pipeline.scheduler).__name__} has {limit}; take fewer")
    for warning in check_read(pipeline.tokenizer, prompts):
        print(warning)
    parts = []
    for i in range(0, len(prompts), batch):
        texts = prompts[i : i + batch]
        seeds = [prompt_seed(text, seed) for text in texts]
        latents = initial_latents(pipeline, seeds)
        latents = latents.to(pipeline.device, denoiser_of(pipeline).dtype)
        with _recording(denoiser_of(pipeline)) as seen:
            pipeline(
                texts,
                num_inference_steps=steps,
                guidance_scale=guidance,
                latents=latents,
                output_type="latent",
                generator=step_generators(seeds),
            )
        parts.append(_split_branches(seen, len(texts)))
        progress(i + len(texts), len(prompts))
    return Trajectory(
        latents=torch.cat([p.latents for p in parts], 1),
        timesteps=parts[0].timesteps,
        conditions={k: torch.cat([p.conditions[k] for p in parts], 1) for k in parts[0].conditions},
    )


def _split_branches(seen: _Recorder, n: int) -> Trajectory:
    """The halves of a guided batch see the same latents: keep them once, and the conditions by branch."""
    latents = torch.stack(seen.samples).unflatten(1, (-1, n))  # [T, branches, n, ...]
    if not all(latents[:, 0].equal(branch) for branch in latents.unbind(1)):
        raise ValueError("the branches of guidance do not see the same latents: this pipeline is not supported yet")
    conditions = {k: v.unflatten(0, (-1, n)) for k, v in seen.conditions.items()}
    return Trajectory(latents[:, 0], seen.timesteps, conditions)


def denoiser_inputs(
    latents: Tensor, timestep: float, conditions: dict[str, Tensor], rows: slice, device: torch.device
) -> dict[str, Any]:
    """Keyword arguments of one denoiser call on `rows` of the prompts, all branches in one batch.

    latents: `[n, ...]` at one timestep; conditions: `[branches, n, ...]`.
    """
    branches = len(next(iter(conditions.values())))
    part = {k: v[:, rows].flatten(0, 1).to(device) for k, v in conditions.items()}
    sample = latents[rows].repeat(branches, *[1] * (latents.ndim - 1)).to(device)
    return {"sample": sample, "timestep": torch.tensor(timestep, device=device), **unflatten(part)}
