"""Stores of the statistics: denoiser inputs, second moments, eigenvectors. No other module knows their keys.

Each is a Zarr store (`storage.zarrstore`). Opening one raises StoreError if it is missing, damaged, or has another
identity. Arrays are read on access.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from nullbooth.models.sites_by_name import Feature
from nullbooth.storage import zarrstore

if TYPE_CHECKING:  # methods import torch themselves: jobs that only read moments start without it
    from torch import Tensor

    from nullbooth.models.calls import Trajectory

FeatureStep = tuple[str, int | None]  # name of a feature and index of a timestep, or None for all of them


class _Record:
    """A store opened for reading, with its attributes in `about`."""

    def __init__(self, path: Path | str, identity: Mapping[str, Any] | None = None):
        """Open a store. identity: keys and values that its own must have; None accepts any. Raises StoreError."""
        self.path = str(path)
        self._group = zarrstore.read(path, dict(identity) if identity is not None else None)
        self.about: dict[str, Any] = dict(self._group.attrs)

    def _array(self, key: str) -> zarr.Array:
        found = self._group[key]
        assert isinstance(found, zarr.Array), key
        return found

    def _values(self, key: str) -> NDArray:
        return np.asarray(self._array(key)[:])


class TrajectoryStore(_Record):
    """Inputs of the denoiser, recorded while `n` prompts were sampled in `C` calls.

    timesteps: `[C]`, one per call of the denoiser; cached: one per step of the sampler.
    """

    def __init__(self, path: Path | str, identity: Mapping[str, Any] | None = None):
        super().__init__(path, identity)
        self.timesteps: list[float] = self._values("timesteps").tolist()
        self.cached: list[float] = self._values("cached").tolist()
        self.shape: tuple[int, ...] = self._array("latents").shape  # [C, n, ...]

    @property
    def prompts(self) -> list[str]:
        return list(self.about["prompts"])

    def latents(self, call: int) -> "Tensor":
        """Return the noisy latents `[n, ...]` float32 of one call."""
        import torch

        return torch.from_numpy(np.asarray(self._array("latents")[call]))

    def conditions(self) -> dict[str, "Tensor"]:
        """Return tensors `[branches, n, ...]` by keyword of the denoiser; branches: without and with the prompt."""
        return self._kind("condition")

    def constants(self) -> dict[str, "Tensor"]:
        """Return tensors by keyword of the denoiser that all prompts share."""
        return self._kind("constant")

    def _kind(self, kind: str) -> dict[str, "Tensor"]:
        import torch

        keys = [key for key in self._group if key.startswith(f"{kind}:")]
        return {key.removeprefix(f"{kind}:"): torch.from_numpy(self._values(key)) for key in keys}

    @staticmethod
    def write(
        path: Path | str,
        trajectory: "Trajectory",
        cached: list[float],
        prompts: list[str],
        seed: int,
        identity: dict[str, Any],
    ) -> None:
        """Store a trajectory atomically."""
        arrays: dict[str, Any] = {"latents": trajectory.latents.numpy(), "timesteps": trajectory.timesteps}
        arrays["cached"] = cached
        for kind, values in (("condition", trajectory.conditions), ("constant", trajectory.constants)):
            arrays |= {f"{kind}:{name}": value.numpy() for name, value in values.items()}
        zarrstore.write(path, arrays, identity, chunk_rows={"latents": 1}, prompts=prompts, seed=seed)


class _ByFeature(_Record):
    """A store with arrays for every feature.

    timesteps: all cached timesteps of the sampler; timestep: the store's own, or None if it covers all of them.
    """

    def __init__(self, path: Path | str, identity: Mapping[str, Any] | None = None):
        super().__init__(path, identity)
        given = self.about["features"]
        self.features = [Feature(f["name"], tuple(f["sites"]), f["width"], f["static"]) for f in given]
        self.timesteps: list[float] = list(self.about["timesteps"])
        self.timestep: float | None = self.about.get("timestep")

    def kept(self, *keys: str) -> dict[str, Any]:
        """Return attributes by name, to copy to a store derived from this one."""
        return {key: self.about[key] for key in keys}


class MomentStore(_ByFeature):
    """Second moments of features, uncentred, as sums of outer products over rows.

    A store holds one timestep, the mean over all timesteps (`timestep` is None), or all timesteps separately. Only the
    last kind takes `step`, the index of a timestep.
    """

    def rows(self, name: str, step: int | None = None) -> int:
        """Return the number of rows in a sum."""
        return self.about["rows"][_key(name, step)]

    def weight(self, name: str) -> int:
        """Return the number of rows per timestep behind a mean over all timesteps."""
        return self.about["weights"][name]

    def sum(self, name: str, step: int | None = None) -> NDArray:
        """Return the sum of outer products as its upper triangle, `[n (n + 1) / 2]` float64."""
        return self._values(_key(name, step))

    def second_moment(self, name: str, step: int | None = None) -> NDArray:
        """Return the mean outer product over rows, `[n, n]` float64."""
        return zarrstore.unpack_symmetric(self.sum(name, step)) / self.rows(name, step)

    def mean_moment(self, name: str, steps: list[int]) -> NDArray:
        """Return the mean of `second_moment` over the timesteps with indices `steps`, `[n, n]` float64."""
        total = self.second_moment(name, steps[0])
        for step in steps[1:]:
            total += self.second_moment(name, step)
        return total / len(steps)

    @staticmethod
    def write(
        path: Path | str,
        sums: Mapping[FeatureStep, NDArray],
        rows: Mapping[FeatureStep, int],
        features: list[Feature],
        identity: dict[str, Any],
        **about: Any,
    ) -> None:
        """Store sums `[n (n + 1) / 2]` and numbers of rows by (feature, step). about: timesteps, other attributes."""
        zarrstore.write(
            path,
            {_key(*key): value for key, value in sums.items()},
            identity,
            rows={_key(*key): n for key, n in rows.items()},
            features=[asdict(feature) for feature in features],
            **about,
        )


class EigenStore(_ByFeature):
    """Eigenvalues and eigenvectors of second moments."""

    def values(self, name: str) -> NDArray:
        """Return the ascending eigenvalues `[n]` float64."""
        return self._values(f"{name}:values")

    def vectors(self, name: str) -> NDArray:
        """Return the eigenvectors `[n, n]` float32, in columns."""
        return self._values(f"{name}:vectors")

    def reference(self, name: str) -> NDArray | None:
        """Return the eigenvalues `[n]` of the protected prompts alone, or None if no subject was added to them."""
        key = f"{name}:protected"
        return self._values(key) if key in self._group else None

    @staticmethod
    def write(
        path: Path | str,
        pairs: Mapping[str, tuple[NDArray, NDArray]],
        references: Mapping[str, NDArray],
        made_from: MomentStore,
        identity: dict[str, Any],
    ) -> None:
        """Store pairs of eigenvalues and eigenvectors by feature, and `reference` eigenvalues if a feature has any."""
        arrays: dict[str, NDArray] = {}
        for name, (values, vectors) in pairs.items():
            if name in references:
                arrays[f"{name}:protected"] = references[name]
            arrays |= {f"{name}:values": values, f"{name}:vectors": vectors}
        kept = made_from.kept("rows", "features", "timestep", "timesteps", "denoiser")
        zarrstore.write(path, arrays, identity, **kept)


def _key(name: str, step: int | None) -> str:
    return name if step is None else f"{step:02d}:{name}"
