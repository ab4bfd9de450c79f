"""Rule adapter: learn a concept from its photographs, within the free directions or as a rival does."""

from pathlib import Path

import torch
import yaml
from diffusers import DDPMScheduler

from nullbooth import models
from nullbooth.adapter import Adapter, AdapterInfo, write_adapter
from nullbooth.files import write_text
from nullbooth.identity import digest
from nullbooth.images import captions, list_images, load_image, read_drawn
from nullbooth.progress import log_to
from nullbooth.rivals import FineTune
from nullbooth.sampling import sample
from nullbooth.settings import fill_prompt, subject_words
from nullbooth.sites import find_sites
from nullbooth.statistics import free_share, in_order, protected_passes, site_projectors
from nullbooth.training import TrainData, TrainSettings, is_flow, train
from nullbooth.trajectories import first_call

Tensors = dict[str, torch.Tensor]


@torch.no_grad()
def encode(pipeline, paths: list[Path], size: int, flip: bool = False) -> torch.Tensor:
    """Latents of pictures, and behind them of their mirror images."""
    vae = pipeline.vae
    x = torch.stack([load_image(path, size) for path in paths])
    x = torch.cat((x, x.flip(-1))) if flip else x
    found = [vae.encode(image[None].to(models.device_of(pipeline), vae.dtype)) for image in x]
    latents = torch.cat([f.latent_dist.mode() if hasattr(f, "latent_dist") else f.latent for f in found]).float().cpu()
    shift = vae.config.get("shift_factor") or 0
    return models.packed(pipeline, (latents - shift) * vae.config.scaling_factor)


def conditions(pipeline, prompts: list[str], size: int, arguments: dict) -> tuple[Tensors, Tensors, float]:
    """What the denoiser is given for each prompt, one row a prompt, without guidance; what it is given for all of them;
    and its timestep for 1 of the scheduler's."""
    distinct = list(dict.fromkeys(prompts))
    given = first_call(pipeline, distinct, guidance=1.0, seed=0, resolution=size, arguments=arguments)
    rows = [distinct.index(prompt) for prompt in prompts]
    unit = given.timesteps[0] / float(pipeline.scheduler.timesteps[0])
    return {key: value[0][rows] for key, value in given.conditions.items()}, given.constants, unit


def training_data(
    pipeline,
    images: str,
    concept: dict,
    method: str,
    class_images: str | None,
    model: str,
    size: int,
    arguments: dict,
    flip: bool,
) -> TrainData:
    """Latents of the photographs, what the denoiser is given for their captions, and what the method's prior needs."""
    paths = list_images(images)
    words = subject_words(concept)
    said = captions(paths, concept["prompt"]) * (1 + flip)
    texts = [fill_prompt(text, words) for text in said]
    for text in dict.fromkeys(texts):
        print(f"caption: {text}")
    prior, as_class = None, {}
    if class_images:
        folder = Path(class_images)
        drawn = read_drawn(folder, {"model": model})["images"]
        latents = encode(pipeline, [folder / entry["file"] for entry in drawn], size)
        prior = TrainData(latents, conditions(pipeline, [entry["prompt"] for entry in drawn], size, arguments)[0])
        print(f"{len(drawn)} pictures of the class")
    if method == "prior-prediction":
        named = [fill_prompt(text, {**words, "subject": concept["class"]}) for text in said]
        as_class = conditions(pipeline, named, size, arguments)[0]
    given, constants, unit = conditions(
        pipeline, [*texts, ""], size, arguments
    )  # the last one for captions that are dropped
    return TrainData(
        latents=encode(pipeline, paths, size, flip),
        conditions={key: value[:-1] for key, value in given.items()},
        unconditional={key: value[-1:] for key, value in given.items()},
        prior=prior,
        class_conditions=as_class,
        constants=constants,
        unit=unit,
    )


