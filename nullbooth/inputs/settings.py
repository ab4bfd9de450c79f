"""Checks of the settings against their schema, with errors that name the key, the value and the fix."""

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
# Packages that some settings need and NullBooth does not install.
PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt", "wandb": "wandb"}
# Names that results cannot have: some are taken, and readers of tables take others for a missing value.
_RESERVED = ("base", "class", "unrelated", "null", "none", "nan", "na")
# Placeholders: braces, and those of ai-toolkit and the web interfaces.
_STRAY = re.compile(
    r"\{[^{}]*\}|\[(?:trigger|trigger[ _]?word|name|filewords|subject|class|identifier|token|instance)\]", re.IGNORECASE
)
_DEPTH = 20  # of nested mappings and lists
_LONGEST = 2000  # characters of one setting
_LINES = 8  # of a message


def read_schema() -> dict[str, Any]:
    """Return the schema of all settings (config/schema.yaml)."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # eight times as fast; every job reads the schema
    with open(shipped("config/schema.yaml"), encoding="utf-8") as file:
        return loader(file).get_single_data()


def complete(config: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of `config` with the schema's defaults filled in at every depth, and text converted to the type
    that its key wants (`typed`). Raises SettingsError."""
    _check_usable(config)
    schema = with_methods(schema)
    config = typed(config, schema, schema)
    _check_usable(config)  # now also what was given as text
    config = copy.deepcopy(config)
    _fill(config, schema, schema)
    errors = sorted(_Validator(schema).iter_errors(config), key=lambda e: list(map(str, e.path)))
    if errors:
        raise SettingsError("\n".join(_explain(error) for error in errors[:_LINES]))
    for path in _PATHS:
        _expand(config, path.split("."))
    config["results"] = os.path.normpath(config["results"])  # to Snakemake, each spelling is another folder
    config["sample"]["prompts"] = _prompt_files(config)
    config["protect"]["negatives"] = _negatives(config)
    given = config["sampler"]["arguments"].get("negative_prompt")
    if given is not None and not isinstance(given, str):
        raise SettingsError(
            f"sampler.arguments.negative_prompt: {shown(given)}: must be text, the same for every prompt"
        )
    _check_weights(config)
    methods = {"methods": config["methods"], "comparison.methods": config["comparison"]["methods"]}
    _check_names({"concepts": config["concepts"], **methods})
    _check_methods(config, methods)
    _check_lifelong(config, methods)
    return config


def _check_names(lists: dict[str, list[dict[str, Any]]]) -> None:
    """Refuse reserved names and names that are used twice. lists: concepts and methods by key."""
    for key, entries in lists.items():
        for i, entry in enumerate(entries):
            if entry["name"].lower() in _RESERVED:
                raise SettingsError(f"{key}.{i}.name: {entry['name']!r} is reserved; choose another name")
    points = [p["name"] for key in ("methods", "comparison.methods") for e in lists[key] for p in sweep_points(e)]
    named = {key: [entry["name"] for entry in lists[key]] for key in ("concepts", "comparison.methods")}
    for key, names in {**named, "methods": points}.items():
        folded = [name.lower() for name in names]  # to some file systems, Dog and dog are one name
        if doubled := [name for name in names if folded.count(name.lower()) > 1]:
            raise SettingsError(
                f"{key}: the name {doubled[-1]!r} is used twice; names must differ in more than upper and lower case"
            )


def _check_methods(config: dict[str, Any], methods: dict[str, list[dict[str, Any]]]) -> None:
    """Refuse options of NullBooth itself for rivals."""
    for key, entries in methods.items():
        for i, entry in enumerate(entries):
            if is_ours(entry):
                continue
            if entry["prior"]:
                raise SettingsError(
                    f"{key}.{i}.prior: {entry['prior']!r} is an option of the method nullbooth; remove it for the "
                    f"rival {entry['method']}"
                )
            if key == "methods" and any(
                {**config["train"], **point["train"]}["timesteps"] == "cached" for point in sweep_points(entry)
            ):
                raise SettingsError(
                    f"{key}.{i}: train.timesteps: cached: only the method nullbooth has cached timesteps; set it to "
                    f"all for the rival {entry['method']}"
                )


# Settings that name files or folders.
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
    """Return the files of prompts by group, without groups that have none."""
    files = dict(config["sample"]["prompts"])
    if files["names"] == "auto":
        files["names"] = located(EMBEDDED_NAMES) if _embedded(config) else None
    return {group: path for group, path in files.items() if path is not None}


def _embedded(config: dict[str, Any]) -> bool:
    """Return True if a model reads prompts as the embedded model does, wherever its folder is."""
    return all(
        own.is_file() and known.is_file() and own.read_bytes() == known.read_bytes()
        for own, known in ((Path(model, part) for model in (config["model"], shipped(EMBEDDED))) for part in _READERS)
    )


def _negatives(config: dict[str, Any]) -> list[str]:
    """Return the negative prompts that are protected. The embedded model has none by default: it needs none."""
    given = config["protect"]["negatives"]
    if not isinstance(given, str):
        return given
    if given == "auto" and _embedded(config):
        return []
    from nullbooth.inputs.prompts import read_prompts  # imports this module

    return read_prompts(located(NEGATIVES) if given == "auto" else given, "protect.negatives")


