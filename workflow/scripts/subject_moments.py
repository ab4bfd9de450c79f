"""Rule subject_moments: second moments of a learned subject's prompts under the model that knows it, at all timesteps,
for later subjects to leave it alone."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from nullbooth.adapters.loaded import load_tuned
from nullbooth.models import loading
from nullbooth.models.precision import passes_in
from nullbooth.statistics.collect import moments_of_all
from nullbooth.statistics.trajectories import write_trajectory
from nullbooth.storage import zarrstore
from nullbooth.storage.progress import log_to, reporter


def main(
    out: str, adapters: list[str], prompts: list[str], sampler: dict, seed: int, sites: list[str], identity, config
) -> None:
    pipeline = load_tuned(config, sampler, adapters, identity["model"])
    device = loading.device_of(pipeline)
    denoiser, batch = loading.denoiser_of(pipeline), config["protect"]["batch"]
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(dir=Path(out).parent) as folder,
        torch.no_grad(),
        passes_in(device, config["precision"], denoiser.dtype),
    ):
        trajectory = f"{folder}/trajectory.zarr"
        write_trajectory(
            trajectory,
            pipeline,
            prompts,
            identity,
            steps=sampler["steps"],
            guidance=sampler["guidance"],
            seed=seed,
            batch=batch,
            resolution=config["resolution"],
            arguments=sampler["arguments"],
            progress=reporter("prompts of the subject"),
        )
        denoiser.to(device)  # with offloading it may be elsewhere
        report = reporter("timesteps")
        arrays, about = moments_of_all(denoiser, trajectory, sampler["steps"], sites, batch, identity, report)
    zarrstore.write(out, arrays, identity, **about)


if __name__ == "__main__":
    log_to(snakemake.log[0])
    i = snakemake.input
    main(snakemake.output[0], [*i.earlier, i.adapter], **snakemake.params, config=snakemake.config)
