"""Config with defaults, identities that decide what is stale, and helpers for the rules."""

import itertools
import os
import re
import sys
from math import ceil, isqrt
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError

sys.path.insert(0, workflow.basedir)

from nullbooth.planning import shapes_from_headers
from nullbooth.statistics import packs
from nullbooth.models import devices
from nullbooth.workflow.environment import prepare_environment
from nullbooth.storage.atomic import read_json, writable
from nullbooth.inputs.groups import OF_ALL, OF_CONCEPT, check_groups
from nullbooth.storage.digests import digest, file_digest
from nullbooth.models.identity import known_configs, model_folder, model_identity, single_identity
from nullbooth.inputs.prompts import read_prompts
from nullbooth.inputs.photographs import captions, content_digest, list_images
from nullbooth.planning.plan import work_of
from nullbooth.workflow.preflight import check_identifiers, check_inputs
from nullbooth.inputs.methods import METHODS as KNOWN, is_lora, is_ours, prior_of, reads_trajectories
from nullbooth.inputs.settings import (
    compared_points,
    complete,
    fill_prompt,
    refuse_half,
    subject_words,
    sweep_points,
)
from nullbooth.errors import SettingsError
from nullbooth.workflow.shown import known_as, show
from nullbooth.statistics.shards import choose_shards, cut_shards, enough, shard_identity
from nullbooth.inputs.edits import edits_of, not_concerned

prepare_environment()
with open(Path(workflow.basedir) / "config" / "schema.yaml", encoding="utf-8") as file:
    SCHEMA = yaml.safe_load(file)
try:
    asked, config = config, complete(config, SCHEMA)
    for warning in check_inputs(config) if workflow.is_main_process else []:  # jobs need not look again
        print(f"config: {warning}", file=sys.stderr)
    LEARNED = {point["name"]: point for entry in config["methods"] for point in sweep_points(entry)}
    SINGLE = Path(config["model"]) if Path(config["model"]).is_file() else None
    if SINGLE:
        config["model_config"] = config["model_config"] or known_configs(SINGLE)
        MODEL = single_identity(SINGLE, config["model_config"], config["revision"])
    else:
        MODEL = model_identity(config["model"], config["revision"], variant=config["variant"])
    config["revision"] = MODEL.partition("@")[2] or None  # the commit: jobs load what was looked up here
    MODEL += f":{config['variant']}" if config["variant"] else ""
    # By scope, a file with projectors and what it says of itself. They stand for the protected prompts.
    PACKS = {}
    if config["protect"]["pack"]:
        PACKS, config["protect"]["pack"] = packs.open_packs(
            config["protect"]["pack"],
            {packs.scope_of(method) for method in LEARNED.values() if is_ours(method)},
            MODEL,
            digest(config["protect"]["sites"]),
            config["protect"]["rule"] if "rule" in asked["protect"] else None,
        )
        for method in LEARNED.values():
            packs.check_method(method, PACKS)
    CONTENTS = {scope: packs.content(path) for scope, (path, _) in PACKS.items()}
    if PACKS:
        PROTECTED = next(about["prompts"] for _, about in PACKS.values())
        check_identifiers(config, PROTECTED)
    else:
        PROTECTED = read_prompts(config["protect"]["prompts"])
    PROMPTS = {group: read_prompts(path) for group, path in config["sample"]["prompts"].items()}
    check_groups(
        PROMPTS,
        PROTECTED,
        config["protect"]["pack" if PACKS else "prompts"],
        [entry["identifier"] for entry in config["concepts"]],
    )
    # By their hashes, so that another protected prompt leaves the choice as it is, mostly.
    PROMPTS["protected"] = sorted(sorted(PROTECTED, key=digest)[: config["sample"]["protected"]])
    SUBJECT_PROMPTS = read_prompts(path, "lifelong.prompts") if (path := config["lifelong"]["prompts"]) else None
    EDITS = edits_of(config["edits"])
    CONTEXTS = {key: read_prompts(config["edit"][key], f"edit.{key}") for key in ("templates", "paraphrases") if EDITS}
    # What speaks of an edit is not to stay as it is.
    UNEDITED = {group: not_concerned(PROMPTS[group], EDITS) for group in ("unrelated", "protected")}
    if EDITS and not (RETAINED := not_concerned(PROTECTED, EDITS)):
        raise SettingsError("edits: every protected prompt speaks of what is edited; protect others (protect.prompts)")
    ENCODERS = {
        name: model_identity(path, key=f"evaluate.{name}", index="config.json")
        for name, path in config["evaluate"].items()
        if name != "lpips"
    }
    if lpips := config["evaluate"]["lpips"]:
        ENCODERS["lpips"] = file_digest(Path(lpips))
    EMBEDDING = {name: ENCODERS[name] for name in ("clip", "dino")}
    for entry in config["concepts"]:
        for key in filter(entry.get, ("images", "holdout")):
            entry[f"{key}_digest"] = content_digest(entry[key])
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