def with_methods(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with the methods of the table (`inputs.methods`) in place of its own."""
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


def _check_lifelong(config: dict[str, Any], methods: dict[str, list[Any]]) -> None:
    if named := [entry["name"] for entry in methods["comparison.methods"] if entry["lifelong"]]:
        raise SettingsError(f"comparison.methods: {named[0]}: lifelong is an option of `methods`; remove it here")
    words = [concept["identifier"] for concept in config["concepts"]]
    for i, entry in enumerate(methods["methods"]):
        if not entry["lifelong"]:
            continue
        where = f"methods.{i}.lifelong: {entry['lifelong']}"
        train = [{**config["train"], **point["train"]} for point in sweep_points(entry)]
        if any(settings["inversion_steps"] for settings in train) and len(set(words)) < len(words):
            raise SettingsError(f"{where}: with train.inversion_steps every concept needs another identifier")
        if entry["lifelong"] == "merged" or not is_ours(entry):
            continue
        if config["protect"]["pack"]:
            raise SettingsError(
                f"{where}: moments of subjects cannot be added to a pack, which has none; set protect.pack to null"
            )
        single = "earlier subjects change the weights at each timestep, so a batch can have only one timestep"
        if entry["scope"] == "timestep" and any(settings["distinct_timesteps"] != 1 for settings in train):
            raise SettingsError(
                f"{where}: with scope timestep, {single}: set train.distinct_timesteps to 1, or scope to pooled"
            )
        if entry["scope"] == "timestep" and prior_of(entry) == "images":
            raise SettingsError(
                f"{where}: with scope timestep, {single}, but prior: images adds another; set prior to prediction, or "
                "scope to pooled"
            )


def refuse_half(key: str, method: str, weights: str) -> None:
    """Refuse methods that need float32 weights. Raises SettingsError."""
    if weights != "fp32" and METHODS[method].own_weights:
        raise SettingsError(f"{key}: {method!r} needs weights: fp32, not {weights}; set that, or use another method")


def sweep_points(method: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a method once for each entry of its `sweep`, with these training settings and a name that lists them."""
    points = []
    for changes in method["sweep"]:
        name = "-".join([method["name"], *(f"{key}{value}" for key, value in sorted(changes.items()))])
        points.append({**method, "name": name, "curve": method["name"], "train": {**method["train"], **changes}})
    return points


def compared_points(comparison: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the points of all curves by name: each method at each entry of its `sweep`, drawn at each of the `scales`.

    `run` names the method whose adapter a point draws with. Points with the same `line` are joined: those of one
    adapter, or those of one method if there is only one scale.
    """
    found = {}
    for point in (point for method in comparison["methods"] for point in sweep_points(method)):
        for scale in sorted(comparison["scales"]):
            name = point["name"] if scale == 1 else f"{point['name']}@{scale}"
            line = point["name"] if len(comparison["scales"]) > 1 else point["curve"]
            found[name] = {**point, "name": name, "run": point["name"], "line": line, "scale": float(scale)}
    return found


def subject_words(concept: dict[str, Any]) -> dict[str, str]:
    """Return the words that replace {subject} and {class} in the prompts of a concept."""
    return {"subject": f"{concept['identifier']} {concept['class']}", "class": concept["class"]}


def fill_prompt(prompt: str, words: dict[str, str]) -> str:
    """Return `prompt` with its {subject} and {class} replaced. Raises SettingsError for any other placeholder, also for
    those of other tools."""
    for name, value in words.items():
        prompt = prompt.replace(f"{{{name}}}", value)
    if stray := _STRAY.search(prompt):
        known = " or ".join(f"{{{name}}}" for name in words)
        raise SettingsError(f"{shown(prompt)}: unknown placeholder {shown(stray[0])[1:-1]}; use {known}")
    return prompt


def names_subject(text: str, concept: dict[str, Any]) -> bool:
    """Return True if a prompt or caption names a concept, by {subject} or by its identifier."""
    return "{subject}" in text or word_in(concept["identifier"], text)


def word_in(word: str, text: str) -> bool:
    """Return True if a text contains a word, in upper or lower case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def _is_integer(_checker: Any, value: object) -> bool:
    """Accept only int: to JSON Schema 3.0 is an integer too, but not to Python's range."""
    return isinstance(value, int) and not isinstance(value, bool)


_Validator: Any = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)


def _check_usable(config: dict[str, Any]) -> None:
    if found := list(_unusable(config, "")):
        raise SettingsError("\n".join(found[:_LINES]))


def _unusable(value: Any, where: str, depth: int = 0) -> Iterator[str]:
    """Errors of values that no setting can have. Values that may be secrets are not repeated."""
    if depth > _DEPTH:
        yield f"{where}: nested more than {_DEPTH} levels deep; does a YAML anchor (&, *) contain itself?"
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
            yield f"{where}: contains a token or password, which results would show; for the Hub, set HF_TOKEN instead"
        elif len(value) > _LONGEST:
            yield f"{where}: {shown(value)}: has {len(value)} characters; use at most {_LONGEST}"
        elif strange := strange_character(value):
            yield f"{where}: {shown(value)}: contains the control character {strange}; remove it"
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
    """Return the message for an error of jsonschema (ValidationError)."""
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = [key for key in error.instance if key not in known]
        lines = []
        for key in unknown:
            near = difflib.get_close_matches(str(key), known, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"
            lines.append(f"{f'{where}.' if where else ''}{key}: unknown key; {hint}")
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
    said = "is not allowed" if error.validator == "pattern" else error.message.replace(repr(error.instance), "")[:200]
    return f"{where}: {value} {said.strip()}" + (f" ({hint})" if hint else "")
