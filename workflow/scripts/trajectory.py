"""Rule trajectory: sample the protected prompts of one shard and store the inputs of the denoiser."""

from nullbooth.models import loading, schedulers
from nullbooth.models.precision import passes_in, pick_device
from nullbooth.statistics.trajectories import write_trajectory
from nullbooth.storage.progress import log_to, reporter


def main(out: str, prompts: list[str], sampler: dict, seed: int, identity: dict, config: dict) -> None:
    device = pick_device(config["device"])
    pipeline = loading.load_pipeline(loading.ModelSource.of(config), device, config["offload"])
    schedulers.set_sampler(pipeline, sampler["scheduler"], sampler["options"])
    with passes_in(device, config["precision"], loading.denoiser_of(pipeline).dtype):
        write_trajectory(
            out,
            pipeline,
            prompts,
            identity,
            steps=sampler["steps"],
            guidance=sampler["guidance"],
            seed=seed,
            batch=config["protect"]["batch"],
            resolution=config["resolution"],
            arguments=sampler["arguments"],
            negatives=config["protect"]["negatives"],  # part of the identity
            progress=reporter("protected prompts"),
        )


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(snakemake.output[0], **snakemake.params, config=snakemake.config)
