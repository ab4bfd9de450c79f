"""Checks a config against its schema, with errors that name the key, the value and the mend."""

import copy
import difflib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from nullbooth.errors import SettingsError
from nullbooth.inputs.methods import METHODS, is_ours, prior_of
from nullbooth.inputs.shipped import located, shipped
from nullbooth.inputs.text import has_secret, shown, strange_character
from nullbooth.inputs.typed import resolve, typed

EMBEDDED, EMBEDDED_NAMES = "resources/tinyworld", "config/prompts/names.txt"
NEGATIVES = "config/prompts/negatives.txt"
_READERS = ("tokenizer/tokenizer.json", "text_encoder/model.safetensors")
# What some settings need that is not installed with NullBooth.
PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt", "wandb": "wandb"}
# Names of results: some are taken, and tables read others as an absent value.
_RESERVED = ("base", "class", "unrelated", "null", "none", "nan", "na")
# Placeholders: braces, and what ai-toolkit and the web interfaces replace in captions.
_STRAY = re.compile(
    r"\{[^{}]*\}|\[(?:trigger|trigger[ _]?word|name|filewords|subject|class|identifier|token|instance)\]", re.IGNORECASE
)
_DEPTH = 20  # of dictionaries and lists within each other
_LONGEST = 2000  # characters of one setting
_LINES = 8  # of a message


def read_schema() -> dict[str, Any]:
    """Return the schema of all settings (config/schema.yaml)."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # eight times as fast; every job reads the schema
    with open(shipped("config/schema.yaml"), encoding="utf-8") as file:
        return yaml.load(file, Loader=loader)


def complete(config: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A copy of `config` with the schema's defaults filled in, at every depth, and text read as what it spells
    (`typed`). Raises SettingsError."""
    _check_usable(config)
    schema = with_methods(schema)
    config = typed(config, schema, schema)
    _check_usable(config)  # nor what was spelled as text
    config = copy.deepcopy(config)
    _fill(config, schema, schema)
    errors = sorted(_Validator(schema).iter_errors(config), key=lambda e: list(map(str, e.path)))
    if errors:
        raise SettingsError("\n".join(_explain(error) for error in errors[:_LINES]))
    for path in _PATHS:
        _expand(config, path.split("."))
    config["results"] = os.path.normpath(config["results"])  # Snakemake takes every spelling for a folder of its own
    config["sample"]["prompts"] = _prompt_files(config)
    config["protect"]["negatives"] = _negatives(config)
    given = config["sampler"]["arguments"].get("negative_prompt")
    if given is not None and not isinstance(given, str):
        raise SettingsError(
            f"sampler.arguments.negative_prompt: {shown(given)}: must be text, the same for every prompt"
        )
    _check_weights(config)
    lists = {key: config.get(key, []) for key in ("concepts", "methods")}
    lists["comparison.methods"] = config.get("comparison", {}).get("methods", [])
    for kind, entries in lists.items():
        for i, entry in enumerate(entries):
            if entry["name"].lower() in _RESERVED:
                raise SettingsError(f"{kind}.{i}.name: {entry['name']!r} has a meaning of its own; choose another name")
    for kind, entries in lists.items():
        for i, entry in enumerate(entries):
            if entry.get("prior") and not is_ours(entry):
                raise SettingsError(
                    f"{kind}.{i}.prior: {entry['prior']!r} is an addition to method nullbooth; {entry['method']} is "
                    "compared as it is: leave prior out"
                )
    _check_lifelong(config, lists)
    points = [p["name"] for kind in ("methods", "comparison.methods") for e in lists[kind] for p in sweep_points(e)]
    for kind, names in {
        "concepts": [entry["name"] for entry in lists["concepts"]],
        "comparison.methods": [entry["name"] for entry in lists["comparison.methods"]],
        "methods": points,
    }.items():
        folded = [name.lower() for name in names]  # some file systems take Dog and dog for one
        if doubled := [name for name in names if folded.count(name.lower()) > 1]:
            raise SettingsError(f"{kind}: the name {doubled[-1]!r} is used twice; names must differ, not in case alone")
    return config


# Settings that name a file or folder.
_PATHS = (
    "results",
    "model",
    "model_config",
    "concepts.images",
    "concepts.holdout",
    "protect.negatives",
    "protect.prompts",
    "protect.pack",
    "sample.prompts",
    "lifelong.prompts",
    "edit.templates",
    "edit.paraphrases",
    "evaluate.clip",
    "evaluate.dino",
    "evaluate.lpips",
)