# By name; those of other scales draw with the adapter of another run, so that nothing is trained for them.
POINTS = compared_points(config["comparison"])
METHODS = {**LEARNED, **{point["run"]: point for point in POINTS.values()}, **POINTS}
STEPS = [f"{i:02d}" for i in range(config["sampler"]["steps"])]
RUNS = [f"{c}/{m}/{seed}" for c in CONCEPTS for m in LEARNED for seed in config["seeds"]]
# Else no statistics are needed.
PROTECTING = not PACKS and any(map(is_ours, LEARNED.values()))
COMPARED_RUNS = [f"{c}/{m}/{seed}" for c in COMPARED for m in POINTS for seed in config["comparison"]["seeds"]]
# A LoRA file has one low-rank change for all timesteps.
EXPORTABLE = [run for run in RUNS if is_lora(METHODS[run.split("/")[1]])]
# Pictures that the base model draws: of a concept, and of what serves all of them; with the comparison's sampler too.
PARTS = [*CONCEPTS, "unrelated"]
FEWER_STEPS = "@" + str(config["comparison"]["steps"])

# What is as ever leaves no trace, so that results from before there was a choice are found again.
COMPUTED = {key: config[key] for key, usual in (("weights", "fp32"), ("attention", None)) if config[key] != usual}
# What the statistics depend on, and nothing else; every store carries it and every reader checks it. What is known of a
# shard depends on less than the sums, if shards are added until it is enough.
NEGATIVES = config["protect"]["negatives"] if config["sampler"]["guidance"] > 1 else []
OF_SHARDS = {
    "model": MODEL,
    "prompts": digest(PROTECTED),
    "sampler": digest([config["sampler"], config["protect"]["seed"], config["resolution"]]),
    "sites": digest(config["protect"]["sites"]),
    "precision": config["precision"],
    **COMPUTED,
    # Not where there are none, as before there could be some.
    **({"negatives": digest(NEGATIVES)} if NEGATIVES else {}),
}
UNTIL = None if PACKS else config["protect"]["prompts_until"]
DECIDING = [UNTIL, config["protect"]["shard_size"], config["protect"]["rule"], PROMPTS["unrelated"]]
IDENTITY = OF_SHARDS | ({"until": digest(DECIDING)} if UNTIL else {})

for path, about in PACKS.values() if workflow.is_main_process else []:
    if about["identity"]["sampler"] != IDENTITY["sampler"]:
        print(
            f"config: protect.pack: {path} was made with another sampler, resolution or seed: what it protects are its "
            f"{len(about['timesteps'])} timesteps, of which each other one takes the nearest",
            file=sys.stderr,
        )

# What takes long is kept under a name that says what it was made from, so that nothing is computed twice and nothing
# lost: `shards` has what is known of some protected prompts, `statistics` their sums, `runs` adapters and what they draw.
KEPT = Path(config["results"]) / "kept"
STATISTICS = KEPT / "statistics" / digest(IDENTITY)
SUMS = STATISTICS / "covariances/00.zarr"
try:
    # What is protected must not depend on what was computed before, where it is decided shard by shard.
    if UNTIL:
        SHARDS = cut_shards(OF_SHARDS, PROTECTED, config["protect"]["shard_size"])
    else:
        SHARDS = choose_shards(KEPT / "shards", SUMS, OF_SHARDS, PROTECTED, config["protect"]["shard_size"])
