"""Checks of photographs, captions, prompts and models before any job runs, by their files alone.

Reads JSON and the headers of weights, never the weights, and imports neither torch nor diffusers.
"""

import difflib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nullbooth.errors import InputError, SettingsError
from nullbooth.inputs.edits import edits_of
from nullbooth.inputs.photographs import captions, list_images
from nullbooth.inputs.prompts import read_prompts
from nullbooth.inputs.settings import PACKAGES, fill_prompt, subject_words, word_in
from nullbooth.inputs.subjects import check_named, check_subjects
from nullbooth.inputs.text import shown
from nullbooth.models.files import (
    attention_names,
    check_encoder,
    check_file,
    check_pipeline,
    diffusers_names,
    is_local,
    weight_names,
)
from nullbooth.models.parts import read_json
from nullbooth.models.prompt_length import check_lengths
from nullbooth.workflow.borrowed import borrowed


def check_inputs(config: dict[str, Any]) -> list[str]:
    """Refuse inputs that no job could use; return warnings. Raises InputError with key or file, value and hint.

    config: complete (nullbooth.inputs.settings.complete). Faults that only the Hub or the weights show are found by
    jobs (nullbooth.models.loading).
    """
    try:
        check_results(config)
        check_models(config)
        check_sampler(config)
        prompts = read_all(prompt_files(config))
        check_training(config, prompts["protect.prompts"])
        check_attention(config["attention"])
        warnings = [*borrowed(config), *check_subjects(config["concepts"])]
        return [*warnings, *check_lengths(prompts_of(config, prompts), configs_of(config))]
    except OSError as error:  # a name too long for the file system, a folder that may not be read
        raise InputError(f"{shown(str(error.filename))}: {error.strerror}") from error


def check_results(config: dict[str, Any]) -> None:
    """Refuse a results folder that is a file, or that contains inputs that might be lost. Raises SettingsError."""
    results = Path(config["results"])
    if results.exists() and not results.is_dir():
        raise SettingsError(f"results: {results} is a file; name a folder")
    named = {"protect.prompts": config["protect"]["prompts"], "model": config["model"]}
    others = {"model_config": config["model_config"], "protect.pack": config["protect"]["pack"]}
    others["lifelong.prompts"] = config["lifelong"]["prompts"]
    named |= {key: value for key, value in others.items() if value}
    named |= {f"sample.prompts.{group}": path for group, path in config["sample"]["prompts"].items()}
    named |= {f"edit.{key}": config["edit"][key] for key in ("templates", "paraphrases")}
    for i, concept in enumerate(config["concepts"]):
        named |= {f"concepts.{i}.{key}": concept[key] for key in ("images", "holdout") if concept[key]}
    for key, value in named.items():
        if Path(value).exists() and Path(value).resolve().is_relative_to(results.resolve()):
            raise SettingsError(
                f"results: {shown(config['results'])}: {key} ({value}) lies in it and might be lost; use another folder"
            )


def check_models(config: dict[str, Any]) -> None:
    """Refuse models and evaluators that cannot be used, by their files. Raises InputError."""
    if Path(config["model"]).is_file():
        check_single(Path(config["model"]), config["model_config"], config["revision"], config["variant"])
    elif config["model_config"] is not None:
        raise SettingsError(
            f"model_config: {shown(config['model_config'])}: only a model in one file needs it, and {config['model']} "
            "is not a file; remove it"
        )
    elif is_local(config["model"], "model", config["revision"]):
        check_pipeline(Path(config["model"]), "model", config["variant"])
    for name in ("clip", "dino"):
        if is_local(config["evaluate"][name], f"evaluate.{name}"):
            check_encoder(Path(config["evaluate"][name]), f"evaluate.{name}")
    if config["evaluate"]["lpips"] is not None:
        weight_names(Path(config["evaluate"]["lpips"]), "evaluate.lpips")


def check_single(file: Path, configs: str | None, revision: str | None, variant: str | None) -> None:
    """Refuse a single-file model that cannot be used, by its header and `configs`. Raises InputError."""
    check_file(file)
    if variant is not None:
        raise SettingsError(f"variant: {variant!r}: {file} is one file, which has no variants; remove it")
    if configs is not None and is_local(configs, "model_config", revision):
        check_pipeline(Path(configs), "model_config", file=file)


