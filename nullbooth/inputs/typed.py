"""Conversion of text in settings to the types of the schema: Snakemake's `--config` passes numbers within lists and
mappings as text, and YAML 1.1 reads 1e-4 as text."""

import math
import re
from typing import Any

import yaml

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_INTEGER = re.compile(r"[-+]?\d+")
_KINDS = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}
_TOO_DEEP = 20
_SCALARS = {"type": ["number", "boolean", "null"]}  # types to read text as where the schema allows everything


def resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Return a part of the schema `root`, or the definition that it refers to."""
    return root["$defs"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def typed(value: Any, schema: dict[str, Any], root: dict[str, Any], depth: int = 0) -> Any:
    """Return a copy of a setting, with text read as the number, boolean, list or object that it spells, if the schema
    allows no text, and as null wherever the schema allows that. Other text stays, for the schema to refuse."""
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
    """Return a schema and those that it combines by anyOf and allOf."""
    schema = resolve(schema, root)
    inner = [*schema.get("anyOf", ()), *schema.get("allOf", ())]
    return [schema, *(found for part in inner for found in _parts(part, root))]


def _meant(text: str, parts: list[dict[str, Any]]) -> Any:
    """Return what a text spells, if the schemas allow its type and no text; else the text."""
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
    """Return the number (such as 1e-4), boolean, list, object or null that a text spells in YAML or JSON, or itself."""
    text = text.strip()
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) < 20 else text
    if _NUMBER.fullmatch(text):
        return number if math.isfinite(number := float(text)) else text
    if "&" in text:  # aliases of YAML anchors could expand without end
        return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