except ValueError as error:
    sys.exit(str(error))
SHARD_IDENTITIES = {name: shard_identity(OF_SHARDS, prompts) for name, prompts in SHARDS.items()}

# Prompts that are not protected have moments too, to measure what adapters change for them.
HELDOUT_IDENTITY = shard_identity(OF_SHARDS, PROMPTS["unrelated"])
HELDOUT = digest(HELDOUT_IDENTITY)
SHARD_PROMPTS = {**SHARDS, HELDOUT: PROMPTS["unrelated"]}
SAMPLING = {**{key: config[key] for key in ("precision", "resolution")}, **COMPUTED}
# What counts of earlier subjects, for later ones to leave them alone.
LATER = {"weight": config["lifelong"]["weight"], "prompts": SUBJECT_PROMPTS}
SAMPLING |= {key: config["sample"][key] for key in ("per_prompt", "seed")}


def earlier_runs(concept, method, seed):
    """The runs that one is learned on top of, in their order."""
    before = list(CONCEPTS)[: list(CONCEPTS).index(concept)] if METHODS[method]["lifelong"] == "sequence" else []
    return [f"{name}/{method}/{seed}" for name in before]


def pictures_of_class(concept):
    """So many pictures per prompt that they suffice, from noise that no evaluated picture starts from."""
    per_prompt = ceil(config["sample"]["class_images"] / len(CONCEPTS[concept]["class_prompts"]))
    return {**SAMPLING, "per_prompt": per_prompt, "seed": SAMPLING["seed"] + 1_000_000}


def recipe(concept, method, seed):
    """Everything that an adapter is made from; photographs by their content, wherever they lie."""
    chosen, keeps = METHODS[method], KNOWN[METHODS[method]["method"]].reads is not None
    train = {**config["train"], **chosen["train"], "seed": int(seed), "precision": config["precision"]}
    freed_by = (chosen["rule"] or config["protect"]["rule"]) if is_ours(chosen) else None
    own = {key: IDENTITY[key] for key in ("model", "sites", "weights") if key in IDENTITY}
    identity = IDENTITY if keeps else own
    if freed_by and packs.scope_of(chosen) in PACKS:
        scope = packs.scope_of(chosen)
        identity = own | {"pack": CONTENTS[scope]}
        freed_by = PACKS[scope][1]["rule"]
    # Dropped captions are learned on what guidance gives the denoiser without the prompt.
    used = ("scheduler", "options", "arguments", *(["guidance"] if train["caption_dropout"] else []))
    learned = ("name", "identifier", "class", "prompt", "images_digest", "class_prompts")
    on_top = {run: KEYS[run] for run in earlier_runs(concept, method, seed)}
    if on_top and is_ours(chosen):
        identity = identity | {"earlier": on_top, "lifelong": LATER}
    elif on_top:
        identity = identity | {"earlier": on_top}
    # A training that was killed must not go on from a checkpoint of other pictures.
    drawn = {"class_pictures": digest([config["sampler"], pictures_of_class(concept)])}
    return {
        **(drawn if prior_of(chosen) == "images" else {}),
        "concept": {key: CONCEPTS[concept][key] for key in learned},
        "method": {
            "train": train,
            **{key: chosen[key] for key in ("method", "scope", "rank", "alpha", "prior")},
            "rule": freed_by,
        },
        "sampler": {key: config["sampler"][key] for key in used},
        "resolution": config["resolution"],
        "sites": config["protect"]["sites"],
        # Most rivals know nothing of protected prompts.
        "identity": identity,
    }


def learned_run(run):
    """The run whose adapter one draws with: another one, for a point of the comparison at another scale."""
    concept, method, seed = run.split("/")
    return f"{concept}/{POINTS.get(method, {}).get('run', method)}/{seed}"


