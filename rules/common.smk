"""Config with defaults, identities that decide what is stale, and helpers for the rules."""

import sys
from pathlib import Path

import yaml

sys.path.insert(0, workflow.basedir)

from nullbooth.identity import digest, file_digest, model_identity, read_prompts
from nullbooth.images import captions, list_images
from nullbooth.settings import SettingsError, complete, fill_prompt, subject_words

with open(Path(workflow.basedir) / "config" / "schema.yaml") as file:
    SCHEMA = yaml.safe_load(file)
try:
    config = complete(config, SCHEMA)
    PROTECTED = read_prompts(config["protect"]["prompts"])
    PROMPTS = {group: read_prompts(path) for group, path in config["sample"]["prompts"].items()}
    MODEL = model_identity(config["model"], config["revision"])
    ENCODERS = {
        name: model_identity(path, key=f"evaluate.{name}", index="config.json")
        for name, path in config["evaluate"].items()
    }
    for entry in config["concepts"]:
        for key in filter(entry.get, ("images", "holdout")):
            folder = list_images(entry[key])[0].parent  # captions beside the photographs count too
            entry[f"{key}_digest"] = digest({p.name: file_digest(p) for p in folder.iterdir() if p.is_file()})
        said = captions(list_images(entry["images"]), entry["prompt"])
        for text in [*said, *config["validate"]["prompts"], *sum(PROMPTS.values(), [])]:
            fill_prompt(text, subject_words(entry))  # refused now, not by a job in an hour
except (SettingsError, OSError, ValueError) as error:
    sys.exit(f"config: {error}")

CONCEPTS = {entry["name"]: entry for entry in config["concepts"]}
METHODS = {entry["name"]: entry for entry in config["methods"]}
SHARDS = [f"{i:02d}" for i in range(min(config["protect"]["shards"], len(PROTECTED)))]
STEPS = [f"{i:02d}" for i in range(config["sampler"]["steps"])]
RUNS = [f"{c}/{m}/{seed}" for c in CONCEPTS for m in METHODS for seed in config["seeds"]]

# What the statistics depend on, and nothing else; every store carries it and every reader checks it.
IDENTITY = {
    "model": MODEL,
    "prompts": digest(PROTECTED),
    "sampler": digest([config["sampler"], config["protect"]["seed"]]),
    "projections": digest(config["protect"]["projections"]),
}
SAMPLING = {"precision": config["precision"], **{key: config["sample"][key] for key in ("per_prompt", "seed")}}

# Snakemake counts GPUs only if told: without a limit, all GPU jobs of one machine would start at once.
GPUS = len(list(Path("/dev").glob("nvidia[0-9]*")))
if GPUS and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", GPUS)


wildcard_constraints:
    shard="|".join(SHARDS),
    step="|".join(STEPS),
    concept="|".join(CONCEPTS),
    part="|".join([*CONCEPTS, "unrelated"]),
    method="|".join(METHODS),
    seed=r"\d+",


def protected_shard(wildcards):
    return PROTECTED[int(wildcards.shard) :: len(SHARDS)]


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
        **{key: method[key] for key in ("scope", "rank", "alpha")},
        "rule": method["rule"] or config["protect"]["rule"],
    }


def concept_settings(wildcards):
    return CONCEPTS[wildcards.concept]


def run_prompts(wildcards):
    """Prompts of one concept by group, with {subject} and {class} filled in."""
    concept = CONCEPTS[getattr(wildcards, "concept", None) or wildcards.part]
    words = subject_words(concept)
    return {group: [fill_prompt(prompt, words) for prompt in prompts] for group, prompts in PROMPTS.items()}


def base_prompts(wildcards):
    """What the base model draws: a concept's own groups, or the unrelated prompts, which serve every concept."""
    if wildcards.part == "unrelated":
        return {"unrelated": PROMPTS["unrelated"]}
    return {group: prompts for group, prompts in run_prompts(wildcards).items() if group != "unrelated"}


def step_projectors(wildcards):
    """The projectors that a method's scope reads; step 00 also holds what does not depend on the timestep."""
    pooled = METHODS[wildcards.method]["scope"] == "pooled"
    return collect("<results>/projectors/{step}.zarr", step=["pooled"] if pooled else STEPS)


def grown(megabytes):
    """Memory of a job: the estimate, doubled at each new attempt."""
    return lambda wildcards, attempt: megabytes * 2 ** (attempt - 1)
