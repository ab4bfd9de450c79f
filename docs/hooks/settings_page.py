"""Fills docs/reference/settings.md when the site is built, from the schema and the comments of the default config.

`settings()` is the only function that knows where settings come from: replace it to read them from somewhere else.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parents[2] / "config"
MARK = "<!-- settings -->"
# Keys that neither the schema nor the comments describe, or only in part.
DESCRIBED = {
    "sampler": "The sampler. Its timesteps are the ones that are protected.",
    "protect": "The prompts that must not change, and how they are protected.",
    "protect.rule": "How much may leak, which decides how many directions are free to learn in "
    "([rank rules](../protection.md#rank-rule)).",
    "concepts": "The subjects.",
    "concepts.images": "Folder with the photographs to learn from. Captions are in a .txt beside each photograph or in "
    "metadata.jsonl; else `prompt` is the caption.",
    "methods": "How subjects are learned: every method is trained for every concept and seed.",
    "comparison.seeds": "Training seeds of the comparison.",
    "edit": "How edits are solved and measured.",
    "lifelong": "Subjects one after another, for methods with `lifelong`.",
    "train": "Training.",
    "train.steps": "Training steps.",
    "train.batch": "Photographs in a batch.",
    "train.learning_rate": "Learning rate. The default suits the embedded model.",
    "train.schedule": "How the learning rate changes over the training.",
    "train.weight_decay": "Weight decay of the optimiser.",
    "train.max_grad_norm": "Gradients are clipped to this norm.",
    "train.inversion_steps": "Steps in which the text encoders' embedding of the identifier is learned first.",
    "train.inversion_rate": "Learning rate of these steps.",
    "validate": "Validation pictures for the trackers.",
    "sample": "What is drawn and measured.",
    "sample.prompts": "Files of prompts, one prompt on each line.",
}
REPEATED = (".train", ".sweep", "rule", "comparison.methods")  # shown once, at their own key
_SECTION = re.compile(r"^# --- ")
_KEY = re.compile(r"^( *)(?:- )?(\w+):(?=\s|$)[^#]*(?:# ?(.*))?$")
_COMMENT = re.compile(r"^( *)# ?(.*)$")
_DISABLED = re.compile(r"(\w+): \{")  # a default in a comment: what is above it is not about the next key
_PAGE = re.compile(r"docs/(\w+)\.md")
_SPECIAL = re.compile(r"([*_{}\[\]<])")


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
    said = comments((CONFIG / "config.yaml").read_text(encoding="utf-8"))
    return list(_settings(schema, schema, said, ""))


def _settings(part: dict[str, Any], root: dict[str, Any], said: dict[str, str], where: str) -> Iterator[Setting]:
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
        text = DESCRIBED.get(key) or sentence(said.get(key) or inner.get("description", ""))
        yield Setting(key, values, default, text)
        yield from _settings(nested, root, said, f"{key}.")


def _resolved(part: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    return root["$defs"][part["$ref"].rsplit("/", 1)[1]] if "$ref" in part else part


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def sentence(text: str) -> str:
    """A comment as Markdown, with a capital unless it begins with a value, and a full stop."""
    parts = text.split("`")
    parts[::2] = [_SPECIAL.sub(r"\\\1", part) for part in parts[::2]]
    text = _PAGE.sub(r"[\1](../\1.md)", "`".join(parts))
    if text and not re.match(r"[\w.]+:|\w+\d", text):
        text = text[0].upper() + text[1:]
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


def comments(text: str) -> dict[str, str]:
    """What the default config says of each key: the comment lines above it, then the comment on its line and those that
    go on below that one."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    going_on, column = "", 0
    for line in text.splitlines():
        comment, key = _COMMENT.match(line), _KEY.match(line)
        if not line.strip() or _SECTION.match(line):
            above, going_on = [], ""
        elif comment and going_on and len(comment[1]) >= column:
            found[going_on] += f" {comment[2].strip()}"
        elif comment:
            above = [] if _DISABLED.match(comment[2]) else [*above, comment[2].strip()]
            going_on = ""
        elif key:
            indent = len(key[1]) + (2 if line.lstrip().startswith("- ") else 0)
            path = [*((depth, name) for depth, name in path if depth < indent), (indent, key[2])]
            name = ".".join(name for _, name in path)
            said = " ".join(filter(None, [*above, key[3] or ""])).strip()
            going_on, column = (name, line.find("#")) if key[3] and name not in found else ("", 0)
            if said and name not in found:
                found[name] = said
            above = []
    return found