class Named(dict):
    """Wildcards of a job that is not planned yet."""

    __getattr__ = dict.__getitem__


TEMPLATES = digest(
    [path.read_text(encoding="utf-8") for path in sorted(Path(workflow.basedir, "workflow/report").glob("*.j2"))]
)


def behind(names):
    """The files that stand for plain names."""
    return [str(Path(*SHOWN[name])) for name in names]


def page_of(kind, names, **params):
    """Where a page is kept: by what those plain names lead to, what else it says, and how it looks."""
    places = {name: str(Path(SHOWN[name][0]).relative_to(KEPT)) for name in names}
    return KEPT / "pages" / kind / digest([params, places, TEMPLATES])


def viewed(names):
    """For a script, what plain names lead to (nullbooth.workflow.shown.view)."""
    return {name: list(map(str, SHOWN[name])) for name in names}


def kept_runs(runs):
    """Runs with their keys, as they are kept."""
    return [f"{run}/{KEYS[run]}" for run in runs]


def gpus_of(method):
    """How many GPUs a training takes at once."""
    return {**config["train"], **method["train"]}["gpus"]


RECIPES, KEYS = {}, {}
LEARNED_FOR_POINTS = list(dict.fromkeys(map(learned_run, COMPARED_RUNS)))
# In the order of concepts: a recipe names the keys of earlier ones.
for run in dict.fromkeys([*RUNS, *LEARNED_FOR_POINTS, *COMPARED_RUNS]):
    RECIPES[run] = recipe(*run.split("/"))
    KEYS[run] = digest(RECIPES[run])
DRAWN = KEPT / "drawn" / digest(MODEL)
# What is known after each concept, of methods that learn one after another: the adapters at work, by a key of their own.
LIFELONG = {name: method["lifelong"] for name, method in LEARNED.items() if method["lifelong"]}
STAGES = {}
for method, seed in itertools.product(LIFELONG, config["seeds"]):
    for count in range(2, len(CONCEPTS) + 1):
        runs = [f"{concept}/{method}/{seed}" for concept in list(CONCEPTS)[:count]]
        STAGES[digest(kept_runs(runs))] = runs

EDITING = {
    "edits": config["edits"],
    "rule": config["edit"]["rule"] or next((about["rule"] for _, about in PACKS.values()), config["protect"]["rule"]),
    "l2": config["edit"]["l2"],
    "templates": CONTEXTS.get("templates"),
    "protected": RETAINED if EDITS else None,
    "arguments": config["sampler"]["arguments"],
    "resolution": config["resolution"],
    "identity": {key: IDENTITY[key] for key in ("model", "weights") if key in IDENTITY},
}
EDITED = KEPT / "edits" / digest(EDITING)

RULE = digest(config["protect"]["rule"])
# Of the packs that can be made: what the config's methods read, or else the smallest.
SCOPES = sorted({packs.scope_of(m) for m in LEARNED.values() if is_ours(m)}) or ["pooled"]

STORES = {
    "trajectories": [str(KEPT / "shards" / shard / "trajectory.zarr") for shard in SHARDS],
    "moments": [str(KEPT / "shards" / shard / "moments" / f"{step}.zarr") for shard in SHARDS for step in STEPS],
    "sums": [
        str(STATISTICS / kind / f"{step}.zarr") for kind in ("covariances", "projectors") for step in [*STEPS, "pooled"]
    ],
}

if PACKS:
    STORES |= {"moments": [], "sums": []}

# By plain name, what is kept: a file or folder, and the file in it that stands for it; and by folder of plain names, the
# name that stands for all (see nullbooth.workflow.shown). Each rules file adds its own.
SHOWN, FOLDERS = {}, {}

# CPUs of jobs that can use many. Not workflow.cores, which raises where no number is given.
CPUS = workflow.resource_settings.cores or 1

# Snakemake counts GPUs only if told: without a limit, all GPU jobs of one machine would start at once.
GPUS = devices.count()
if GPUS and "gpu" not in workflow.global_resources:
    if (most := max(map(gpus_of, METHODS.values()))) > GPUS:
        sys.exit(f"config: train.gpus: {most}: there are {GPUS} here; take fewer")
    workflow.register_resource("gpu", GPUS)

