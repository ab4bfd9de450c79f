"""Rule heldout_moments: second moments for prompts that are not protected, at all timesteps, to compare with."""

from dataclasses import asdict

import torch

from nullbooth import models, store
from nullbooth.progress import log_to, reporter
from nullbooth.statistics import moments_at


def main(out: str, trajectory: str, sites: list[str], steps: int, identity: dict, config: dict) -> None:
    device = models.pick_device(config["device"])
    denoiser = models.load_denoiser(config["model"], device, **{key: config[key] for key in models.OF_DENOISER})
    arrays, rows, report = {}, {}, reporter("timesteps")
    with torch.no_grad(), models.passes_in(device, config["precision"], denoiser.dtype):
        for step in range(steps):
            moments, features, timesteps = moments_at(
                denoiser, trajectory, step, sites, config["protect"]["batch"], identity
            )
            for feature in features:
                name = f"{step:02d}:{feature.name}"
                arrays[name] = store.pack_symmetric(moments[feature.name].total.cpu().numpy())
                rows[name] = moments[feature.name].rows
            if step == 0:
                listed = [asdict(feature) for feature in features]
            report(step + 1, steps)
    store.write(out, arrays, identity, rows=rows, features=listed, timesteps=timesteps)


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(snakemake.output[0], snakemake.input.trajectory, **snakemake.params, config=snakemake.config)
