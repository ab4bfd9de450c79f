"""Checks a config against its schema, with errors that name the key, the value and the mend."""

import copy
import difflib
import math
import re
from typing import Any

import jsonschema


class SettingsError(ValueError):
    """The config does not fit its schema."""


def complete(config: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A copy of `config` with the schema's defaults filled in, at every depth. Raises SettingsError."""
    config = copy.deepcopy(config)
    _fill(config, schema, schema)
    errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(config), key=lambda e: list(map(str, e.path)))
    if errors:
        raise SettingsError("\n".join(_explain(error) for error in errors))
    compared = config.get("comparison", {}).get("methods", [])
    points = [p["name"] for entry in [*config.get("methods", []), *compared] for p in sweep_points(entry)]
    for kind, names in {
        "concepts": [entry["name"] for entry in config.get("concepts", [])],
        "comparison.methods": [entry["name"] for entry in compared],
        "methods": points,
    }.items():
        if doubled := {name for name in names if names.count(name) > 1}:
            raise SettingsError(f"{kind}: the name {sorted(doubled)[0]!r} is used twice; names must differ")
    return config


def sweep_points(method: dict[str, Any]) -> list[dict[str, Any]]:
    """A method once for each entry of its `sweep`, with those training settings and a name that says them."""
    points = []
    for changes in method["sweep"]:
        name = "-".join([method["name"], *(f"{key}{value}" for key, value in sorted(changes.items()))])
        points.append({**method, "name": name, "curve": method["name"], "train": {**method["train"], **changes}})
    return points


def subject_words(concept: dict[str, Any]) -> dict[str, str]:
    """What {subject} and {class} stand for in the prompts of a concept."""
    return {"subject": f"{concept['identifier']} {concept['class']}", "class": concept["class"]}


def fill_prompt(prompt: str, words: dict[str, str]) -> str:
    """`prompt` with its {subject} and {class} replaced. Raises SettingsError for any other placeholder."""
    for name, value in words.items():
        prompt = prompt.replace(f"{{{name}}}", value)
    if stray := re.search(r"\{\w*\}", prompt):
        known = " or ".join(f"{{{name}}}" for name in words)
        raise SettingsError(f"{prompt!r}: {stray[0]} stands for nothing; use {known}")
    return prompt


def _resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def _fill(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> None:
    schema = _resolve(schema, root)
    if isinstance(value, dict):
        for key, sub in schema.get("properties", {}).items():
            if "default" in sub and key not in value:
                value[key] = copy.deepcopy(sub["default"])
            if key in value:
                _fill(value[key], sub, root)
    elif isinstance(value, list):
        for item in value:
            _fill(item, schema.get("items", {}), root)


def _explain(error: jsonschema.ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = [key for key in error.instance if key not in known]
        lines = []
        for key in unknown:
            near = difflib.get_close_matches(str(key), known, 1, 0.5)
            mend = f"did you mean {near[0]!r}?" if near else f"keys here are {', '.join(known)}"
            lines.append(f"{f'{where}.' if where else ''}{key}: unknown key; {mend}")
        return "\n".join(lines)
    if error.validator == "anyOf":
        meant = next((sub for sub in error.context if sub.validator == "additionalProperties"), None)
        if meant is not None:
            return _explain(meant)
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f"{where or 'config'}: missing {', '.join(missing)}"
    hint = error.schema.get("description", "")
    if error.validator == "type" and _is_number(error.instance):
        hint = "; ".join(
            filter(None, (hint, "this is text: YAML takes 1.0e-3 for a number, not 1e-3, and --config none inside {}"))
        )
    return f"{where}: {error.instance!r}: {error.message}" + (f" ({hint})" if hint else "")


def _is_number(value: Any) -> bool:
    """Whether text spells a number."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False