# What jobs ask for, if the model is on this machine; on a cluster they have GPUs, even where Snakemake has none.
MEMORY, SIDE = {}, 512
if folder := model_folder(config["model_config"] or config["model"], config["revision"], weights=not SINGLE):
    try:
        shapes = shapes_from_headers.read(
            folder,
            config["protect"]["sites"],
            config["resolution"],
            config["sampler"]["arguments"].get("max_sequence_length"),
            config["variant"],
            SINGLE,
            config["weights"],
            config["precision"],
        )
    except (KeyError, TypeError, ValueError, OSError) as error:  # a config that leaves out what others say
        if workflow.is_main_process:
            print(
                f"config: model: {SINGLE or folder}: memory of jobs unknown ({error!r}), taken as for small ones",
                file=sys.stderr,
            )
    else:
        work = work_of(config, len(PROTECTED), {group: len(found) for group, found in PROMPTS.items()}, METHODS)
        MEMORY = shapes_from_headers.memory(shapes, work, gpus=int(config["device"] != "cpu"))
        SIDE = isqrt(shapes.pixels)
SMALL_PICTURES = (config["resolution"] or SIDE) < 256  # pages enlarge them pixel by pixel


onstart:  # and not after hours, nor in a dry run
    if not writable(config["results"]):
        sys.exit(
            f"config: results: {config['results']} cannot be written to: name another folder, or make it writable"
        )
    if workflow.non_local_exec and "adapter" not in workflow.resource_settings.overwrite_threads:
        print(
            f"config: training and drawing ask the cluster for {CPUS} CPUs, as many as this machine has; for another "
            "number copy set-threads from profiles/slurm/config.yaml into your profile",
            file=sys.stderr,
        )


wildcard_constraints:
    shard="|".join(SHARD_PROMPTS),
    step="|".join(STEPS),
    concept="|".join(CONCEPTS),
    part="|".join([*PARTS, *(part + FEWER_STEPS for part in PARTS)]),
    method="|".join(map(re.escape, METHODS)),
    seed=r"\d+",
    key="|".join(sorted(set(KEYS.values()))),
    stage="|".join(STAGES) or "none",
    scope="pooled|timestep",
    number="|".join(str(i + 1) for i in range(len(SHARDS))),
    pictures="[0-9a-f]{16}",
    measured="[0-9a-f]{16}",


pathvars:
    results=str(config["results"]),
    kept=str(KEPT),
    statistics=str(STATISTICS),
    drawn=str(DRAWN),
    edited=str(EDITED),
    run="runs/{concept}/{method}/{seed}",


def made_from(key):
    """A function of wildcards that gives one part of what a run is made from."""
    return lambda wildcards: RECIPES[f"{wildcards.concept}/{wildcards.method}/{wildcards.seed}"][key]


def adapter_of(wildcards):
    run = learned_run("{concept}/{method}/{seed}".format(**run_of(wildcards)))
    return [f"<kept>/runs/{run}/{wildcards.key}/adapter.safetensors"]


def adapters_before(wildcards):
    """Adapters that a run's is learned on top of."""
    return collect("<kept>/runs/{run}/adapter.safetensors", run=kept_runs(earlier_runs(**run_of(wildcards))))


def run_of(wildcards):
    return {name: wildcards[name] for name in ("concept", "method", "seed")}


def photographs(wildcards):
    """What a run is measured against, by content."""
    concept = CONCEPTS[wildcards.concept]
    return {key: concept.get(key) for key in ("name", "identifier", "images_digest", "holdout_digest")}


def class_prompts(wildcards):
    """The captions of the photographs with the class in place of the subject."""
    concept = CONCEPTS[wildcards.concept]
    words = {"subject": concept["class"], "class": concept["class"]}
    return {"class": [fill_prompt(prompt, words) for prompt in concept["class_prompts"]]}


