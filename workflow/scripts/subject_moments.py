"""Rule subject_moments: collect second moments of a learned subject's prompts with the model that has learned it, at
all timesteps, to protect it from later subjects."""

import torch

from nullbooth.adapters.loaded import load_tuned
from nullbooth.models.loading import denoiser_of, device_of
from nullbooth.models.precision import passes_in
from nullbooth.statistics.collect import store_subject_moments
from nullbooth.storage.progress import log_to, reporter


def main(out: str, adapters: list[str], prompts: list[str], identity: dict, params: dict, config: dict) -> None:
    sampler, sites = params["sampler"], params["sites"]
    pipeline = load_tuned(config, sampler, adapters, identity["model"])
    options = {key: sampler[key] for key in ("guidance", "arguments")}
    options |= {"seed": params["seed"], "batch": config["protect"]["batch"], "resolution": config["resolution"]}
    options["progress"] = reporter("prompts of the subject")
    with torch.no_grad(), passes_in(device_of(pipeline), config["precision"], denoiser_of(pipeline).dtype):
        store_subject_moments(out, pipeline, prompts, sampler["steps"], sites, identity, **options)


if __name__ == "__main__":
    log_to(snakemake.log[0])
    given, params = snakemake.input, dict(snakemake.params)
    adapters = [*given.earlier, given.adapter]
    main(snakemake.output[0], adapters, params.pop("prompts"), params.pop("identity"), params, snakemake.config)
