"""Config with defaults, identities that decide what is stale, and helpers for the rules."""

import re
import sys
from math import ceil
from pathlib import Path

import yaml

sys.path.insert(0, workflow.basedir)

from nullbooth.identity import digest, file_digest, model_identity, read_prompts
from nullbooth.images import captions, list_images
from nullbooth.rivals import WITH_CLASS_IMAGES
from nullbooth.settings import SettingsError, complete, fill_prompt, subject_words, sweep_points

with open(Path(workflow.basedir) / "config" / "schema.yaml") as file:
    SCHEMA = yaml.safe_load(file)
try:
    config = complete(config, SCHEMA)
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
    ENCODERS = {
        name: model_identity(path, key=f"evaluate.{name}", index="config.json")
        for name, path in config["evaluate"].items()
        if name != "lpips"
    }
    if lpips := config["evaluate"]["lpips"]:
        if not Path(lpips).is_file():
            raise SettingsError(f"evaluate.lpips: {lpips!r} is no file; leave it null to do without")
        ENCODERS["lpips"] = file_digest(Path(lpips))
    for entry in config["concepts"]:
        for key in filter(entry.get, ("images", "holdout")):
            folder = list_images(entry[key])[0].parent  # captions beside the photographs count too
            entry[f"{key}_digest"] = digest({p.name: file_digest(p) for p in folder.iterdir() if p.is_file()})
        said = captions(list_images(entry["images"]), entry["prompt"])
        entry["class_prompts"] = sorted({*said, entry["prompt"]})
        for text in [*said, *config["validate"]["prompts"], *sum(PROMPTS.values(), [])]:
            fill_prompt(text, subject_words(entry))  # refused now, not by a job in an hour
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
SHARDS = [f"{i:02d}" for i in range(min(config["protect"]["shards"], len(PROTECTED)))]
STEPS = [f"{i:02d}" for i in range(config["sampler"]["steps"])]
RUNS = [f"{c}/{m}/{seed}" for c in CONCEPTS for m in LEARNED for seed in config["seeds"]]
PROTECTING = any(method["method"] == "nullbooth" for method in LEARNED.values())  # else no statistics are needed
COMPARED_RUNS = [f"{c}/{m}/{seed}" for c in COMPARED for m in POINTS for seed in config["comparison"]["seeds"]]
# Pictures that the base model draws: of a concept, and of what serves all of them; with the comparison's sampler too.
PARTS = [*CONCEPTS, "unrelated"]
FEWER_STEPS = "@" + str(config["comparison"]["steps"])

# Prompts that are not protected have moments too, to measure what adapters change for them.
HELDOUT = PROMPTS["unrelated"]

# What the statistics depend on, and nothing else; every store carries it and every reader checks it.
IDENTITY = {
    "model": MODEL,
    "prompts": digest(PROTECTED),
    "sampler": digest([config["sampler"], config["protect"]["seed"]]),
    "projections": digest(config["protect"]["projections"]),
}
HELDOUT_IDENTITY = {**IDENTITY, "prompts": digest(HELDOUT)}
SAMPLING = {"precision": config["precision"], **{key: config["sample"][key] for key in ("per_prompt", "seed")}}

# Snakemake counts GPUs only if told: without a limit, all GPU jobs of one machine would start at once.
GPUS = len(list(Path("/dev").glob("nvidia[0-9]*")))
if GPUS and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", GPUS)
SMALL_PICTURES = (config["resolution"] or 64) < 256  # pages enlarge them pixel by pixel


wildcard_constraints:
    shard="|".join(SHARDS),
    step="|".join(STEPS),
    concept="|".join(CONCEPTS),
    part="|".join([*PARTS, *(part + FEWER_STEPS for part in PARTS)]),
    method="|".join(map(re.escape, METHODS)),
    seed=r"\d+",


def protected_shard(wildcards):
    return PROTECTED[int(wildcards.shard) :: len(SHARDS)]


def is_nullbooth(wildcards):
    return METHODS[wildcards.method]["method"] == "nullbooth"


def method_settings(wildcards):
    """Settings of one method: the common training settings, overridden by its own."""
    method = METHODS[wildcards.method]
    return {
        "train": {
            **config["train"],
            **method["train"],
            "seed": int(wildcards.seed),
            "precision": config["precision"],
        },
        **{key: method[key] for key in ("method", "scope", "rank", "alpha")},
        "rule": (method["rule"] or config["protect"]["rule"]) if is_nullbooth(wildcards) else None,
    }


def method_identity(wildcards):
    """What an adapter depends on besides settings and photographs: rivals but one know nothing of protected prompts."""
    keeps = is_nullbooth(wildcards) or METHODS[wildcards.method]["method"] == "corda"
    return IDENTITY if keeps else {key: IDENTITY[key] for key in ("model", "projections")}


def concept_settings(wildcards):
    return CONCEPTS[wildcards.concept]


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
    return [f"<results>/images/base/{part}{suffix}" for part in (wildcards.concept, "unrelated")]


def step_projectors(wildcards):
    """The projectors that a method's scope reads; step 00 also holds what does not depend on the timestep."""
    if not is_nullbooth(wildcards):
        return []
    pooled = METHODS[wildcards.method]["scope"] == "pooled"
    return collect("<results>/projectors/{step}.zarr", step=["pooled"] if pooled else STEPS)


def calibration(wildcards):
    """The protected trajectories, for the rival that looks at them before it learns."""
    corda = METHODS[wildcards.method]["method"] == "corda"
    return collect("<results>/trajectories/{shard}.zarr", shard=SHARDS) if corda else []


def class_images(wildcards):
    """Pictures of the class by the base model, for rivals that train on them."""
    wanted = METHODS[wildcards.method]["method"] in WITH_CLASS_IMAGES
    return f"<results>/images/class/{wildcards.concept}" if wanted else []


def grown(megabytes):
    """Memory of a job: the estimate, doubled at each new attempt."""
    return lambda wildcards, attempt: megabytes * 2 ** (attempt - 1)