def drawn_sampling(wildcards):
    """How pictures are drawn; for the gallery, also with maps of where the subject's words act. The base model draws
    one more of each prompt: how far two of its own pictures are apart is the scale of a drift."""
    if point := POINTS.get(wildcards.get("method")):
        return SAMPLING if point["scale"] == 1 else {**SAMPLING, "scale": point["scale"]}
    found = {**SAMPLING, "per_prompt": SAMPLING["per_prompt"] + 1} if wildcards.get("part") else dict(SAMPLING)
    if concept := CONCEPTS.get(wildcards.get("concept") or wildcards.part):
        found["attention"] = subject_words(concept)["subject"].split()
    return found


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
    if wildcards.part.removesuffix(FEWER_STEPS) == "unrelated":
        return {group: PROMPTS[group] for group in OF_ALL if group in PROMPTS}
    return {group: prompts for group, prompts in run_prompts(wildcards).items() if group in OF_CONCEPT}


def base_parts(wildcards):
    """The base model's pictures that those of a run are paired with."""
    suffix = FEWER_STEPS if wildcards.method in POINTS else ""
    return [base_pictures(part + suffix) for part in (wildcards.concept, "unrelated")]


def base_embeddings(wildcards):
    """What the evaluators make of them."""
    folders = map(Path, base_parts(wildcards))
    return [str(path.parent / "embeddings" / path.name / f"{digest(EMBEDDING)}.safetensors") for path in folders]


def projectors_of(method):
    """The projectors that a method's scope reads; step 00 also holds what does not depend on the timestep."""
    if not is_ours(method) or PACKS:
        return []
    return collect("<statistics>/projectors/{step}.zarr", step=["pooled"] if method["scope"] == "pooled" else STEPS)


def step_projectors(wildcards):
    if RECIPES["{concept}/{method}/{seed}".format(**run_of(wildcards))]["identity"].get("lifelong"):
        steps = ["pooled"] if METHODS[wildcards.method]["scope"] == "pooled" else STEPS
        return collect("<kept>/<run>/{{key}}/projectors/{step}.zarr", step=steps)
    if PACKS:  # what is learned was looked at above; the comparison is another target, and only now asked for
        packs.check_method(METHODS[wildcards.method], PACKS)
    try:  # those of `methods` are refused before; of the comparison's, only what is asked for
        refuse_half(f"comparison.methods: {wildcards.method}", METHODS[wildcards.method]["method"], config["weights"])
    except SettingsError as error:
        raise WorkflowError(f"config: {error}") from error
    return projectors_of(METHODS[wildcards.method])


def configured(found, lacking):
    """For the input of a job, nothing; or an error, if it is asked for and the config has nothing for it to do."""

    def no_files(wildcards):
        if not found:
            raise WorkflowError(f"config: {lacking}")
        return []

    return no_files


def training_gpus(wildcards):
    return gpus_of(METHODS[wildcards.method])


def statistics_in_use(wildcards):
    """The sums and projectors that the gallery rests on."""
    needed = {path for method in LEARNED.values() for path in projectors_of(method)}
    return sorted(needed) + collect("<statistics>/covariances/{step}.zarr", step=STEPS if needed else [])


def calibration(wildcards):
    """The protected trajectories, for rivals that learn from them."""
    wanted = reads_trajectories(METHODS[wildcards.method])
    return collect("<kept>/shards/{shard}/trajectory.zarr", shard=taken()) if wanted else []


def class_images(wildcards):
    """Pictures of the class by the base model, for methods that train on them."""
    wanted = prior_of(METHODS[wildcards.method]) == "images"
    return f"<drawn>/class/{wildcards.concept}/{CLASS_PICTURES[wildcards.concept]}" if wanted else []


def longer(minutes):
    """Time limit of a job on a cluster, doubled at each new attempt."""
    return lambda wildcards, attempt: minutes * 2 ** (attempt - 1)


def grown(megabytes, rule=None):
    """Memory of a job: the estimate, if the model is here, and at least so much; doubled at each new attempt."""
    return lambda wildcards, attempt: max(megabytes, MEMORY.get(rule, 0)) * 2 ** (attempt - 1)
