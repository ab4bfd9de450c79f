"""Packs: the projectors of a model in one file, so that users of the file need not compute statistics.

A pack has one scope: `pooled` has one projector per feature, `timestep` one per feature and cached timestep. Its rank
rule was applied when it was made: it holds only the thinner basis of each projector (`pack_file`). This module finds
packs and checks their descriptions. It imports no torch, because the rules read descriptions.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nullbooth.errors import InputError, SettingsError
from nullbooth.inputs.methods import is_ours
from nullbooth.inputs.settings import fill_prompt
from nullbooth.inputs.text import shown, strange_character
from nullbooth.models.identity import hub_file
from nullbooth.statistics.projector import RULES
from nullbooth.storage.digests import remembered_digests

FORMAT = "nullbooth-pack-1"
WHAT, HINT = "a NullBooth pack", "copy it again, or rebuild it (snakemake pack)"
LONGEST = 100_000_000  # bytes of a header, the limit of safetensors itself
KEY = "protect.pack"


def scope_of(method: dict[str, Any]) -> str:
    """Return the scope of the projectors that a method needs, `pooled` or `timestep`."""
    return "pooled" if method["scope"] == "pooled" else "timestep"


# --- locating packs -------------------------------------------------------------------------------------


def locate(pack: str, scope: str) -> tuple[Path, str]:
    """Return the file for a scope, and `pack`, with its commit added if it is on the Hub.

    pack: a file, a folder that contains `{scope}.safetensors`, or a Hub id `owner/name` or `owner/name@revision` of a
    repository that contains it. Raises InputError or FileNotFoundError.
    """
    place = Path(pack)
    if place.is_file():
        return place, pack
    if place.is_dir():
        if not (place / f"{scope}.safetensors").is_file():
            raise InputError(
                f"{KEY}: {place} has no {scope}.safetensors, which methods of that scope need; add it or remove them"
            )
        return place / f"{scope}.safetensors", pack
    name, _, revision = pack.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) or name.startswith("."):
        raise InputError(f"{KEY}: {shown(pack)} is neither a file, nor a folder, nor a Hub id (owner/name)")
    path = hub_file(name, revision or None, KEY, f"{scope}.safetensors")
    return path, f"{name}@{path.parent.name}"


def content(path: Path) -> str:
    """Content hash of a pack for caches, 16 hex digits; independent of its path."""
    return remembered_digests([path])[0][:16]


# --- descriptions of packs --------------------------------------------------------------------------------


def read_about(path: Path) -> dict[str, Any]:
    """Return the description in a pack's header. Raises InputError if the file is not a pack or is truncated."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, LONGEST):
                raise ValueError("no header")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        end = max(entry["data_offsets"][1] for entry in header.values())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(f"{path}: broken, or not a safetensors file; {HINT}") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path}: not {WHAT} (format {shown(metadata.get('format'))}, expected {FORMAT!r})")
    if size != 8 + length + end:
        raise InputError(f"{path}: broken, {size} bytes of {8 + length + end}; {HINT}")
    return described(path, metadata)


def guided(about: dict[str, Any]) -> bool | None:
    """Return whether a pack's prompts were sampled with guidance, or None if its description does not say."""
    sampler = about.get("sampler")
    guidance = sampler.get("guidance") if isinstance(sampler, dict) else None
    return guidance > 1 if isinstance(guidance, int | float) else None


def described(path: Path | str, metadata: dict[str, str]) -> dict[str, Any]:
    """Validate and return the description in a pack's metadata, which is untrusted input. Raises InputError."""
    try:
        about = json.loads(metadata["about"])
        [(rule, value)] = about["rule"].items()
        sound = about["scope"] in ("pooled", "timestep") and rule in RULES and float(value) > 0
        sound &= all(isinstance(about["identity"][key], str) for key in ("model", "prompts", "sampler", "sites"))
        sound &= bool(about["timesteps"]) and bool(np.isfinite(np.array(about["timesteps"], dtype=float)).all())
        sound &= isinstance(about["denoiser"], str) and isinstance(about["model"], str)
        sound &= all(isinstance(entry, str) for entry in about["sites"])
        sound &= bool(about["prompts"]) and not any(map(strange_character, about["prompts"]))
        for prompt in about["prompts"]:
            fill_prompt(prompt, {"subject": "", "class": ""})
        for feature in about["features"]:
            steps = 1 if feature["static"] or about["scope"] == "pooled" else len(about["timesteps"])
            sound &= len(feature["complement"]) == len(feature["free"]) == steps and feature["width"] > 0
            sound &= feature["name"] in feature["sites"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: its description is broken; {HINT}") from error
    if not sound or not about["features"]:
        raise InputError(f"{path}: its description is broken; {HINT}")
    return about


def check(path: Path, about: dict[str, Any], model: str, sites: str, asked: dict[str, float] | None) -> None:
    """Refuse a pack made for another model, other sites, or another rule than the config has.

    model, sites: identities of the config's model and sites; asked: `protect.rule`, or None if it was not set. Raises
    SettingsError.
    """
    made = about["identity"]
    if made["model"] != model:
        raise SettingsError(
            f"{KEY}: {path} was made for the model {about['model']} ({made['model']}), but `model` is {model}: use a "
            "pack of this model, or the model and revision of the pack"
        )
    if made["sites"] != sites:
        raise SettingsError(
            f"{KEY}: {path} protects the sites [{', '.join(about['sites'])}]: set protect.sites to these, or use "
            "another pack"
        )
    _check_rule(path, about, asked, "protect.rule")


def check_method(method: dict[str, Any], packs: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """Refuse a method if no pack, by scope, has the projectors that it needs. Raises SettingsError."""
    if not is_ours(method):
        return
    if scope_of(method) not in packs:
        [(scope, (path, _))] = list(packs.items())[:1]
        raise SettingsError(
            f"{KEY}: {path} is of scope {scope}, but the method {method['name']} has scope {method['scope']}: give a "
            f"folder or Hub id that also has {scope_of(method)}.safetensors, or remove the method"
        )
    path, about = packs[scope_of(method)]
    _check_rule(path, about, method["rule"], f"the rule of the method {method['name']}")


def _check_rule(path: Path, about: dict[str, Any], asked: dict[str, float] | None, where: str) -> None:
    if asked not in (None, about["rule"]):
        said, has = (f"{{{', '.join(f'{k}: {v}' for k, v in rule.items())}}}" for rule in (asked, about["rule"]))
        raise SettingsError(
            f"{KEY}: {path} was made with the rule {has}, which is fixed, but {where} is {said}: remove it, or make a "
            "pack with that rule"
        )


def open_packs(
    pack: str, scopes: Iterable[str], model: str, sites: str, asked: dict[str, float] | None
) -> tuple[dict[str, tuple[Path, dict[str, Any]]], str]:
    """Return path and description of the packs by scope, and `pack` with its commit.

    Packs of several scopes must protect the same prompts. A file has its own scope, whichever one is asked for. Other
    arguments: as in `check`. Raises SettingsError, InputError or FileNotFoundError.
    """
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for scope in sorted(scopes):
        path, pack = locate(pack, scope)
        about = read_about(path)
        check(path, about, model, sites, asked)
        if path.name == f"{scope}.safetensors" and not Path(pack).is_file() and about["scope"] != scope:
            raise SettingsError(f"{KEY}: {path} is of scope {about['scope']}, not of the scope in its name: rename it")
        found[about["scope"]] = path, about
    if len({tuple(about["prompts"]) for _, about in found.values()}) > 1:
        raise SettingsError(f"{KEY}: the packs in {pack} protect different prompts: use packs of one run")
    return found, pack
