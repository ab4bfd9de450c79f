"""The job that trains a concept on its photographs, in the free directions or by a rival method."""

import inspect
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState

from nullbooth import load_adapter
from nullbooth.adapters.file import AdapterInfo, write_adapter
from nullbooth.adapters.word import install
from nullbooth.errors import ProjectorError
from nullbooth.inputs.methods import is_ours, prior_of
from nullbooth.inputs.settings import fill_prompt, subject_words
from nullbooth.learning.adapter import Adapter
from nullbooth.learning.data import Drawn, training_data
from nullbooth.learning.inversion import Word
from nullbooth.learning.replay import Replay
from nullbooth.learning.rivals import Options, build
from nullbooth.learning.trainable import Trainable
from nullbooth.learning.training import TrainData, TrainSettings, train
from nullbooth.models import devices, loading, schedulers
from nullbooth.models.precision import pick_device
from nullbooth.models.sampling import sample
from nullbooth.models.sites import find_sites
from nullbooth.statistics import pack_file, packs
from nullbooth.statistics.collect import protected_passes
from nullbooth.statistics.site_projectors import free_share, in_order, short_of, site_projectors
from nullbooth.storage.atomic import write_text
from nullbooth.storage.digests import digest
from nullbooth.storage.pictures import read_drawn

# Settings of textual inversion, which trains the vectors of the identifier alone.
PLAIN: dict[str, Any] = {
    "optimizer": "adamw",
    "schedule": "constant",
    "warmup": 0,
    "weight_decay": 0.0,
    "ema": None,
    "timesteps": "all",
}


def drawn_pictures(folder: str | None, model: str) -> Drawn:
    """Return pictures of the class drawn by the base model, with their prompts; none without a folder."""
    if not folder:
        return []
    found = read_drawn(Path(folder), {"model": model})["images"]
    return [(Path(folder) / entry["file"], entry["prompt"]) for entry in found]


def guided_of(method: dict, config: dict) -> bool | None:
    """Return whether the protected prompts of a method were sampled with guidance; None if its pack does not say."""
    if pack := config["protect"]["pack"]:
        return packs.guided(packs.read_about(packs.locate(pack, packs.scope_of(method))[0]))
    return config["sampler"]["guidance"] > 1


def protected_adapter(
    denoiser: torch.nn.Module,
    projectors: list[str],
    pack: str | None,
    wanted: list[str],
    method: dict,
    identity: dict,
) -> tuple[Adapter, list[float]]:
    """Return an adapter in the null space of the protected features, and its cached timesteps.

    Raises ProjectorError if a site has no free direction.
    """
    if pack is None:
        [(rule, value)] = method["rule"].items()
        stacks, timesteps = site_projectors(projectors, identity, rule, value)
    else:
        stacks, timesteps = pack_file.read(packs.locate(pack, packs.scope_of(method))[0])
    sites = in_order(find_sites(denoiser, wanted), stacks)
    if method["rank"] != "full" and (short := short_of(stacks, method["rank"])):
        print(f"{len(short)} of {len(stacks)} layers have fewer free directions than the rank, {method['rank']}")
        if len(short) == len(stacks):
            print("no layer has enough free directions: raise the value of protect.rule or add to protect.sites")
    for kind in ("to_q", "to_k", "to_v", "to_out.0"):
        shares = [share for name, share in free_share(stacks).items() if name.endswith(kind)]
        if shares:
            print(f"free directions of {kind}: {sum(shares) / len(shares):.0%}")
    return Adapter(sites, stacks, timesteps, method["scope"], method["rank"], method["alpha"]), timesteps


def build_on(pipeline: Any, earlier: list[str], model: str) -> None:
    """Load the adapters of earlier subjects into a pipeline, and merge those that do not depend on the timestep."""
    for path in earlier:
        adapter = load_adapter(pipeline, path, model=model)
        if not any(map(adapter.varies, adapter.original)):
            adapter.merge()


def learn_word(
    pipeline: Any,
    identifier: str,
    data: list[TrainData],
    scheduler: Any,
    settings: TrainSettings,
    options: dict,
    path: Path,
    recipe: dict,
) -> dict[str, torch.Tensor]:
    """Train vectors for the identifier, install them in the pipeline's text encoders, and return them for saving."""
    word, denoiser = Word(pipeline, identifier), loading.denoiser_of(pipeline).requires_grad_(False)
    brief = replace(settings, steps=options["inversion_steps"], learning_rate=options["inversion_rate"], **PLAIN)
    train(denoiser, word, data, scheduler, brief, path.parent / "inversion", run=digest(recipe), trackers=())
    install(pipeline, identifier, dict(word.requires_grad_(False).vectors))
    return word.tensors()


