"""Config with defaults, identities that decide what is stale, and helpers for the rules."""

import os
import re
import sys
from math import ceil, isqrt
from pathlib import Path

import yaml

sys.path.insert(0, workflow.basedir)

from nullbooth import devices, headers
from nullbooth.files import writable
from nullbooth.identity import digest, file_digest, model_folder, model_identity, read_prompts
from nullbooth.images import captions, list_images
from nullbooth.plan import work_of
from nullbooth.preflight import check_inputs
from nullbooth.settings import (
    WITH_CLASS_IMAGES,
    SettingsError,
    complete,
    fill_prompt,
    is_lora,
    subject_words,
    sweep_points,
)
from nullbooth.shards import choose_shards, shard_identity

with open(Path(workflow.basedir) / "config" / "schema.yaml") as file:
    SCHEMA = yaml.safe_load(file)
try:
    config = complete(config, SCHEMA)
    for warning in check_inputs(config) if workflow.is_main_process else []:  # jobs need not look again
        print(f"config: {warning}", file=sys.stderr)
    PROTECTED = read_prompts(config["protect"]["prompts"])
    PROMPTS = {group: read_prompts(path) for group, path in config["sample"]["prompts"].items()}
    if known := sorted(set(PROMPTS["unrelated"]) & set(PROTECTED)):
        raise SettingsError(
            f"sample.prompts.unrelated: {known[0]!r} is also protected ({len(known)} such prompts); drift is measured "
            f"on prompts that are not: take them out of it, or out of {config['protect']['prompts']}"
        )
    # By their hashes, so that another protected prompt leaves the choice as it is, mostly.
    PROMPTS["protected"] = sorted(sorted(PROTECTED, key=digest)[: config["sample"]["protected"]])
    MODEL = model_identity(config["model"], config["revision"])
    config["revision"] = MODEL.partition("@")[2] or None  # the commit: jobs load what was looked up here
    MODEL += f":{config['variant']}" if config["variant"] else ""
    ENCODERS = {
        name: model_identity(path, key=f"evaluate.{name}", index="config.json")
        for name, path in config["evaluate"].items()
        if name != "lpips"
    }
    if lpips := config["evaluate"]["lpips"]:
        ENCODERS["lpips"] = file_digest(Path(lpips))
    for entry in config["concepts"]:
        for key in filter(entry.get, ("images", "holdout")):
            folder = list_images(entry[key])[0].parent  # captions beside the photographs count too
            entry[f"{key}_digest"] = digest({p.name: file_digest(p) for p in folder.iterdir() if p.is_file()})
        said = captions(list_images(entry["images"]), entry["prompt"])
        entry["class_prompts"] = sorted({*said, entry["prompt"]})
    CONCEPTS = {entry["name"]: entry for entry in config["concepts"]}
    COMPARED = config["comparison"]["concepts"] or list(CONCEPTS)[:1]
    if unknown := [name for name in COMPARED if name not in CONCEPTS]:
        raise SettingsError(f"comparison.concepts: {unknown[0]!r} is none of concepts: {', '.join(CONCEPTS)}")
    curves = [entry["name"] for entry in config["comparison"]["methods"]]
    REFERENCE = config["comparison"]["reference"] or next(iter(curves), None)
    if curves and REFERENCE not in curves:
        raise SettingsError(f"comparison.reference: {REFERENCE!r} is none of its methods: {', '.join(curves)}")
except (SettingsError, OSError, ValueError) as error:
    sys.exit(f"config: {error}")

