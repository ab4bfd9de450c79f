"""Second moments of features, collected by running the denoiser over stored trajectories."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from nullbooth.models.calls import denoiser_inputs
from nullbooth.models.loading import denoiser_of, device_of, fitting_batch
from nullbooth.models.sites import find_features, find_sites
from nullbooth.models.sites_by_name import Feature
from nullbooth.models.timesteps import calls_of
from nullbooth.statistics.moments import Moment, collecting
from nullbooth.statistics.records import FeatureStep, MomentStore, TrajectoryStore
from nullbooth.statistics.trajectories import of_any_prompts, write_trajectory
from nullbooth.storage import zarrstore
from nullbooth.storage.progress import reporter


def moments_at(
    denoiser: nn.Module,
    trajectory: str,
    step: int,
    sites: list[str],
    batch: int | None,
    identity: dict,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Moment], list[Feature], list[float]]:
    """Collect moments at timestep index `step` over one stored trajectory.

    Returns moments by feature name, the features, and the cached timesteps. Static features, the same at every
    timestep, are collected at index 0 only. sites: patterns; batch: prompts per pass (None: as many as fit on the GPU).
    """
    store = TrajectoryStore(trajectory, identity)
    timesteps, cached = store.timesteps, store.cached
    found_sites = find_sites(denoiser, tuple(sites))
    conditions, constants = store.conditions(), store.constants()

    def given(call: int, timestep: float, rows: slice) -> dict[str, Any]:
        return denoiser_inputs(denoiser, store.latents(call), timestep, conditions, rows, constants)

    at_work: dict[str, Any] = {}

    def run(call: int, rows: slice) -> None:
        at_work.update(given(call, timesteps[call], rows))
        denoiser(**at_work)

    def mask() -> torch.Tensor | None:
        found = at_work.get("encoder_attention_mask")
        return None if found is None else found.bool()

    calls, n = calls_of(timesteps, cached, step), store.shape[1]
    # Probe with the first and the last timestep at every step: neighbours may be equal in half precision. A sampler of
    # one step has a single timestep, of which half is another one.
    last = cached[-1] if len(cached) > 1 else cached[0] / 2
    probe = [given(0, t, slice(0, 1)) for t in (cached[0], last)]
    found = find_features(found_sites, lambda i: denoiser(**probe[i]))
    features = [f for f in found if step == 0 or not f.static]
    read = {f.name: found_sites[f.name] for f in features}
    with collecting(read):  # unused moments, so that the batch fits beside them
        batch = fitting_batch(lambda m: run(calls[0], slice(0, m)), batch, n)
    # Static features are those that read the prompt alone; the mask applies only to them.
    with collecting(read, mask, [f.name for f in features if f.static]) as moments:
        for done, call in enumerate(calls):
            for i in range(0, n, batch):
                run(call, slice(i, i + batch))
                progress(done * n + min(i + batch, n), len(calls) * n)
    return moments, features, cached


def store_moments(
    out: str,
    denoiser: nn.Module,
    trajectory: str,
    step: int,
    sites: list[str],
    batch: int | None,
    identity: dict,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Store the result of `moments_at` for one timestep as a MomentStore."""
    moments, features, timesteps = moments_at(denoiser, trajectory, step, sites, batch, identity, progress)
    about: dict[str, Any] = {"prompts": TrajectoryStore(trajectory).prompts} if step == 0 else {}
    about |= {"timestep": timesteps[step], "timesteps": timesteps, "denoiser": type(denoiser).__name__}
    sums: dict[FeatureStep, NDArray] = {(name, None): packed(moment) for name, moment in moments.items()}
    rows: dict[FeatureStep, int] = {(name, None): moment.rows for name, moment in moments.items()}
    MomentStore.write(out, sums, rows, features, identity, **about)


def store_all_moments(
    out: str,
    denoiser: nn.Module,
    trajectory: str,
    steps: int,
    sites: list[str],
    batch: int | None,
    identity: dict,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Store the results of `moments_at` for all `steps` timesteps in one MomentStore."""
    sums: dict[FeatureStep, NDArray] = {}
    rows: dict[FeatureStep, int] = {}
    listed: list[Feature] = []
    for step in range(steps):
        moments, features, timesteps = moments_at(denoiser, trajectory, step, sites, batch, identity)
        for feature in features:
            sums[feature.name, step] = packed(moments[feature.name])
            rows[feature.name, step] = moments[feature.name].rows
        listed = listed or features
        progress(step + 1, steps)
    MomentStore.write(out, sums, rows, listed, identity, timesteps=timesteps)


def store_subject_moments(
    out: str, pipeline: Any, prompts: list[str], steps: int, sites: list[str], identity: dict, **options: Any
) -> None:
    """Sample a subject's prompts with a pipeline that has learned it, and store their moments at every timestep.

    options: those of `trajectories.record`. The trajectory itself is deleted.
    """
    denoiser, device = denoiser_of(pipeline), device_of(pipeline)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=Path(out).parent) as folder:
        trajectory = f"{folder}/trajectory.zarr"
        write_trajectory(trajectory, pipeline, prompts, identity, steps=steps, **options)
        denoiser.to(device)  # offloading may have moved it
        report = reporter("timesteps")
        store_all_moments(out, denoiser, trajectory, steps, sites, options["batch"], identity, report)


def packed(moment: Moment) -> NDArray:
    """Upper triangle of a moment's sum, `[n (n + 1) / 2]` float64."""
    return zarrstore.pack_symmetric(moment.total.cpu().numpy())


def protected_passes(denoiser: nn.Module, shards: list[str], identity: dict, every: int) -> Callable[[], None]:
    """Return a function that runs the denoiser on every `every`th call of all trajectories, one sample at a time."""

    @torch.no_grad()
    def run() -> None:
        for store in (TrajectoryStore(path, of_any_prompts(identity)) for path in shards):
            timesteps, constants, conditions = store.timesteps, store.constants(), store.conditions()
            branches = len(next(iter(conditions.values())))
            for step in range(0, len(timesteps), every):
                latents = store.latents(step)
                for branch in range(branches):
                    of_branch = {k: v[branch : branch + 1] for k, v in conditions.items()}
                    for i in range(len(latents)):
                        row = slice(i, i + 1)
                        denoiser(**denoiser_inputs(denoiser, latents, timesteps[step], of_branch, row, constants))

    return run