def configs_of(config: dict[str, Any]) -> Path:
    """Return the path of the model's configs and tokenizers, which need not exist."""
    return Path(config["model_config"] or config["model"])


def check_sampler(config: dict[str, Any]) -> None:
    """Refuse schedulers unknown to diffusers, and step counts that the scheduler cannot take. Raises InputError."""
    name, options = config["sampler"]["scheduler"], config["sampler"]["options"]
    schedulers = [known for known in diffusers_names() if known.endswith("Scheduler")]
    if name is not None and schedulers and name not in schedulers:
        near = difflib.get_close_matches(name, schedulers, 3, 0.3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise SettingsError(f"sampler.scheduler: {shown(name)} is not a scheduler class of diffusers{hint}")
    path = configs_of(config) / "scheduler" / "scheduler_config.json"
    own = read_json(path) if path.is_file() else {}
    limit = {**own, **options}.get("num_train_timesteps", 1000)
    for key in ("sampler", "comparison"):
        if isinstance(limit, int) and (steps := config[key]["steps"]) > limit:
            raise SettingsError(f"{key}.steps: {steps}: the scheduler has {limit} (num_train_timesteps); use fewer")
    # PNDM begins with steps of another kind (PRK), unless it skips them as in Stable Diffusion.
    usual = own.get("_class_name") in USUAL and ("PNDM" not in own["_class_name"] or own.get("skip_prk_steps"))
    if own and (name or options or not usual):
        from nullbooth.models.schedulers import (  # takes seconds
            check_steps,
            fitting_sampler,
            scheduler_class,
            training_scheduler,
        )

        scheduler = scheduler_class(str(own.get("_class_name"))).from_config(own)
        training_scheduler(scheduler, options)
        for key in ("sampler", "comparison") if config["comparison"]["methods"] else ("sampler",):
            check_steps(fitting_sampler(scheduler, name, options), config[key]["steps"], f"{key}.steps")


# Schedulers of common models that are known to work.
USUAL = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
)


