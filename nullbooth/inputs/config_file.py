"""config/config.yaml, written from config/schema.yaml: python -m nullbooth.inputs.config_file (make settings)."""

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from nullbooth.inputs.settings import read_schema
from nullbooth.inputs.shipped import shipped
from nullbooth.inputs.typed import resolve
from nullbooth.storage.atomic import write_text

WIDTH, COLUMN = 120, 29  # of lines, and of comments behind short ones
_HEAD = """\
# Settings of NullBooth, with their defaults. Generated from config/schema.yaml (make settings). Change them in a file
# of your own, which needs only the keys that differ: snakemake --configfile mine.yaml (lists replace those here).
"""


def config_text(root: dict[str, Any]) -> str:
    """Return the commented default settings as YAML: every key with its default, or with its first example."""
    return _HEAD + "\n".join(_properties(root, root, 0)) + "\n"


def value_of(part: dict[str, Any]) -> Any:
    """Return the value that config/config.yaml has for a setting."""
    return part["examples"][0] if "examples" in part else part["default"]


def _properties(part: dict[str, Any], root: dict[str, Any], indent: int) -> Iterator[str]:
    for name, given in part["properties"].items():
        inner = {**resolve(given, root), **given}
        if title := inner.get("x-section"):
            yield f"\n# --- {title} ".ljust(100, "-")
        yield from _setting(name, inner, root, indent)


def _setting(name: str, part: dict[str, Any], root: dict[str, Any], indent: int) -> Iterator[str]:
    said = part["description"]
    if part.get("x-section") == said.removesuffix("."):
        said = ""
    items = resolve(part.get("items", {}), root)
    if "properties" in part and "x-commented" not in part:
        yield from _commented(f"{name}:", said, indent)
        yield from _properties(part, root, indent + 2)
    elif "properties" in items and part.get("examples"):
        yield from _commented(f"{name}:", said, indent)
        for i, entry in enumerate(value_of(part)):
            yield from _entry(entry, items if i == 0 and "x-section" in part else {}, indent + 2)
    elif "x-commented" in part:
        yield from _comment(said, indent)
        yield from _comment(f"{name}: {flow(part['default'])}  # {part['x-commented']}", indent)
    elif len(line := f"{' ' * indent}{name}: {flow(value_of(part))}") > WIDTH:
        yield from _commented(f"{name}:", said, indent)
        yield from (f"{' ' * (indent + 2)}- {flow(entry)}" for entry in value_of(part))
    else:
        yield from _commented(line.lstrip(), said, indent)


def _entry(entry: dict[str, Any], items: dict[str, Any], indent: int) -> Iterator[str]:
    """Lines of one entry of a list: with descriptions as a block, without them on one line if there is room."""
    line = f"{' ' * indent}- {flow(entry)}"
    if not items and len(line) <= WIDTH and "images" not in entry:
        yield line
        return
    if not items and "images" not in entry:
        # Break lines between entries, not between a key and its value.
        lines = textwrap.wrap(line.replace(": ", ":\0"), WIDTH, subsequent_indent=" " * (indent + 3))
        yield from (part.replace("\0", " ") for part in lines)
        return
    mark = "- "
    for key, value in entry.items():
        said = items["properties"][key]["description"] if items else ""
        lines = list(_commented(f"{key}: {flow(value)}", said, indent + 2))
        if mark.strip() and lines[0].lstrip().startswith("#"):  # the dash stands before the key, not the comment
            yield from lines[:-1]
            lines = lines[-1:]
        yield " " * indent + mark + lines[0].lstrip()
        yield from lines[1:]
        mark = "  "


def _commented(line: str, said: str, indent: int) -> Iterator[str]:
    """A line with its comment behind it, or above it if that is too long."""
    line = " " * indent + line
    behind = f"{line.ljust(COLUMN - 1)} # {said.removesuffix('.')}" if len(line) < COLUMN else f"{line}  # {said}"
    if said and len(behind) <= WIDTH:
        yield behind.removesuffix(".")
        return
    yield from _comment(said, indent)
    yield line


def _comment(said: str, indent: int) -> Iterator[str]:
    start = " " * indent + "# "
    yield from textwrap.wrap(
        said, WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False, break_long_words=False
    )


def flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).removesuffix("\n...\n").strip()


if __name__ == "__main__":
    write_text(shipped("config/config.yaml"), config_text(read_schema()))