def protected_adapter(
    denoiser, projectors: list[str], wanted: list[str], method: dict, identity: dict
) -> tuple[Adapter, list[float]]:
    """An adapter in the null space of the protected features, and its cached timesteps."""
    [(rule, value)] = method["rule"].items()
    stacks, timesteps = site_projectors(projectors, identity, rule, value)
    sites = in_order(find_sites(denoiser, wanted), stacks)
    for kind in ("to_q", "to_k", "to_v", "to_out.0"):
        shares = [share for name, share in free_share(stacks).items() if name.endswith(kind)]
        if shares:
            print(f"free directions of {kind}: {sum(shares) / len(shares):.0%}")
    return Adapter(sites, stacks, timesteps, method["scope"], method["rank"], method["alpha"]), timesteps


def main(
    out: dict,
    projectors: list[str],
    trajectories: list[str],
    class_images: str | None,
    concept: dict,
    method: dict,
    sampler: dict,
    resolution: int | None,
    sites: list[str],
    identity: dict,
    config: dict,
) -> None:
    device = models.pick_device(config["device"])
    options = dict(method["train"])
    flip = options.pop("flip")
    settings = TrainSettings(**options)

    # Offloaded until there are latents and conditions: the denoiser does not run for them, and training needs it alone.
    keys = ("revision", "variant", "weights")
    pipeline = models.load_pipeline(config["model"], device, **{key: config[key] for key in keys}, offload=True)
    models.set_sampler(pipeline, sampler["scheduler"], sampler["options"])
    size = resolution or models.resolution_of(pipeline)
    [images] = [entry["images"] for entry in config["concepts"] if entry["name"] == concept["name"]]
    said = sampler["arguments"]
    data = training_data(pipeline, images, concept, method["method"], class_images, identity["model"], size, said, flip)
    denoiser = models.denoiser_alone(pipeline, device, keep=config["validate"]["every"] > 0)
    torch.manual_seed(settings.seed)
    if ours := method["method"] == "nullbooth":
        adapter, timesteps = protected_adapter(denoiser, projectors, sites, method, identity)
    else:
        found, timesteps = find_sites(denoiser, tuple(sites)), [0.0]
        passes = protected_passes(denoiser, trajectories, identity, every=10)
        adapter = FineTune(denoiser, found, method["method"], method["rank"], method["alpha"], passes)
    adapter = adapter.to(device)
    scheduler = pipeline.scheduler
    if not is_flow(scheduler):
        scheduler = DDPMScheduler.from_config(scheduler.config)

    def pictures(_step: int) -> torch.Tensor:
        prompts = [fill_prompt(prompt, subject_words(concept)) for prompt in config["validate"]["prompts"]]
        steps, guidance = min(20, config["sampler"]["steps"]), config["sampler"]["guidance"]
        seeds = list(range(len(prompts)))
        how = {"steps": steps, "guidance": guidance, "resolution": size, "arguments": said}
        models.move_beside(pipeline, device)
        drawn = sample(pipeline, prompts, seeds, precision=settings.precision, **how)
        models.move_beside(pipeline, "cpu")
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
        validate_every=config["validate"]["every"],
    )
    info = AdapterInfo(
        scope=method["scope"] if ours else method["method"],
        rank=method["rank"],
        timesteps=tuple(timesteps),
        denoiser=type(denoiser).__name__,
        model=identity["model"],
        prompt=fill_prompt(concept["prompt"], subject_words(concept)),
        rule=", ".join(f"{rule}: {value}" for rule, value in (method["rule"] or {}).items()),
    )
    write_adapter(path, adapter.tensors(), info)
    write_text(out["config"], yaml.safe_dump({**recipe, "sampler": sampler}, sort_keys=False))


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(
        dict(snakemake.output.items()),
        snakemake.input.get("projectors", []),
        snakemake.input.get("trajectories", []),
        snakemake.input.get("class_images"),
        **snakemake.params,
        config=snakemake.config,
    )
