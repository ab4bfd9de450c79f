"""Rule adapter: learn a concept from its photographs, within the free directions."""

from pathlib import Path

import torch
import yaml
from diffusers import DDPMScheduler

from nullbooth import models
from nullbooth.adapter import Adapter, AdapterInfo
from nullbooth.identity import digest
from nullbooth.images import captions, list_images, load_image
from nullbooth.progress import log_to
from nullbooth.sampling import sample
from nullbooth.settings import fill_prompt, subject_words
from nullbooth.sites import find_sites
from nullbooth.statistics import free_share, in_order, site_projectors
from nullbooth.training import TrainData, TrainSettings, is_flow, train
from nullbooth.trajectories import record


@torch.no_grad()
def cached_inputs(pipeline, concept: dict, resolution: int | None, flip: bool, dropout: bool) -> TrainData:
    """Latents of the photographs (and of their mirror images), and what the denoiser is given for their captions."""
    vae = pipeline.vae
    size = resolution or pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    paths = list_images(concept["images"])
    texts = [fill_prompt(text, subject_words(concept)) for text in captions(paths, concept["prompt"])]
    x = torch.stack([load_image(path, size) for path in paths])
    if flip:
        x, texts = torch.cat((x, x.flip(-1))), texts * 2
    latents = [vae.encode(image[None].to(vae.device, vae.dtype)).latent_dist.mode() for image in x]
    latents = (torch.cat(latents).float().cpu() - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    for text in dict.fromkeys(texts):
        print(f"caption: {text}")

    def conditions(prompts: list[str]) -> dict[str, torch.Tensor]:
        recorded = record(pipeline, prompts, steps=1, guidance=1.0, seed=0, batch=len(prompts))
        return {key: value[0] for key, value in recorded.conditions.items()}

    return TrainData(latents, conditions(texts), conditions([""]) if dropout else {})


def main(
    out: dict,
    projectors: list[str],
    concept: dict,
    method: dict,
    sampler: dict,
    resolution: int | None,
    validate: dict,
    identity: dict,
    config: dict,
) -> None:
    device = models.pick_device(config["device"])
    options = dict(method["train"])
    flip = options.pop("flip")
    settings = TrainSettings(**options)
    [(rule, value)] = method["rule"].items()
    stacks, timesteps = site_projectors(projectors, identity, rule, value)

    pipeline = models.load_pipeline(config["model"], device, config["revision"])
    models.set_sampler(pipeline, sampler["scheduler"], sampler["options"])
    denoiser = models.denoiser_of(pipeline).requires_grad_(False)
    sites = in_order(find_sites(denoiser), stacks)
    for kind in ("to_q", "to_k", "to_v", "to_out.0"):
        shares = [share for name, share in free_share(stacks).items() if name.endswith(kind)]
        if shares:
            print(f"free directions of {kind}: {sum(shares) / len(shares):.0%}")
    data = cached_inputs(pipeline, concept, resolution, flip, settings.caption_dropout > 0)
    torch.manual_seed(settings.seed)
    adapter = Adapter(sites, stacks, timesteps, method["scope"], method["rank"], method["alpha"]).to(device)
    scheduler = pipeline.scheduler
    if not is_flow(scheduler):
        scheduler = DDPMScheduler.from_config(scheduler.config)

    def pictures(_step: int) -> torch.Tensor:
        prompts = [fill_prompt(prompt, subject_words(concept)) for prompt in validate["prompts"]]
        drawn = sample(
            pipeline, prompts, list(range(len(prompts))), steps=min(20, sampler["steps"]), guidance=sampler["guidance"]
        )
        return drawn / 2 + 0.5

    path = Path(out["adapter"])
    recipe = {"concept": concept, "method": method, "identity": identity}
    train(
        denoiser,
        adapter,
        data,
        scheduler,
        settings,
        path.parent,
        run=digest(recipe),
        validate=pictures,
        validate_every=validate["every"],
    )
    info = AdapterInfo(
        scope=method["scope"],
        rank=method["rank"],
        timesteps=tuple(timesteps),
        denoiser=type(denoiser).__name__,
        model=identity["model"],
        prompt=fill_prompt(concept["prompt"], subject_words(concept)),
        rule=f"{rule}: {value}",
    )
    adapter.save(path, info)
    Path(out["config"]).write_text(yaml.safe_dump({**recipe, "sampler": sampler}, sort_keys=False))


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(dict(snakemake.output.items()), snakemake.input.projectors, **snakemake.params, config=snakemake.config)