def train_settings(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return all parts of the config with settings of training, by key."""
    methods = {f"methods.{i}": method for i, method in enumerate(config["methods"])}
    methods |= {f"comparison.methods.{i}": method for i, method in enumerate(config["comparison"]["methods"])}
    settings = {"train": config["train"]} | {f"{key}.train": method["train"] for key, method in methods.items()}
    for key, method in methods.items():
        settings |= {f"{key}.sweep.{i}": point for i, point in enumerate(method["sweep"])}
    return settings


def check_training(config: dict[str, Any], protected: list[str]) -> None:
    """Refuse missing packages, several GPUs on one device, and as `check_identifiers`. Raises SettingsError."""
    settings = train_settings(config)
    used = {f"{key}.optimizer": train["optimizer"] for key, train in settings.items() if "optimizer" in train}
    used |= {f"trackers.{i}": tracker for i, tracker in enumerate(config["trackers"])}
    for key, name in used.items():
        if (package := PACKAGES.get(name)) and find_spec(package) is None:
            raise SettingsError(f"{key}: {name} needs a package that is not installed: pip install {package}")
    several = [key for key, train in settings.items() if train.get("gpus", 1) > 1]
    if several and "cuda:" in config["device"]:
        raise SettingsError(f"{several[0]}.gpus: device {config['device']} is one GPU; set device: auto for several")
    if config["protect"]["pack"] is None:  # otherwise the pack's prompts are the protected ones
        check_identifiers(config, protected)


def check_identifiers(config: dict[str, Any], protected: list[str]) -> None:
    """Refuse identifiers in protected prompts if training changes their embeddings. Raises SettingsError."""
    if not any(train.get("inversion_steps") for train in train_settings(config).values()):
        return
    for i, concept in enumerate(config["concepts"]):
        if named := next((prompt for prompt in protected if word_in(concept["identifier"], prompt)), None):
            raise SettingsError(
                f"concepts.{i}.identifier: {shown(concept['identifier'])} is part of the protected prompt "
                f"{shown(named)}, which train.inversion_steps would change; choose another identifier"
            )


def check_attention(name: str | None) -> None:
    """Refuse attention back ends unknown to diffusers. Jobs find missing packages. Raises SettingsError."""
    if name is not None and name not in attention_names():
        known = ", ".join(attention_names()) or "none: update diffusers"
        raise SettingsError(f"attention: {shown(name)} is not a back end of diffusers; use null or one of {known}")


def prompt_files(config: dict[str, Any]) -> dict[str, str]:
    """Return all files of prompts that are read, by the setting that names them."""
    files = {"protect.prompts": config["protect"]["prompts"]}
    files |= {f"sample.prompts.{group}": path for group, path in config["sample"]["prompts"].items()}
    if config["edits"]:
        files |= {f"edit.{key}": config["edit"][key] for key in ("templates", "paraphrases")}
    if config["lifelong"]["prompts"] and any(method["lifelong"] for method in config["methods"]):
        files["lifelong.prompts"] = config["lifelong"]["prompts"]
    return files


def read_all(files: dict[str, str]) -> dict[str, list[str]]:
    """Read the prompts of files, by setting. Raises InputError with a line for each file that cannot be read."""
    found, faults = {}, []
    for key, path in files.items():
        try:
            found[key] = read_prompts(path, key)
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("\n".join(faults))
    return found


def prompts_of(config: dict[str, Any], prompts: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Yield all texts that the model will read, as (setting, text). prompts: by setting of `prompt_files`.
    Raises SettingsError for prompts with unknown placeholders, or without their subject."""
    common = {key: texts for key, texts in prompts.items() if not key.startswith("edit.")}
    common |= edited_prompts(config, prompts)
    common["validate.prompts"] = config["validate"]["prompts"]
    if any(method["lifelong"] for method in config["methods"]):
        common["lifelong.pair"] = config["lifelong"]["pair"]
    if nameless := [prompt for prompt in prompts.get("lifelong.prompts", ()) if "{subject}" not in prompt]:
        raise SettingsError(
            f"lifelong.prompts: {config['lifelong']['prompts']}: {shown(nameless[0])}: {{subject}} is not in it; "
            "move prompts without a subject to protect.prompts"
        )
    for i, concept in enumerate(config["concepts"]):
        said = captions(list_images(concept["images"]), concept["prompt"])
        words = subject_words(concept)
        for key, part in {f"concepts.{i}.images": said, **common}.items():
            try:
                yield from [(key, fill_prompt(text, words)) for text in part]
            except SettingsError as error:
                raise SettingsError(f"{key}: {error}") from error
        check_named(prompts["sample.prompts.subject"], concept)


def edited_prompts(config: dict[str, Any], prompts: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the prompts that edits are solved and measured with, by setting of the contexts. Raises SettingsError."""
    edits = edits_of(config["edits"])
    found: dict[str, list[str]] = {}
    changed: dict[str, int] = {}  # the first edit that changes a prompt
    for i, edit in enumerate(edits):
        if edit.source == edit.target:
            raise SettingsError(f"edits.{i}: from and to are both {shown(edit.source)}; nothing would change")
    contexts = {key: read_prompts(config["edit"][key], f"edit.{key}") for key in ("templates", "paraphrases") if edits}
    if taught := sorted(set(contexts.get("templates", ())) & set(contexts.get("paraphrases", ()))):
        raise SettingsError(
            f"edit.paraphrases: {shown(taught[0])} is also one of edit.templates; paraphrases measure contexts that "
            "edits are not solved for: remove it from one of them"
        )
    for key, texts in contexts.items():
        found[f"edit.{key}"] = []
        for context in texts:
            if "{concept}" not in context:
                raise SettingsError(
                    f"edit.{key}: {shown(context)}: {{concept}} is not in it; write {{concept}} into it"
                )
            try:
                pairs = [edit.filled(context) for edit in edits]
            except SettingsError as error:
                raise SettingsError(f"edit.{key}: {error}") from error
            for i, (source, _) in enumerate(pairs):
                if (first := changed.setdefault(source.casefold(), i)) != i:
                    raise SettingsError(
                        f"edits.{i}.from: {shown(edits[i].source)}: edits.{first} changes the prompt {shown(source)} "
                        "too, which can have only one meaning; remove one of the two edits"
                    )
            found[f"edit.{key}"] += [prompt for pair in pairs for prompt in pair]
    return found
