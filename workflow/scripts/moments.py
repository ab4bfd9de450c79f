"""Rule moments: collect second moments of the inputs of all sites at one timestep, over the prompts of one shard."""

import torch

from nullbooth.models.loading import ModelSource, load_denoiser
from nullbooth.models.precision import passes_in, pick_device
from nullbooth.statistics.collect import store_moments
from nullbooth.storage.progress import log_to, reporter


def main(out: str, trajectory: str, step: int, sites: list[str], identity: dict, config: dict) -> None:
    device = pick_device(config["device"])
    denoiser = load_denoiser(ModelSource.of(config), device)
    with torch.no_grad(), passes_in(device, config["precision"], denoiser.dtype):
        report = reporter(f"timestep {step}, prompts")
        store_moments(out, denoiser, trajectory, step, sites, config["protect"]["batch"], identity, report)


if __name__ == "__main__":
    log_to(snakemake.log[0])
    p = snakemake.params
    main(snakemake.output[0], snakemake.input.trajectory, int(p.step), p.sites, p.identity, snakemake.config)
