"""Rule trajectory: sample the protected prompts of one shard and keep what the denoiser was given."""

from nullbooth import models, store
from nullbooth.progress import log_to, reporter
from nullbooth.trajectories import record, step_timesteps


def main(out: str, prompts: list[str], sampler: dict, seed: int, identity: dict, config: dict) -> None:
    device = models.pick_device(config["device"])
    pipeline = models.load_pipeline(config["model"], device, **{key: config[key] for key in models.OF_PIPELINE})
    models.set_sampler(pipeline, sampler["scheduler"], sampler["options"])
    with models.passes_in(device, config["precision"], models.denoiser_of(pipeline).dtype):
        trajectory = record(
            pipeline,
            prompts,
            steps=sampler["steps"],
            guidance=sampler["guidance"],
            seed=seed,
            batch=config["protect"]["batch"],
            resolution=config["resolution"],
            arguments=sampler["arguments"],
            progress=reporter("protected prompts"),
        )
    cached = step_timesteps(pipeline.scheduler, trajectory.timesteps, sampler["steps"])
    arrays = {"latents": trajectory.latents.numpy(), "timesteps": trajectory.timesteps, "cached": cached}
    for kind, found in (("condition", trajectory.conditions), ("constant", trajectory.constants)):
        arrays |= {f"{kind}:{name}": value.numpy() for name, value in found.items()}
    store.write(out, arrays, identity, chunk_rows={"latents": 1}, prompts=prompts, seed=seed)


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(snakemake.output[0], **snakemake.params, config=snakemake.config)