LEARNED = {point["name"]: point for entry in config["methods"] for point in sweep_points(entry)}
POINTS = {point["name"]: point for entry in config["comparison"]["methods"] for point in sweep_points(entry)}
METHODS = {**LEARNED, **POINTS}
STEPS = [f"{i:02d}" for i in range(config["sampler"]["steps"])]
RUNS = [f"{c}/{m}/{seed}" for c in CONCEPTS for m in LEARNED for seed in config["seeds"]]
PROTECTING = any(method["method"] == "nullbooth" for method in LEARNED.values())  # else no statistics are needed
COMPARED_RUNS = [f"{c}/{m}/{seed}" for c in COMPARED for m in POINTS for seed in config["comparison"]["seeds"]]
# A LoRA file has one low-rank change for all timesteps.
EXPORTABLE = [run for run in RUNS if is_lora(METHODS[run.split("/")[1]])]
# Pictures that the base model draws: of a concept, and of what serves all of them; with the comparison's sampler too.
PARTS = [*CONCEPTS, "unrelated"]
FEWER_STEPS = "@" + str(config["comparison"]["steps"])

# What the statistics depend on, and nothing else; every store carries it and every reader checks it.
IDENTITY = {
    "model": MODEL,
    "prompts": digest(PROTECTED),
    "sampler": digest([config["sampler"], config["protect"]["seed"], config["resolution"]]),
    "sites": digest(config["protect"]["sites"]),
    "precision": config["precision"],
}

# What takes long is kept under a name that says what it was made from, so that nothing is computed twice and nothing
# lost: `shards` has what is known of some protected prompts, `statistics` their sums, `runs` adapters and what they draw.
KEPT = Path(config["results"]) / "kept"
STATISTICS = KEPT / "statistics" / digest(IDENTITY)
SUMS = STATISTICS / "covariances/00.zarr"
try:
    SHARDS = choose_shards(KEPT / "shards", SUMS, IDENTITY, PROTECTED, config["protect"]["shard_size"])
except ValueError as error:
    sys.exit(str(error))

# Prompts that are not protected have moments too, to measure what adapters change for them.
HELDOUT_IDENTITY = shard_identity(IDENTITY, PROMPTS["unrelated"])
HELDOUT = digest(HELDOUT_IDENTITY)
SHARD_PROMPTS = {**SHARDS, HELDOUT: PROMPTS["unrelated"]}
SAMPLING = {key: config[key] for key in ("precision", "resolution")}
SAMPLING |= {key: config["sample"][key] for key in ("per_prompt", "seed")}


def recipe(concept, method, seed):
    """Everything that an adapter is made from; photographs by their content, wherever they lie."""
    chosen, keeps = METHODS[method], METHODS[method]["method"] in ("nullbooth", "corda")
    train = {**config["train"], **chosen["train"], "seed": int(seed), "precision": config["precision"]}
    freed_by = (chosen["rule"] or config["protect"]["rule"]) if chosen["method"] == "nullbooth" else None
    learned = ("name", "identifier", "class", "prompt", "images_digest", "class_prompts")
    return {
        "concept": {key: CONCEPTS[concept][key] for key in learned},
        "method": {
            "train": train,
            **{key: chosen[key] for key in ("method", "scope", "rank", "alpha")},
            "rule": freed_by,
        },
        "sampler": {key: config["sampler"][key] for key in ("scheduler", "options", "arguments")},
        "resolution": config["resolution"],
        "sites": config["protect"]["sites"],
        # Rivals but one know nothing of protected prompts.
        "identity": IDENTITY if keeps else {key: IDENTITY[key] for key in ("model", "sites")},
    }


RECIPES = {run: recipe(*run.split("/")) for run in dict.fromkeys([*RUNS, *COMPARED_RUNS])}
KEYS = {run: digest(made_from) for run, made_from in RECIPES.items()}
DRAWN = KEPT / "drawn" / digest(MODEL)

STORES = {
    "trajectories": [str(KEPT / "shards" / shard / "trajectory.zarr") for shard in SHARDS],
    "moments": [str(KEPT / "shards" / shard / "moments" / f"{step}.zarr") for shard in SHARDS for step in STEPS],
    "sums": [
        str(STATISTICS / kind / f"{step}.zarr") for kind in ("covariances", "projectors") for step in [*STEPS, "pooled"]
    ],
}

