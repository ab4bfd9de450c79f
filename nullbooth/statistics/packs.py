"""Packs: the projectors of a model in one file, so that who has it needs no statistics of their own.

A pack has one scope: `pooled` has one projector per feature, `timestep` one per feature and cached step. Its rank rule
was applied when it was made: of each projector it has the thinner basis alone. What it says of itself is read without
torch, for every reading of the workflow looks at it.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from nullbooth import __version__
from nullbooth.errors import InputError, SettingsError
from nullbooth.inputs.methods import is_ours
from nullbooth.inputs.settings import fill_prompt
from nullbooth.inputs.text import shown, strange_character
from nullbooth.models.identity import hub_file
from nullbooth.statistics.projector import RULES, Projector, projector
from nullbooth.storage.digests import remembered_digests

FORMAT = "nullbooth-pack-1"
WHAT, MEND = "a NullBooth pack", "copy it again, or make it again (snakemake pack)"
LONGEST = 100_000_000  # bytes of a header, as safetensors itself has it
# A basis is kept in half precision where that lets through no more than this share beyond what the rank rule does.
TOLERANCE = 0.01
ROUNDED, ORTHONORMAL = 1e-2, 1e-5  # entries of V^T V - I, at most, in the file and after `orthonormal`
KEY = "protect.pack"


def scope_of(method: dict[str, Any]) -> str:
    """The scope of the projectors that a method reads."""
    return "pooled" if method["scope"] == "pooled" else "timestep"


# --- where packs are ------------------------------------------------------------------------------------


def locate(pack: str, scope: str) -> tuple[Path, str]:
    """The file for a scope, and `pack` with the commit in it where it is of the Hub.

    pack: a file, a folder with `{scope}.safetensors` in it, or `owner/name` of the Hub with the same, at a revision
    that `@` may add. Raises InputError or FileNotFoundError.
    """
    place = Path(pack)
    if place.is_file():
        return place, pack
    if place.is_dir():
        if not (place / f"{scope}.safetensors").is_file():
            raise InputError(
                f"{KEY}: {place} has no {scope}.safetensors, for methods of that scope; add it, or leave them out"
            )
        return place / f"{scope}.safetensors", pack
    name, _, revision = pack.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) or name.startswith("."):
        raise InputError(f"{KEY}: {shown(pack)} is neither a file, nor a folder, nor a Hub id (owner/name)")
    path = hub_file(name, revision or None, KEY, f"{scope}.safetensors")
    return path, f"{name}@{path.parent.name}"


def content(path: Path) -> str:
    """What a pack is to caches: its bytes, wherever it lies and whatever it is called."""
    return remembered_digests([path])[0][:16]


# --- what packs say of themselves -------------------------------------------------------------------------


def read_about(path: Path) -> dict[str, Any]:
    """What a pack says of itself, from its header. Raises InputError if the file is no pack, or cut off."""
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
        raise InputError(f"{path}: broken, or no safetensors file; {MEND}") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path}: not {WHAT} (format {shown(metadata.get('format'))}, expected {FORMAT!r})")
    if size != 8 + length + end:
        raise InputError(f"{path}: broken, {size} bytes of {8 + length + end}; {MEND}")
    return _about(path, metadata)


def guided(about: dict[str, Any]) -> bool | None:
    """Whether a pack's prompts were sampled with guidance, by its description; None if that does not say."""
    sampler = about.get("sampler")
    guidance = sampler.get("guidance") if isinstance(sampler, dict) else None
    return guidance > 1 if isinstance(guidance, int | float) else None


def _about(path: Path | str, metadata: dict[str, str]) -> dict[str, Any]:
    """The description in a pack's metadata, all of which came from outside. Raises InputError."""
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
        raise InputError(f"{path}: its description is broken; {MEND}") from error
    if not sound or not about["features"]:
        raise InputError(f"{path}: its description is broken; {MEND}")
    return about


def check(path: Path, about: dict[str, Any], model: str, sites: str, asked: dict[str, float] | None) -> None:
    """Refuse a pack that is of another model or other sites than the config, or of another rule than it asks for.

    model, sites: identities of those of the config; asked: `protect.rule`, if it was set. Raises SettingsError.
    """
    made = about["identity"]
    if made["model"] != model:
        raise SettingsError(
            f"{KEY}: {path} was made for the model {about['model']} ({made['model']}), but `model` is {model}: take a "
            "pack of this model, or the model and revision of the pack"
        )
    if made["sites"] != sites:
        raise SettingsError(
            f"{KEY}: {path} protects the sites [{', '.join(about['sites'])}]: set protect.sites to these, or take "
            "another pack"
        )
    _check_rule(path, about, asked, "protect.rule")


