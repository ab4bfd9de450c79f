"""Pack files: a pack's projectors, written in half precision where that leaks next to nothing, and read back."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullbooth import __version__
from nullbooth.errors import InputError
from nullbooth.statistics.packs import FORMAT, HINT, WHAT, described
from nullbooth.statistics.projector import Projector, projector
from nullbooth.statistics.records import EigenStore
from nullbooth.storage.tensorfile import load_tensors, save_tensors

# Store a basis in half precision if its leak then exceeds that of the rank rule by no more than this share.
TOLERANCE = 0.01
ROUNDED, ORTHONORMAL = 1e-2, 1e-5  # largest entries of V^T V - I, in the file and after `orthonormal`


def orthonormal(v: Tensor) -> Tensor:
    """Return the orthonormal basis nearest to `v: [n, k]`, which is orthonormal up to rounding, in float32: two
    Newton-Schulz steps towards its polar factor."""
    v = v.float()
    for _ in range(2):
        v = 1.5 * v - 0.5 * (v @ (v.mT @ v))
    return v


def halved(p: Projector, w: np.ndarray, u: np.ndarray) -> Tensor:
    """Return the basis of a projector `[n, k]` for storage: float16 if the moment with eigenvalues `w: [n]` and
    eigenvectors `u: [n, n]` leaks at most a share TOLERANCE more than through the projector itself, else float32."""
    basis = torch.from_numpy(p.basis)
    rounded = replace(p, basis=orthonormal(basis.half()).numpy())
    rows = (u * np.sqrt(w)).T.astype(np.float32)  # n features whose outer products add up to the moment
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
    """Write a pack from EigenStores, one per timestep or a single pooled one. about: more entries of its description;
    half: allow float16.

    Raises StoreError, and ProjectorError if the rule leaves no direction of a feature free.
    """
    [(name, value)] = rule.items()
    tensors: dict[str, Tensor] = {}
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
    """Return the projectors by site name, and the cached timesteps, like `site_projectors.site_projectors`.

    Raises InputError if the file is not a pack or is broken.
    """
    tensors, metadata = load_tensors(path, FORMAT, WHAT, HINT)
    about = described(path, metadata)
    found: dict[str, list[Projector]] = {}
    for feature in about["features"]:
        projectors = []
        for step, (complement, free) in enumerate(zip(feature["complement"], feature["free"], strict=True)):
            key = f"{step:02d}:{feature['name']}"
            if (f"{key}:gain" in tensors) != ("soft" in about["rule"]):
                raise InputError(f"{path}: {key} has weights without a soft rule, or none with one; {HINT}")
            given = tensors.get(f"{key}:basis", torch.zeros(0))
            shaped = given.ndim == 2 and len(given) == feature["width"] >= given.shape[1]
            if not shaped or not _sound(given.float(), ROUNDED) or not _sound(basis := orthonormal(given), ORTHONORMAL):
                raise InputError(f"{path}: {key} is not an orthonormal basis; {HINT}")
            k = basis.shape[1]
            gain = tensors[f"{key}:gain"].numpy() if "soft" in about["rule"] else np.ones(k, np.float32)
            if gain.shape != (k,) or not ((gain >= 0) & (gain <= 1)).all():
                raise InputError(f"{path}: {key} has weights that are not between 0 and 1; {HINT}")
            projectors.append(Projector(basis.numpy(), gain, complement, free))
        found |= dict.fromkeys(feature["sites"], projectors)
    return found, about["timesteps"]


def _sound(basis: Tensor, tolerance: float) -> bool:
    """Return True if the columns of `basis: [n, k]` are orthonormal, or if there are none."""
    return bool(((basis.mT @ basis - basis.new_ones(basis.shape[1]).diag()).abs() <= tolerance).all())
