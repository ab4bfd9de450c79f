"""Stores of the statistics: denoiser inputs, second moments, eigenvectors. No other module knows their keys.

Each is a Zarr store (`storage.zarrstore`), opened at construction: a store that is missing, damaged, or made for
another identity raises StoreError. Arrays are read when they are asked for.
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

if TYPE_CHECKING:  # imported in the methods: jobs that read moments alone start without torch
    from torch import Tensor

    from nullbooth.models.calls import Trajectory


class _Record:
    """A store, its attributes and its arrays."""

    def __init__(self, path: Path | str, identity: Mapping[str, Any] | None = None):
        """identity: what the store must have been made for; None accepts any. Raises StoreError."""
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
    """What the denoiser was given while `n` prompts were sampled in `C` calls of it.

    timesteps: `[C]`, as the denoiser was given them; cached: those of the sampler's steps, one for each step.
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
        """Noisy latents `[n, ...]` of one call, float32."""
        import torch

        return torch.from_numpy(np.asarray(self._array("latents")[call]))

    def conditions(self) -> dict[str, "Tensor"]:
        """Tensors `[branches, n, ...]` by keyword of the denoiser; branches: without and with the prompt."""
        return self._kind("condition")

    def constants(self) -> dict[str, "Tensor"]:
        """Tensors by keyword of the denoiser that are the same for all prompts."""
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
        """Store a trajectory, whole or not at all."""
        arrays: dict[str, Any] = {"latents": trajectory.latents.numpy(), "timesteps": trajectory.timesteps}
        arrays["cached"] = cached
        for kind, values in (("condition", trajectory.conditions), ("constant", trajectory.constants)):
            arrays |= {f"{kind}:{name}": value.numpy() for name, value in values.items()}
        zarrstore.write(path, arrays, identity, chunk_rows={"latents": 1}, prompts=prompts, seed=seed)


class _ByFeature(_Record):
    """A store with arrays for every feature.

    timesteps: of the sampler's steps; timestep: the one that the store is of, None if it is of all.
    """

    def __init__(self, path: Path | str, identity: Mapping[str, Any] | None = None):
        super().__init__(path, identity)
        given = self.about["features"]
        self.features = [Feature(f["name"], tuple(f["sites"]), f["width"], f["static"]) for f in given]
        self.timesteps: list[float] = list(self.about["timesteps"])
        self.timestep: float | None = self.about.get("timestep")

    def kept(self, *keys: str) -> dict[str, Any]:
        """Attributes by name, for a store that is made from this one."""
        return {key: self.about[key] for key in keys}


class MomentStore(_ByFeature):
    """Second moments of features, uncentred, as sums of outer products over rows.

    A store holds one timestep, or the mean of all (`timestep` is None), or every timestep of its own. Of the last kind
    arrays are asked for with the number `step` of the timestep.
    """

    def rows(self, name: str, step: int | None = None) -> int:
        """How many rows a sum has."""
        return self.about["rows"][_key(name, step)]

    def weight(self, name: str) -> int:
        """How many rows of one timestep a mean over all timesteps stands for."""
        return self.about["weights"][name]

    def sum(self, name: str, step: int | None = None) -> NDArray:
        """The sum of outer products, its upper triangle `[n (n + 1) / 2]` in float64."""
        return self._values(_key(name, step))

    def second_moment(self, name: str, step: int | None = None) -> NDArray:
        """The mean outer product `[n, n]` over rows, float64."""
        return zarrstore.unpack_symmetric(self.sum(name, step)) / self.rows(name, step)

    def mean_moment(self, name: str, steps: list[int]) -> NDArray:
        """The mean of `second_moment` over timesteps `[n, n]`."""
        total = self.second_moment(name, steps[0])
        for step in steps[1:]:
            total += self.second_moment(name, step)
        return total / len(steps)

    @staticmethod
    def write(
        path: Path | str,
        sums: Mapping[tuple[str, int | None], NDArray],
        rows: Mapping[tuple[str, int | None], int],
        features: list[Feature],
        identity: dict[str, Any],
        **about: Any,
    ) -> None:
        """Store sums `[n (n + 1) / 2]` and numbers of rows by feature and step. about: timesteps, other attributes."""
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
        """Ascending eigenvalues `[n]`, float64."""
        return self._values(f"{name}:values")

    def vectors(self, name: str) -> NDArray:
        """Eigenvectors `[n, n]` in columns, float32."""
        return self._values(f"{name}:vectors")

    def reference(self, name: str) -> NDArray | None:
        """Eigenvalues `[n]` of the protected prompts alone, if subjects were added to them."""
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
        """Store eigenvalues and eigenvectors by feature, and references where there are any."""
        arrays: dict[str, NDArray] = {}
        for name, (values, vectors) in pairs.items():
            if name in references:
                arrays[f"{name}:protected"] = references[name]
            arrays |= {f"{name}:values": values, f"{name}:vectors": vectors}
        kept = made_from.kept("rows", "features", "timestep", "timesteps", "denoiser")
        zarrstore.write(path, arrays, identity, **kept)


def _key(name: str, step: int | None) -> str:
    return name if step is None else f"{step:02d}:{name}"
