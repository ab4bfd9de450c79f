"""Text that spells what a setting wants: Snakemake's `--config` gives numbers within lists and mappings as text, and
YAML 1.1 takes 1e-4 for text too."""

import math
import re
from typing import Any

import yaml

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_INTEGER = re.compile(r"[-+]?\d+")
_KINDS = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}
_TOO_DEEP = 20
_SCALARS = {"type": ["number", "boolean", "null"]}  # what text is taken for where the schema leaves everything open


def resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """A part of the schema `root`, or what it refers to."""
    return root["$defs"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def typed(value: Any, schema: dict[str, Any], root: dict[str, Any], depth: int = 0) -> Any:
    """A copy of a setting, with text read as a number, boolean, list, object or null where it spells one and the schema
    has no place for text. `null` is read wherever it may stand. Other text stays, for the schema to refuse."""
    parts = _parts(schema, root)
    if isinstance(value, str):
        value = _meant(value, parts)
    if depth > _TOO_DEEP:
        return value
    if isinstance(value, dict):
        known = {key: sub for part in parts for key, sub in part.get("properties", {}).items()}
        others = {} if known else _SCALARS
        return {key: typed(inner, known.get(key, others), root, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        items = next((part["items"] for part in parts if "items" in part), _SCALARS if _SCALARS in parts else {})
        return [typed(inner, items, root, depth + 1) for inner in value]
    return value


def _parts(schema: dict[str, Any], root: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas of which a value must fit all or any."""
    schema = resolve(schema, root)
    inner = [*schema.get("anyOf", ()), *schema.get("allOf", ())]
    return [schema, *(found for part in inner for found in _parts(part, root))]


def _meant(text: str, parts: list[dict[str, Any]]) -> Any:
    """What a text spells, if that is of a kind that is wanted; else the text."""
    kinds, values = set(), []
    for part in parts:
        kinds |= {part["type"]} if isinstance(part.get("type"), str) else set(part.get("type", ()))
        values += part.get("enum", [part["const"]] if "const" in part else [])
    kinds |= {_KINDS.get(type(value), "string") for value in values} - {"string"}
    if text.strip() == "null" and "null" in kinds:
        return None
    if "string" in kinds or text in values or not kinds:
        return text
    found = _spelled(text)
    kind = _KINDS.get(type(found))
    return found if kind in kinds or (kind == "integer" and "number" in kinds) else text


def _spelled(text: str) -> Any:
    """The number, boolean, list, object or null in YAML or JSON, with numbers as 1e-4 too; else the text."""
    text = text.strip()
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) < 20 else text
    if _NUMBER.fullmatch(text):
        return number if math.isfinite(number := float(text)) else text
    if "&" in text:  # anchors could grow without end
        return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
