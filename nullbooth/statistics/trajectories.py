"""Sampling trajectories of the protected prompts: the inputs of the denoiser at every timestep."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from nullbooth.errors import InputError
from nullbooth.models.calls import (
    Resolution,
    Trajectory,
    checked_options,
    recorded_call,
    split_branches,
)
from nullbooth.models.loading import fitting_batch
from nullbooth.models.noise import prompt_seed
from nullbooth.models.timesteps import step_timesteps
from nullbooth.statistics.records import TrajectoryStore


@torch.no_grad()
def record(
    pipeline: Any,
    prompts: list[str],
    *,
    steps: int,
    guidance: float,
    seed: int,
    batch: int | None,
    resolution: Resolution = None,
    arguments: dict[str, Any] | None = None,
    negatives: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trajectory:
    """Sample every prompt once with the pipeline itself and record the inputs of its denoiser.

    batch: prompts per pass (None: as many as fit on the GPU); arguments: more keyword arguments of the pipeline;
    negatives: negative prompts, distributed over the prompts by `negatives_of`. Raises InputError if `steps` exceeds
    the scheduler's timesteps, or if a prompt is far longer than the text encoder reads.
    """
    limit = pipeline.scheduler.config.get("num_train_timesteps", steps)
    if steps > limit:
        raise InputError(f"sampler.steps: {steps}: {type(pipeline.scheduler).__name__} has {limit}; use fewer")
    options = checked_options(pipeline, prompts, resolution, arguments or {})

    chosen = negatives_of(pipeline, prompts, negatives)
    # Prompts with and without a negative prompt go in separate passes: some pipelines replace a missing one by zeros.
    order = sorted(range(len(prompts)), key=lambda i: chosen[i] is not None)

    def draw(rows: list[int], steps: int) -> Trajectory:
        given = options if chosen[rows[0]] is None else {**options, "negative_prompt": [chosen[i] or "" for i in rows]}
        seen = recorded_call(pipeline, [prompts[i] for i in rows], steps, guidance, seed, resolution, given)
        return split_branches(seen, len(rows))

    # Try batches with 4 steps: with fewer, PNDM takes no Runge-Kutta steps and fails.
    batch = fitting_batch(lambda n: draw(order[:n], min(steps, 4)), batch, len(prompts))
    plain, parts, done = chosen.count(None), [], 0
    for start, end in ((0, plain), (plain, len(prompts))):
        for i in range(start, end, batch):
            parts.append(draw(order[i : min(i + batch, end)], steps))
            done += min(i + batch, end) - i
            progress(done, len(prompts))
    back = torch.tensor(order).argsort()
    return Trajectory(
        latents=torch.cat([p.latents for p in parts], 1)[:, back],
        timesteps=parts[0].timesteps,
        conditions={k: torch.cat([p.conditions[k] for p in parts], 1)[:, back] for k in parts[0].conditions},
        constants=parts[0].constants,
    )


def negatives_of(pipeline: Any, prompts: list[str], negatives: Sequence[str]) -> list[str | None]:
    """Choose for each prompt, by its hash, one of `negatives` or None, the sampler's own default. The choice depends on
    no other prompt and no order. All are None if the pipeline takes no negative prompt."""
    takes = "negative_prompt" in inspect.signature(pipeline.__call__).parameters
    choices = [None, *(negatives if takes else ())]
    return [choices[prompt_seed(prompt, 0) % len(choices)] for prompt in prompts]


def write_trajectory(out: str, pipeline: Any, prompts: list[str], identity: dict, **options: Any) -> None:
    """Sample prompts and store the inputs of the denoiser as a TrajectoryStore. options: those of `record`."""
    found = record(pipeline, prompts, **options)
    cached = step_timesteps(pipeline.scheduler, found.timesteps, options["steps"])
    TrajectoryStore.write(out, found, cached, prompts, options["seed"], identity)


def of_any_prompts(identity: dict) -> dict:
    """Return the part of a run's identity that the trajectories of all its shards share."""
    return {key: value for key, value in identity.items() if key not in ("prompts", "until", "earlier")}
