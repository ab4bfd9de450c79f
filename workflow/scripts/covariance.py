"""Rule covariance: second moments of the inputs of all protected sites at one timestep of the sampler."""

from dataclasses import asdict

import torch

from nullbooth import models, store
from nullbooth.progress import log_to, reporter
from nullbooth.statistics import moments_at


def main(
    out: str, trajectories: list[str], step: int, projections: list[str], batch: int, loading: dict, identity: dict
) -> None:
    device = models.pick_device(loading["device"])
    denoiser = models.load_denoiser(loading["model"], device, loading["revision"])
    with torch.no_grad(), models.autocast(device, loading["precision"]):
        moments, features, timesteps = moments_at(
            denoiser, trajectories, step, projections, batch, identity, reporter(f"timestep {step}, prompts")
        )
    store.write(
        out,
        {name: store.pack_symmetric(moment.total.cpu().numpy()) for name, moment in moments.items()},
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