def check_method(method: dict[str, Any], packs: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """Refuse a method that none of the packs, by scope, serves. Raises SettingsError."""
    if not is_ours(method):
        return
    if scope_of(method) not in packs:
        [(scope, (path, _))] = list(packs.items())[:1]
        raise SettingsError(
            f"{KEY}: {path} is of scope {scope}, but the method {method['name']} has scope {method['scope']}: give a "
            f"folder or Hub id that has {scope_of(method)}.safetensors too, or leave the method out"
        )
    path, about = packs[scope_of(method)]
    _check_rule(path, about, method["rule"], f"the rule of the method {method['name']}")


def _check_rule(path: Path, about: dict[str, Any], asked: dict[str, float] | None, where: str) -> None:
    if asked not in (None, about["rule"]):
        said, has = (f"{{{', '.join(f'{k}: {v}' for k, v in rule.items())}}}" for rule in (asked, about["rule"]))
        raise SettingsError(
            f"{KEY}: {path} was made with the rule {has}, which is fixed, but {where} is {said}: take that away, or "
            "make a pack with it"
        )


def open_packs(pack: str, scopes: Iterable[str], model: str, sites: str, asked: dict[str, float] | None):
    """The packs for these scopes, each as path and description, and `pack` with its commit; see `check`.

    Those of several scopes must protect the same prompts. A file has one scope, whichever is asked for.
    """
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for scope in sorted(scopes):
        path, pack = locate(pack, scope)
        about = read_about(path)
        check(path, about, model, sites, asked)
        if path.name == f"{scope}.safetensors" and not Path(pack).is_file() and about["scope"] != scope:
            raise SettingsError(f"{KEY}: {path} is of scope {about['scope']}, not what its name says: rename it")
        found[about["scope"]] = path, about
    if len({tuple(about["prompts"]) for _, about in found.values()}) > 1:
        raise SettingsError(f"{KEY}: the packs in {pack} protect different prompts: take those of one run")
    return found, pack


# --- what is in them ----------------------------------------------------------------------------------


def orthonormal(v):
    """The orthonormal basis `[n, k]` float32 nearest to a basis that is orthonormal but for rounding: two steps of
    Newton and Schulz towards its polar factor."""
    v = v.float()
    for _ in range(2):
        v = 1.5 * v - 0.5 * (v @ (v.mT @ v))
    return v


def halved(p: Projector, w: np.ndarray, u: np.ndarray):
    """A projector's basis as it is kept, `[n, k]`: float16 if that lets no more than a share TOLERANCE more through
    than the projector itself of the moment with eigenvalues `w: [n]` and eigenvectors `u: [n, n]`; else float32."""
    import torch

    basis = torch.from_numpy(p.basis)
    rounded = replace(p, basis=orthonormal(basis.half()).numpy())
    rows = (u * np.sqrt(w)).T.astype(np.float32)  # as many features, with the same second moment
    passed, allowed = (np.square(q.apply(rows), dtype=np.float64).sum() for q in (rounded, p))
    return basis.half() if passed <= (1 + TOLERANCE) * allowed else basis


def write(
    path: Path | str,
    stores: Sequence[str],
    identity: dict[str, str],
    rule: dict[str, float],
    scope: str,
    half: bool = True,
    **about: Any,
) -> None:
    """Write stores of eigenvectors, one per step or one in all, as a pack. about: what else it says of itself.

    Raises ProjectorError where the rule leaves nothing free.
    """
    import torch

    from nullbooth.statistics.records import EigenStore
    from nullbooth.storage.tensorfile import save_tensors

    [(name, value)] = rule.items()
    tensors: dict[str, torch.Tensor] = {}
    features: dict[str, dict[str, Any]] = {}
    for step, store in enumerate(EigenStore(path, identity) for path in stores):
        for feature in store.features:
            key = feature.name
            w, u = store.values(key), store.vectors(key)
            p = projector(w, u, name, value, f"{key} in store {step}")
            tensors[f"{step:02d}:{key}:basis"] = halved(p, w, u) if half else torch.from_numpy(p.basis)
            if name == "soft":
                tensors[f"{step:02d}:{key}:gain"] = torch.from_numpy(p.gain)
            kept = features.setdefault(key, {**asdict(feature), "complement": [], "free": []})
            kept["complement"].append(p.complement)
            kept["free"].append(p.free)
    known = store.kept("timesteps", "denoiser")
    said = {"scope": scope, "identity": identity, "rule": rule, "features": list(features.values()), **known, **about}
    save_tensors(path, tensors, {"format": FORMAT, "about": json.dumps({**said, "version": __version__})})


def read(path: Path | str) -> tuple[dict[str, list[Projector]], list[float]]:
    """Projectors of every site, and the cached timesteps, as nullbooth.statistics.site_projectors gives them.

    Raises InputError if the file is no pack, or broken.
    """
    import torch

    from nullbooth.storage.tensorfile import load_tensors

    tensors, metadata = load_tensors(path, FORMAT, WHAT, MEND)
    about = _about(path, metadata)
    found: dict[str, list[Projector]] = {}
    for feature in about["features"]:
        projectors = []
        for step, (complement, free) in enumerate(zip(feature["complement"], feature["free"], strict=True)):
            key = f"{step:02d}:{feature['name']}"
            if (f"{key}:gain" in tensors) != ("soft" in about["rule"]):
                raise InputError(f"{path}: {key} has weights, or none, unlike what its rule says; {MEND}")
            given = tensors.get(f"{key}:basis", torch.zeros(0))
            shaped = given.ndim == 2 and len(given) == feature["width"] >= given.shape[1]
            if not shaped or not _sound(given.float(), ROUNDED) or not _sound(basis := orthonormal(given), ORTHONORMAL):
                raise InputError(f"{path}: {key} is no orthonormal basis; {MEND}")
            k = basis.shape[1]
            gain = tensors[f"{key}:gain"].numpy() if "soft" in about["rule"] else np.ones(k, np.float32)
            if gain.shape != (k,) or not ((gain >= 0) & (gain <= 1)).all():
                raise InputError(f"{path}: {key} has weights that are not between 0 and 1; {MEND}")
            projectors.append(Projector(basis.numpy(), gain, complement, free))
        found |= dict.fromkeys(feature["sites"], projectors)
    return found, about["timesteps"]


def _sound(basis, tolerance: float) -> bool:
    """Whether the columns of `basis: [n, k]` are orthonormal; also if there are none."""
    return bool(((basis.mT @ basis - basis.new_ones(basis.shape[1]).diag()).abs() <= tolerance).all())
