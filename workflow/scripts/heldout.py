"""Rule heldout_moments: collect second moments of unprotected prompts at all timesteps, for comparison."""

import torch

from nullbooth.models.loading import ModelSource, load_denoiser
from nullbooth.models.precision import passes_in, pick_device
from nullbooth.statistics.collect import store_all_moments
from nullbooth.storage.progress import log_to, reporter


def main(out: str, trajectory: str, sites: list[str], steps: int, identity: dict, config: dict) -> None:
    device = pick_device(config["device"])
    denoiser = load_denoiser(ModelSource.of(config), device)
    with torch.no_grad(), passes_in(device, config["precision"], denoiser.dtype):
        batch, report = config["protect"]["batch"], reporter("timesteps")
        store_all_moments(out, denoiser, trajectory, steps, sites, batch, identity, report)


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(snakemake.output[0], snakemake.input.trajectory, **snakemake.params, config=snakemake.config)