def learn(
    out: dict,
    projectors: list[str],
    trajectories: list[str],
    class_images: str | None,
    earlier: list[str],
    concept: dict,
    method: dict,
    sampler: dict,
    resolution: int | None,
    sites: list[str],
    identity: dict,
    config: dict,
) -> None:
    """Train a concept, in one process or in each of those that share the training; write adapter and config.

    Raises ProjectorError, naming the concept and the subjects before it, if they leave no free direction at a site.
    """
    device = pick_device(config["device"])
    own = {field.name for field in fields(TrainSettings)}
    settings = TrainSettings(**{key: value for key, value in method["train"].items() if key in own})

    # Offload until latents and conditions are computed: these do not need the denoiser, training needs nothing else.
    inverting = method["train"]["inversion_steps"] > 0
    source = replace(loading.ModelSource.of(config), attention=None)  # not every back end has gradients
    pipeline = loading.load_pipeline(source, device, offload=not inverting)
    # The model's own schedule determines the objective, not the sampler used for drawing.
    scheduler = schedulers.training_scheduler(pipeline.scheduler, sampler["options"])
    schedulers.set_sampler(pipeline, sampler["scheduler"], sampler["options"])
    build_on(pipeline, earlier, identity["model"])
    size, said = resolution or loading.resolution_of(pipeline), sampler["arguments"]
    [images] = [entry["images"] for entry in config["concepts"] if entry["name"] == concept["name"]]
    how: dict[str, Any] = {
        "arguments": said,
        "guidance": config["sampler"]["guidance"],
        **{key: method["train"][key] for key in ("flip", "buckets")},
    }
    prior: dict[str, Any] = {"drawn": drawn_pictures(class_images, identity["model"])}
    prior["as_class"] = prior_of(method) == "prediction"
    recipe, path = {"concept": concept, "method": method, "identity": identity}, Path(out["adapter"])
    word = {}
    if inverting:
        data = training_data(pipeline, images, concept, size, **how, live=True)
        word = learn_word(pipeline, concept["identifier"], data, scheduler, settings, method["train"], path, recipe)
    data = training_data(pipeline, images, concept, size, **how, **prior)
    if prior_of(method) == "protected":
        replay = Replay(trajectories, identity)
        data = [replace(part, replay=replay) for part in data]
    denoiser = loading.denoiser_alone(pipeline, device, keep=config["validate"]["every"] > 0)
    torch.manual_seed(settings.seed)
    adapter: Trainable
    if ours := is_ours(method):
        try:
            pack = config["protect"]["pack"]
            adapter, timesteps = protected_adapter(denoiser, projectors, pack, sites, method, identity)
        except ProjectorError as error:
            if not earlier:
                raise
            raise ProjectorError(
                f"{concept['name']}: the protected prompts and the subjects before it "
                f"({', '.join(run.split('/')[0] for run in identity['earlier'])}) leave no direction free: {error}"
            ) from error
    else:
        found, timesteps = find_sites(denoiser, tuple(sites)), [0.0]
        passes = protected_passes(denoiser, trajectories, identity, every=10)
        adapter = build(method["method"], denoiser, found, Options(method["rank"], method["alpha"], passes))
    adapter = adapter.to(device)

    def pictures(_step: int) -> torch.Tensor:
        prompts = [fill_prompt(prompt, subject_words(concept)) for prompt in config["validate"]["prompts"]]
        steps, guidance = min(20, config["sampler"]["steps"]), config["sampler"]["guidance"]
        seeds = list(range(len(prompts)))
        how = {"steps": steps, "guidance": guidance, "resolution": size, "arguments": said}
        loading.move_beside(pipeline, device)
        drawn = sample(pipeline, prompts, seeds, precision=settings.precision, **how)
        loading.move_beside(pipeline, "cpu")
        return drawn / 2 + 0.5

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
        trackers=config["trackers"],
    )
    if not PartialState().is_main_process:
        return
    info = AdapterInfo(
        scope=method["scope"] if ours else method["method"],
        rank=method["rank"],
        timesteps=tuple(timesteps),
        denoiser=type(denoiser).__name__,
        model=identity["model"],
        prompt=fill_prompt(concept["prompt"], subject_words(concept)),
        rule=", ".join(f"{rule}: {value}" for rule, value in (method["rule"] or {}).items()),
        identifier=concept["identifier"] if word else "",
        guided=guided_of(method, config) if ours else None,
    )
    write_adapter(path, adapter.tensors() | word, info)
    write_text(out["config"], yaml.safe_dump({**recipe, "sampler": sampler}, sort_keys=False))


def learn_concept(*given: Any, **named: Any) -> None:
    """Run `learn` in as many processes as the method has GPUs."""
    bound = inspect.signature(learn).bind(*given, **named)
    gpus, device = bound.arguments["method"]["train"]["gpus"], bound.arguments["config"]["device"]
    if gpus > 1:
        devices.side_by_side(learn, bound.args, gpus, device)
    else:
        learn(*bound.args)
