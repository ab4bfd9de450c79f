"""Fills docs/reference/settings.md from config/schema.yaml when the site is built."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parents[2] / "config"
MARK = "<!-- settings -->"
REPEATED = (".train", ".sweep", "rule", "comparison.methods")  # shown once, at their own key
_PAGE = re.compile(r"docs/(\w+)\.md")
_SPECIAL = re.compile(r"([*_{}\[\]])")


@dataclass(frozen=True)
class Setting:
    """One key, such as `train.steps`. values: what it may be; default: as YAML, or None if it has none."""

    key: str
    values: str
    default: str | None
    description: str


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with all settings at its mark."""
    return markdown.replace(MARK, "\n".join(map(rendered, settings()))) if MARK in markdown else markdown


def rendered(setting: Setting) -> str:
    """Markdown of one setting: a heading that can be linked to, its values and default, and what it does."""
    level = "####" if "." in setting.key else "##"
    anchor = setting.key.replace(".", "-").replace("_", "-")
    facts = [f"**Values:** {setting.values}"] if setting.values else []
    facts += [f"**Default:** `{setting.default}`"] if setting.default is not None else []
    return "\n".join([f"{level} `{setting.key}` {{ #{anchor} }}", "", setting.description, "", " · ".join(facts), ""])


def settings() -> list[Setting]:
    """All settings in the order of the schema."""
    schema = yaml.safe_load((CONFIG / "schema.yaml").read_text(encoding="utf-8"))
    return list(_settings(schema, schema, ""))


def _settings(part: dict[str, Any], root: dict[str, Any], where: str) -> Iterator[Setting]:
    for name, given in part.get("properties", {}).items():
        key, inner = f"{where}{name}", {**_resolved(given, root), **given}
        items = _resolved(inner.get("items", {}), root)
        nested = {} if key.endswith(REPEATED) else inner if "properties" in inner else items
        nested = nested if "properties" in nested else {}
        if not nested or inner is not nested:
            values = "a list of the following" if nested else values_of(inner, root)
        else:
            values = ""
        default = _yaml(inner["default"]) if "default" in inner and (values or not nested) else None
        yield Setting(key, values, default, sentence(inner.get("description", "")))
        yield from _settings(nested, root, f"{key}.")


def _resolved(part: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    return root["$defs"][part["$ref"].rsplit("/", 1)[1]] if "$ref" in part else part


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def sentence(text: str) -> str:
    """A description as Markdown, with links to the pages that it names, and a full stop."""
    parts = text.split("`")
    parts[::2] = [_SPECIAL.sub(r"\\\1", part.replace("<", "&lt;").replace(">", "&gt;")) for part in parts[::2]]
    text = _PAGE.sub(r"[\1](../\1.md)", "`".join(parts))
    return text if not text or text.endswith((".", "?")) else f"{text}."


def values_of(part: dict[str, Any], root: dict[str, Any]) -> str:
    """What a setting may be, in words."""
    if "enum" in part:
        return ", ".join(f"`{_yaml(value)}`" for value in part["enum"])
    if "const" in part:
        return f"`{part['const']}`"
    if "anyOf" in part:
        return ", or ".join(values_of({**_resolved(entry, root), **entry}, root) for entry in part["anyOf"])
    if part.get("maxProperties") == 1:
        return "one of " + ", ".join(f"`{{{name}: …}}`" for name in part["properties"])
    kinds = [part["type"]] if isinstance(part.get("type"), str) else part.get("type", ["object"])
    known = {
        "string": "text",
        "boolean": "`true` or `false`",
        "array": "a list",
        "object": "a mapping",
        "null": "`null`",
    }
    found = " or ".join(known.get(kind, f"{'an' if kind == 'integer' else 'a'} {kind}") for kind in kinds)
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return ", ".join([found, *(f"{words} {part[limit]}" for limit, words in limits.items() if limit in part)])