# What a person looks for under a plain name is a link to what is kept: name, target, and the file that it stands for.
SHOWN = {
    "figures": (STATISTICS / "figures", "free_directions.csv"),
    **{f"runs/{run}": (KEPT / "runs" / run / key, "adapter.safetensors") for run, key in KEYS.items()},
    **{f"images/base/{part}": (DRAWN / part, "") for part in [*PARTS, *(part + FEWER_STEPS for part in PARTS)]},
    **{f"covariances/{step}.zarr": (STATISTICS / f"covariances/{step}.zarr", "") for step in [*STEPS, "pooled"]},
    **{f"projectors/{step}.zarr": (STATISTICS / f"projectors/{step}.zarr", "") for step in [*STEPS, "pooled"]},
    **{
        f"trajectories/{i:02d}.zarr": (KEPT / "shards" / shard / "trajectory.zarr", "")
        for i, shard in enumerate(SHARDS)
    },
}
for name, (target, _) in SHOWN.items():
    place = Path(config["results"]) / name
    if place.exists() and not place.is_symlink():
        sys.exit(
            f"config: results: {place} should be a link to {target}, but is something else, perhaps of an earlier "
            "version: move it away, or name another folder for results"
        )

# Snakemake counts GPUs only if told: without a limit, all GPU jobs of one machine would start at once.
GPUS = devices.count()
if GPUS and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", GPUS)

# What jobs ask for, if the model is on this machine; on a cluster they have GPUs, even where Snakemake has none.
MEMORY, SIDE = {}, 512
if folder := model_folder(config["model"], config["revision"]):
    try:
        shapes = headers.read(
            folder,
            config["protect"]["sites"],
            config["resolution"],
            config["sampler"]["arguments"].get("max_sequence_length"),
            config["variant"],
        )
    except (KeyError, TypeError, ValueError, OSError) as error:  # a config that leaves out what others say
        if workflow.is_main_process:
            print(
                f"config: model: {folder}: memory of jobs unknown ({error!r}), taken as for small ones", file=sys.stderr
            )
    else:
        work = work_of(config, len(PROTECTED), {group: len(found) for group, found in PROMPTS.items()}, METHODS)
        MEMORY = headers.memory(shapes, work, gpus=int(config["device"] != "cpu"))
        SIDE = isqrt(shapes.pixels)
SMALL_PICTURES = (config["resolution"] or SIDE) < 256  # pages enlarge them pixel by pixel


onstart:  # and not after hours, nor in a dry run
    if not writable(config["results"]):
        sys.exit(
            f"config: results: {config['results']} cannot be written to: name another folder, or make it writable"
        )


wildcard_constraints:
    shard="|".join(SHARD_PROMPTS),
    step="|".join(STEPS),
    concept="|".join(CONCEPTS),
    part="|".join([*PARTS, *(part + FEWER_STEPS for part in PARTS)]),
    method="|".join(map(re.escape, METHODS)),
    seed=r"\d+",
    key="|".join(sorted(set(KEYS.values()))),
    shown="|".join(map(re.escape, SHOWN)),


pathvars:
    results=str(config["results"]),
    kept=str(KEPT),
    statistics=str(STATISTICS),
    drawn=str(DRAWN),
    run="runs/{concept}/{method}/{seed}",


def shard_prompts(wildcards):
    return SHARD_PROMPTS[wildcards.shard]


def identity_of_shard(wildcards):
    return shard_identity(IDENTITY, SHARD_PROMPTS[wildcards.shard])


def made_from(key):
    """A function of wildcards that gives one part of what a run is made from."""
    return lambda wildcards: RECIPES[f"{wildcards.concept}/{wildcards.method}/{wildcards.seed}"][key]


def kept_runs(runs):
    """Runs with their keys, as they are kept."""
    return [f"{run}/{KEYS[run]}" for run in runs]


