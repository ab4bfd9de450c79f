"""Rule covariance: second moments of the inputs of all protected sites at one timestep of the sampler."""

from dataclasses import asdict

import numpy as np
import torch

from nullbooth import models, store
from nullbooth.moments import Moment, collecting
from nullbooth.progress import log_to, reporter
from nullbooth.sites import Feature, find_features, find_sites
from nullbooth.trajectories import denoiser_inputs


def moments_at(
    denoiser: torch.nn.Module, paths: list[str], step: int, projections: list[str], batch: int, identity: dict
) -> tuple[dict[str, Moment], list[Feature], list[float]]:
    """Moments by feature at timestep index `step`, over all shards. Static features belong to index 0."""
    shards = [store.read(path, identity) for path in paths]
    timesteps = shards[0]["timesteps"][:].tolist()
    device = next(denoiser.parameters()).device
    sites = find_sites(denoiser, tuple(projections))
    features, moments = None, None
    total = sum(shard["latents"].shape[1] for shard in shards)
    done, report = 0, reporter(f"timestep {timesteps[step]:g}, prompts")
    for shard in shards:
        latents = torch.from_numpy(shard["latents"][step])
        conditions = {
            name.partition(":")[2]: torch.from_numpy(shard[name][:]) for name in shard if name.startswith("condition:")
        }

        def forward(rows: slice, timestep: float) -> None:
            denoiser(**denoiser_inputs(latents, timestep, conditions, rows, device))

        if features is None:
            probes = (timesteps[step], timesteps[step - 1] if step else timesteps[-1])
            found = find_features(sites, lambda i: forward(slice(0, 1), probes[i]))
            features = [f for f in found if step == 0 or not f.static]
        with collecting({f.name: sites[f.name] for f in features}) as part:
            for i in range(0, latents.shape[0], batch):
                forward(slice(i, i + batch), timesteps[step])
                done = min(done + batch, total)
                report(done, total)
        for name, moment in part.items():
            if moments is None or name not in moments:
                moments = {**(moments or {}), name: moment}
            else:
                moments[name].total += moment.total
                moments[name].rows += moment.rows
    return moments, features, timesteps


def main(
    out: str, trajectories: list[str], step: int, projections: list[str], batch: int, loading: dict, identity: dict
) -> None:
    device = models.pick_device(loading["device"])
    denoiser = models.load_denoiser(loading["model"], device, loading["revision"])
    with torch.no_grad(), models.autocast(device, loading["precision"]):
        moments, features, timesteps = moments_at(denoiser, trajectories, step, projections, batch, identity)
    arrays = {name: store.pack_symmetric(moment.total.cpu().numpy()) for name, moment in moments.items()}
    store.write(
        out,
        arrays,
        identity,
        rows={name: moment.rows for name, moment in moments.items()},
        features=[asdict(feature) for feature in features],
        timestep=timesteps[step],
        timesteps=timesteps,
        denoiser=type(denoiser).__name__,
    )


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(snakemake.output[0], snakemake.input.trajectories, int(snakemake.wildcards.step), **snakemake.params)
