"""Sampling trajectories of the protected prompts: what the denoiser is given at every timestep."""

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
    """Sample every prompt once with the pipeline itself and keep what its denoiser was given.

    batch: prompts in a pass, or None for as many as the GPU has room for; arguments: further ones of its call;
    negatives: negative prompts for the second branch, each for its share of the prompts (`negatives_of`). Raises
    InputError for more steps than the scheduler has, and for prompts far longer than the text encoder reads.
    """
    limit = pipeline.scheduler.config.get("num_train_timesteps", steps)
    if steps > limit:
        raise InputError(f"sampler.steps: {steps}: {type(pipeline.scheduler).__name__} has {limit}; take fewer")
    options = checked_options(pipeline, prompts, resolution, arguments or {})

    chosen = negatives_of(pipeline, prompts, negatives)
    # A pass has negative prompts for all of its prompts or for none: some pipelines have zeros for an empty one.
    order = sorted(range(len(prompts)), key=lambda i: chosen[i] is not None)

    def draw(rows: list[int], steps: int) -> Trajectory:
        given = options if chosen[rows[0]] is None else {**options, "negative_prompt": [chosen[i] or "" for i in rows]}
        seen = recorded_call(pipeline, [prompts[i] for i in rows], steps, guidance, seed, resolution, given)
        return split_branches(seen, len(rows))

    # Of fewer steps than 4 PNDM has no Runge-Kutta ones, and fails.
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
    """One of the negative prompts for each prompt, or None for what the sampler has anyway, by the prompt's hash, which
    neither other prompts nor their order change. None for all where the pipeline takes no negative prompt."""
    takes = "negative_prompt" in inspect.signature(pipeline.__call__).parameters
    choices = [None, *(negatives if takes else ())]
    return [choices[prompt_seed(prompt, 0) % len(choices)] for prompt in prompts]


def write_trajectory(out: str, pipeline: Any, prompts: list[str], identity: dict, **options: Any) -> None:
    """Sample prompts (options as of `trajectories.record`) and store what the denoiser was given."""
    found = record(pipeline, prompts, **options)
    cached = step_timesteps(pipeline.scheduler, found.timesteps, options["steps"])
    TrajectoryStore.write(out, found, cached, prompts, options["seed"], identity)


def of_any_prompts(identity: dict) -> dict:
    """What the trajectories of all shards have in common, out of the identity of a run."""
    return {key: value for key, value in identity.items() if key not in ("prompts", "until", "earlier")}
