"""What can be known to fail before any job runs: photographs, captions, prompts and models, by their files alone.

Reads JSON and the headers of weights, never the weights, and imports neither torch nor diffusers.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nullbooth.identity import read_prompts
from nullbooth.images import captions, list_images, open_image
from nullbooth.modelfiles import (
    attention_names,
    check_encoder,
    check_pipeline,
    diffusers_names,
    is_local,
    read_json,
    weight_names,
)
from nullbooth.settings import SettingsError, fill_prompt, subject_words
from nullbooth.text import InputError, shown
from nullbooth.tokens import check_lengths


def check_inputs(config: dict[str, Any]) -> list[str]:
    """Refuse what no job could use, with a message that names key or file, value and mend; returns warnings.

    `config` is complete (nullbooth.settings.complete). Raises InputError. What only the Hub or the weights themselves
    can tell, jobs find (nullbooth.models).
    """
    try:
        check_results(config)
        check_models(config)
        check_sampler(config)
        check_attention(config["attention"])
        return check_lengths(prompts_of(config), Path(config["model"]))
    except OSError as error:  # a name too long for the file system, a folder that may not be read
        raise InputError(f"{shown(str(error.filename))}: {error.strerror}") from error


def check_results(config: dict[str, Any]) -> None:
    """Refuse a results folder that is a file, or in which something of the user's lies that a result might replace."""
    results = Path(config["results"])
    if results.exists() and not results.is_dir():
        raise SettingsError(f"results: {results} is a file; name a folder")
    named = {"protect.prompts": config["protect"]["prompts"], "model": config["model"]}
    named |= {f"sample.prompts.{group}": path for group, path in config["sample"]["prompts"].items()}
    for i, concept in enumerate(config["concepts"]):
        named |= {f"concepts.{i}.{key}": concept[key] for key in ("images", "holdout") if concept[key]}
    for key, value in named.items():
        if Path(value).exists() and Path(value).resolve().is_relative_to(results.resolve()):
            raise SettingsError(
                f"results: {shown(config['results'])}: {key} ({value}) lies in it and might be lost; take another"
            )


def check_models(config: dict[str, Any]) -> None:
    """Refuse models whose files say that they cannot be used."""
    if is_local(config["model"], "model", config["revision"]):
        check_pipeline(Path(config["model"]), "model", config["variant"])
    for name in ("clip", "dino"):
        if is_local(config["evaluate"][name], f"evaluate.{name}"):
            check_encoder(Path(config["evaluate"][name]), f"evaluate.{name}")
    if config["evaluate"]["lpips"] is not None:
        weight_names(Path(config["evaluate"]["lpips"]), "evaluate.lpips")


def check_sampler(config: dict[str, Any]) -> None:
    """Refuse schedulers that diffusers does not know, and more steps than the model's scheduler has."""
    name, options = config["sampler"]["scheduler"], config["sampler"]["options"]
    schedulers = [known for known in diffusers_names() if known.endswith("Scheduler")]
    if name is not None and schedulers and name not in schedulers:
        near = difflib.get_close_matches(name, schedulers, 3, 0.3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise SettingsError(f"sampler.scheduler: {shown(name)} is not a scheduler class of diffusers{hint}")
    path = Path(config["model"]) / "scheduler" / "scheduler_config.json"
    limit = {**(read_json(path) if path.is_file() else {}), **options}.get("num_train_timesteps", 1000)
    for key in ("sampler", "comparison"):
        if isinstance(limit, int) and (steps := config[key]["steps"]) > limit:
            raise SettingsError(f"{key}.steps: {steps}: the scheduler has {limit} (num_train_timesteps); take fewer")


def check_attention(name: str | None) -> None:
    """Refuse attention back ends that diffusers does not know; whether one is installed, diffusers says in a job."""
    if name is not None and name not in attention_names():
        known = ", ".join(attention_names()) or "none: update diffusers"
        raise SettingsError(f"attention: {shown(name)} is none of diffusers' back ends; use null or one of {known}")


def prompts_of(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every text that the model will be given, with the setting that it comes from. Photographs are checked beside."""
    files = {"protect.prompts": config["protect"]["prompts"]}
    files |= {f"sample.prompts.{group}": path for group, path in config["sample"]["prompts"].items()}
    common = {key: read_prompts(path, key) for key, path in files.items()}
    common["validate.prompts"] = config["validate"]["prompts"]
    for i, concept in enumerate(config["concepts"]):
        texts = {f"concepts.{i}.images": photographed(concept, f"concepts.{i}"), **common}
        words = subject_words(concept)
        for key, part in texts.items():
            try:
                yield from [(key, fill_prompt(text, words)) for text in part]
            except SettingsError as error:
                raise SettingsError(f"{key}: {error}") from error


def photographed(concept: dict[str, Any], key: str) -> list[str]:
    """Captions of a concept's photographs, which are opened, as those held out are."""
    for name in filter(concept.get, ("holdout", "images")):
        paths = list_images(concept[name], f"{key}.{name}")
        for path in paths:
            open_image(path, check=True)
    return captions(paths, concept["prompt"])