def _expand(config: Any, path: list[str]) -> None:
    """Replace paths of a setting, or of the list or mapping there: `~` by the home folder, and names of shipped files
    by their place if the working directory has none of that name."""
    if isinstance(config, list):
        for entry in filter(lambda entry: isinstance(entry, dict), config):
            _expand(entry, path)
        return
    keys = path[:1] or list(config)
    for key in keys:
        value = config.get(key)
        if isinstance(value, str) and len(path) < 2:
            config[key] = located(str(Path(value).expanduser()) if value.startswith("~") else value)
        elif isinstance(value, dict | list):
            _expand(value, path[1:])


def _prompt_files(config: dict[str, Any]) -> dict[str, str]:
    """Files by group of prompts, without the groups that have none."""
    files = dict(config["sample"]["prompts"])
    if files["names"] == "auto":
        files["names"] = located(EMBEDDED_NAMES) if _embedded(config) else None
    return {group: path for group, path in files.items() if path is not None}


def _embedded(config: dict[str, Any]) -> bool:
    """Whether a model reads prompts as the embedded model does, wherever its folder lies."""
    return all(
        own.is_file() and known.is_file() and own.read_bytes() == known.read_bytes()
        for own, known in ((Path(model, part) for model in (config["model"], shipped(EMBEDDED))) for part in _READERS)
    )


def _negatives(config: dict[str, Any]) -> list[str]:
    """The negative prompts that are protected. None by default for the embedded model, whose pictures need none."""
    given = config["protect"]["negatives"]
    if not isinstance(given, str):
        return given
    if given == "auto" and _embedded(config):
        return []
    from nullbooth.inputs.prompts import read_prompts  # which asks for settings itself

    return read_prompts(located(NEGATIVES) if given == "auto" else given, "protect.negatives")


def with_methods(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the methods of the table (`inputs.methods`), whichever it names itself."""
    schema = copy.deepcopy(schema)
    schema["$defs"]["method"]["properties"]["method"]["enum"] = list(METHODS)
    return schema


def _check_weights(config: dict[str, Any]) -> None:
    weights, precision = config["weights"], config["precision"]
    if weights not in ("fp32", precision):
        raise SettingsError(
            f"weights: {weights!r}, but precision is {precision!r}; set both to {weights}, or weights to fp32"
        )
    for i, entry in enumerate(config.get("methods", [])):
        refuse_half(f"methods.{i}.method", entry["method"], weights)


def _check_lifelong(config: dict[str, Any], lists: dict[str, list[Any]]) -> None:
    if named := [entry["name"] for entry in lists["comparison.methods"] if entry["lifelong"]]:
        raise SettingsError(f"comparison.methods: {named[0]}: lifelong is for `methods`; take it away here")
    words = [concept["identifier"] for concept in lists["concepts"]]
    for i, entry in enumerate(lists["methods"]):
        if not entry["lifelong"]:
            continue
        where = f"methods.{i}.lifelong: {entry['lifelong']}"
        train = [{**config["train"], **point["train"]} for point in sweep_points(entry)]
        if any(settings["inversion_steps"] for settings in train) and len(set(words)) < len(words):
            raise SettingsError(f"{where}: with train.inversion_steps each concept needs an identifier of its own")
        if entry["lifelong"] == "merged" or not is_ours(entry):
            continue
        if config["protect"]["pack"]:
            raise SettingsError(
                f"{where}: a pack has no moments for those of subjects to be added to; set protect.pack to null"
            )
        single = "subjects that are known have other weights at each timestep, so that a batch must have a single one"
        if entry["scope"] == "timestep" and any(settings["distinct_timesteps"] != 1 for settings in train):
            raise SettingsError(
                f"{where}: with scope timestep, {single}: set train.distinct_timesteps to 1, or scope to pooled"
            )
        if entry["scope"] == "timestep" and prior_of(entry) == "images":
            raise SettingsError(
                f"{where}: with scope timestep, {single}, and prior: images adds another: take prior: prediction, or "
                "scope: pooled"
            )


def refuse_half(key: str, method: str, weights: str) -> None:
    """Refuse methods that need the weights in full. Raises SettingsError."""
    if weights != "fp32" and METHODS[method].own_weights:
        raise SettingsError(f"{key}: {method!r} needs weights: fp32, not {weights}; take that, or another method")


def sweep_points(method: dict[str, Any]) -> list[dict[str, Any]]:
    """A method once for each entry of its `sweep`, with those training settings and a name that says them."""
    points = []
    for changes in method["sweep"]:
        name = "-".join([method["name"], *(f"{key}{value}" for key, value in sorted(changes.items()))])
        points.append({**method, "name": name, "curve": method["name"], "train": {**method["train"], **changes}})
    return points


def compared_points(comparison: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The points of all curves by name: each method at each entry of its `sweep`, drawn at each of the `scales`.

    `run` names the method whose adapter a point scales, and `line` the points that are joined: those of one adapter, or
    those of one method if there is but one scale.
    """
    found = {}
    for point in (point for method in comparison["methods"] for point in sweep_points(method)):
        for scale in sorted(comparison["scales"]):
            name = point["name"] if scale == 1 else f"{point['name']}@{scale}"
            line = point["name"] if len(comparison["scales"]) > 1 else point["curve"]
            found[name] = {**point, "name": name, "run": point["name"], "line": line, "scale": float(scale)}
    return found


def subject_words(concept: dict[str, Any]) -> dict[str, str]:
    """What {subject} and {class} stand for in the prompts of a concept."""
    return {"subject": f"{concept['identifier']} {concept['class']}", "class": concept["class"]}


def fill_prompt(prompt: str, words: dict[str, str]) -> str:
    """`prompt` with its {subject} and {class} replaced. Raises SettingsError for any other placeholder, those of other
    tools included."""
    for name, value in words.items():
        prompt = prompt.replace(f"{{{name}}}", value)
    if stray := _STRAY.search(prompt):
        known = " or ".join(f"{{{name}}}" for name in words)
        raise SettingsError(f"{shown(prompt)}: {shown(stray[0])[1:-1]} stands for nothing; use {known}")
    return prompt


def names_subject(text: str, concept: dict[str, Any]) -> bool:
    """Whether a prompt or caption names a concept, by {subject} or by its identifier."""
    return "{subject}" in text or word_in(concept["identifier"], text)


def word_in(word: str, text: str) -> bool:
    """Whether a word stands in a text, in whatever capitals."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def _is_integer(_checker: Any, value: object) -> bool:
    """JSON Schema takes 3.0 for an integer, Python's range does not."""
    return isinstance(value, int) and not isinstance(value, bool)


_Validator: Any = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)