def photographs(wildcards):
    """What a run is measured against, by content."""
    concept = CONCEPTS[wildcards.concept]
    return {key: concept.get(key) for key in ("name", "identifier", "images_digest", "holdout_digest")}


def class_prompts(wildcards):
    """The captions of the photographs with the class in place of the subject."""
    concept = CONCEPTS[wildcards.concept]
    words = {"subject": concept["class"], "class": concept["class"]}
    return {"class": [fill_prompt(prompt, words) for prompt in concept["class_prompts"]]}


def class_sampling(wildcards):
    """So many pictures per prompt that they suffice, from noise that no evaluated picture starts from."""
    per_prompt = ceil(config["sample"]["class_images"] / len(CONCEPTS[wildcards.concept]["class_prompts"]))
    return {**SAMPLING, "per_prompt": per_prompt, "seed": SAMPLING["seed"] + 1_000_000}


def drawn_sampling(wildcards):
    """How pictures are drawn; for the gallery, also with maps of where the subject's words act."""
    concept = CONCEPTS.get(wildcards.get("concept") or wildcards.part)
    if concept is None or wildcards.get("method") in POINTS:
        return SAMPLING
    return {**SAMPLING, "attention": subject_words(concept)["subject"].split()}


def drawn_sampler(wildcards):
    """The sampler of a picture; those of the comparison take fewer steps."""
    fewer = wildcards.get("method") in POINTS or FEWER_STEPS in wildcards.get("part", "")
    return {**config["sampler"], "steps": config["comparison"]["steps"]} if fewer else config["sampler"]


def run_prompts(wildcards):
    """Prompts of one concept by group, with {subject} and {class} filled in."""
    concept = CONCEPTS[wildcards.get("concept") or wildcards.part.removesuffix(FEWER_STEPS)]
    words = subject_words(concept)
    return {group: [fill_prompt(prompt, words) for prompt in prompts] for group, prompts in PROMPTS.items()}


def base_prompts(wildcards):
    """What the base model draws: a concept's own groups, or the prompts that serve every concept."""
    common = ("unrelated", "protected")
    if wildcards.part.removesuffix(FEWER_STEPS) == "unrelated":
        return {group: PROMPTS[group] for group in common}
    return {group: prompts for group, prompts in run_prompts(wildcards).items() if group not in common}


def base_parts(wildcards):
    """The base model's pictures that those of a run are paired with."""
    suffix = FEWER_STEPS if wildcards.method in POINTS else ""
    return [f"<drawn>/{part}{suffix}" for part in (wildcards.concept, "unrelated")]


def projectors_of(method):
    """The projectors that a method's scope reads; step 00 also holds what does not depend on the timestep."""
    if method["method"] != "nullbooth":
        return []
    return collect("<statistics>/projectors/{step}.zarr", step=["pooled"] if method["scope"] == "pooled" else STEPS)


def step_projectors(wildcards):
    return projectors_of(METHODS[wildcards.method])


def statistics_in_use(wildcards):
    """The sums and projectors that the gallery rests on."""
    needed = {path for method in LEARNED.values() for path in projectors_of(method)}
    return sorted(needed) + collect("<statistics>/covariances/{step}.zarr", step=STEPS if needed else [])


def calibration(wildcards):
    """The protected trajectories, for the rival that looks at them before it learns."""
    corda = METHODS[wildcards.method]["method"] == "corda"
    return collect("<kept>/shards/{shard}/trajectory.zarr", shard=list(SHARDS)) if corda else []


def class_images(wildcards):
    """Pictures of the class by the base model, for rivals that train on them."""
    wanted = METHODS[wildcards.method]["method"] in WITH_CLASS_IMAGES
    return f"<drawn>/class/{wildcards.concept}" if wanted else []


def grown(megabytes, rule=None):
    """Memory of a job: the estimate, if the model is here, and at least so much; doubled at each new attempt."""
    return lambda wildcards, attempt: max(megabytes, MEMORY.get(rule, 0)) * 2 ** (attempt - 1)
