"""Rule moments: second moments of the inputs of all protected sites at one timestep, over the prompts of one shard."""

from dataclasses import asdict

import torch

from nullbooth.models import loading
from nullbooth.models.precision import passes_in, pick_device
from nullbooth.statistics.collect import moments_at
from nullbooth.storage import zarrstore
from nullbooth.storage.progress import log_to, reporter


def main(out: str, trajectory: str, step: int, sites: list[str], identity: dict, config: dict) -> None:
    device = pick_device(config["device"])
    denoiser = loading.load_denoiser(config["model"], device, **{key: config[key] for key in loading.OF_DENOISER})
    with torch.no_grad(), passes_in(device, config["precision"], denoiser.dtype):
        moments, features, timesteps = moments_at(
            denoiser,
            trajectory,
            step,
            sites,
            config["protect"]["batch"],
            identity,
            reporter(f"timestep {step}, prompts"),
        )
    zarrstore.write(
        out,
        {name: zarrstore.pack_symmetric(moment.total.cpu().numpy()) for name, moment in moments.items()},
        identity,
        rows={name: moment.rows for name, moment in moments.items()},
        features=[asdict(feature) for feature in features],
        **({"prompts": zarrstore.read(trajectory).attrs["prompts"]} if step == 0 else {}),
        timestep=timesteps[step],
        timesteps=timesteps,
        denoiser=type(denoiser).__name__,
    )


if __name__ == "__main__":
    log_to(snakemake.log[0])
    p = snakemake.params
    main(snakemake.output[0], snakemake.input.trajectory, int(p.step), p.sites, p.identity, snakemake.config)
