"""From stored trajectories to moments, and from stored eigenvectors to projectors under a rank rule."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from nullbooth.models.calls import denoiser_inputs
from nullbooth.models.loading import fitting_batch
from nullbooth.models.sites import Feature, find_features, find_sites
from nullbooth.models.timesteps import calls_of
from nullbooth.statistics.moments import Moment, collecting
from nullbooth.statistics.trajectories import of_any_prompts, stored
from nullbooth.storage import zarrstore


def moments_at(
    denoiser: nn.Module,
    trajectory: str,
    step: int,
    sites: list[str],
    batch: int | None,
    identity: dict,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Moment], list[Feature], list[float]]:
    """Moments by feature name at timestep index `step` over one stored trajectory, the features, and all timesteps.

    What does not depend on the timestep is collected at index 0 alone. batch: prompts in a pass, or None for as many
    as the GPU has room for.
    """
    group = zarrstore.read(trajectory, identity)
    timesteps, cached = group["timesteps"][:].tolist(), group["cached"][:].tolist()
    found_sites = find_sites(denoiser, tuple(sites))
    conditions, constants = stored(group, "condition"), stored(group, "constant")

    def given(call: int, timestep: float, rows: slice) -> dict[str, Any]:
        latents = torch.from_numpy(group["latents"][call])
        return denoiser_inputs(denoiser, latents, timestep, conditions, rows, constants)

    at_work: dict[str, Any] = {}

    def run(call: int, rows: slice) -> None:
        at_work.update(given(call, timesteps[call], rows))
        denoiser(**at_work)

    def mask() -> torch.Tensor | None:
        found = at_work.get("encoder_attention_mask")
        return None if found is None else found.bool()

    calls, n = calls_of(timesteps, cached, step), group["latents"].shape[1]
    # The same for every step, and as far apart as can be: neighbours may differ by less than half precision tells.
    probe = [given(0, t, slice(0, 1)) for t in (cached[0], cached[-1])]
    found = find_features(found_sites, lambda i: denoiser(**probe[i]))
    features = [f for f in found if step == 0 or not f.static]
    read = {f.name: found_sites[f.name] for f in features}
    with collecting(read):  # moments that nobody looks at, for the room that they take
        batch = fitting_batch(lambda m: run(calls[0], slice(0, m)), batch, n)
    # Only what is the same at all timesteps is the prompt alone.
    with collecting(read, mask, [f.name for f in features if f.static]) as moments:
        for done, call in enumerate(calls):
            for i in range(0, n, batch):
                run(call, slice(i, i + batch))
                progress(done * n + min(i + batch, n), len(calls) * n)
    return moments, features, cached


def moments_of_all(
    denoiser: nn.Module,
    trajectory: str,
    steps: int,
    sites: list[str],
    batch: int | None,
    identity: dict,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """`moments_at` for all `steps` of a trajectory: packed sums by "step:feature", and what a store says of them."""
    arrays, rows, listed = {}, {}, []
    for step in range(steps):
        moments, features, timesteps = moments_at(denoiser, trajectory, step, sites, batch, identity)
        for feature in features:
            name = f"{step:02d}:{feature.name}"
            arrays[name] = zarrstore.pack_symmetric(moments[feature.name].total.cpu().numpy())
            rows[name] = moments[feature.name].rows
        listed = listed or [asdict(feature) for feature in features]
        progress(step + 1, steps)
    return arrays, {"rows": rows, "features": listed, "timesteps": timesteps}


def protected_passes(denoiser: nn.Module, shards: list[str], identity: dict, every: int) -> Callable[[], None]:
    """A function that runs the denoiser on all stored trajectories, each `every`th step, one sample at a time."""

    @torch.no_grad()
    def run() -> None:
        for group in (zarrstore.read(path, of_any_prompts(identity)) for path in shards):
            timesteps, constants = group["timesteps"][:].tolist(), stored(group, "constant")
            conditions = stored(group, "condition")
            branches = len(next(iter(conditions.values())))
            for step in range(0, len(timesteps), every):
                latents = torch.from_numpy(group["latents"][step])
                for branch in range(branches):
                    of_branch = {k: v[branch : branch + 1] for k, v in conditions.items()}
                    for i in range(len(latents)):
                        row = slice(i, i + 1)
                        denoiser(**denoiser_inputs(denoiser, latents, timesteps[step], of_branch, row, constants))

    return run