def _check_usable(config: dict[str, Any]) -> None:
    if found := list(_unusable(config, "")):
        raise SettingsError("\n".join(found[:_LINES]))


def _unusable(value: Any, where: str, depth: int = 0) -> Iterator[str]:
    """What no setting can be, whatever the schema says. Values that may be secrets are not repeated."""
    if depth > _DEPTH:
        yield f"{where}: nested deeper than {_DEPTH} times; is an anchor (&, *) of YAML part of itself?"
    elif isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(key, str) and len(key) < 100 and not strange_character(key):
                yield from _unusable(inner, f"{where}.{key}".lstrip("."), depth + 1)
            else:
                yield f"{where or 'config'}: the key {shown(key)} is not plain text; put it in quotes"
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _unusable(inner, f"{where}.{i}", depth + 1)
    elif isinstance(value, str):
        if has_secret(value):
            yield f"{where}: a token or password stands in it, and would be shown; for the Hub, set HF_TOKEN instead"
        elif len(value) > _LONGEST:
            yield f"{where}: {shown(value)}: {len(value)} characters; give at most {_LONGEST}"
        elif strange := strange_character(value):
            yield f"{where}: {shown(value)}: the control character {strange} stands in it; remove it"
    elif isinstance(value, int):
        if abs(value) >= 1 << 63:
            yield f"{where}: the number is too large; it must be below 2^63"
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield f"{where}: {value} is not a finite number"
    elif value is not None:
        yield f"{where}: {value} is neither text nor a number; put it in quotes"


def _fill(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> None:
    schema = resolve(schema, root)
    if isinstance(value, dict):
        for key, sub in schema.get("properties", {}).items():
            if "default" in sub and key not in value:
                value[key] = copy.deepcopy(sub["default"])
            if key in value:
                _fill(value[key], sub, root)
    elif isinstance(value, list):
        for item in value:
            _fill(item, schema.get("items", {}), root)


def _explain(error: Any) -> str:
    """The message for an error of jsonschema (ValidationError)."""
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = [key for key in error.instance if key not in known]
        lines = []
        for key in unknown:
            near = difflib.get_close_matches(str(key), known, 1, 0.5)
            mend = f"did you mean {near[0]!r}?" if near else f"keys here are {', '.join(known)}"
            lines.append(f"{f'{where}.' if where else ''}{key}: unknown key; {mend}")
        return "\n".join(lines[:_LINES])
    if error.validator == "anyOf":
        meant = next((sub for sub in error.context if sub.validator == "additionalProperties"), None)
        if meant is not None:
            return _explain(meant)
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f"{where or 'config'}: missing {', '.join(missing)}"
    hint = error.schema.get("description", "").partition(". ")[0].removesuffix(".")
    value = shown(error.instance)
    said = "cannot be used" if error.validator == "pattern" else error.message.replace(repr(error.instance), "")[:200]
    return f"{where}: {value} {said.strip()}" + (f" ({hint})" if hint else "")
