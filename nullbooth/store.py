"""Zarr stores that are either whole or absent, and that know what they were made from."""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

CHUNK_BYTES = 8 << 20
LIBRARIES = ("numpy", "zarr", "torch", "diffusers")


class StoreError(ValueError):
    """A store is missing, broken, or was made from something else."""


def write(
    path: Path | str,
    arrays: dict[str, NDArray],
    identity: dict[str, Any],
    *,
    chunk_rows: dict[str, int] | None = None,
    **attributes: Any,
) -> None:
    """Write arrays (compressed, chunked along the first axis) and attributes as a Zarr 3 group.

    `chunk_rows` sets the rows of a chunk for an array that is read in slices of that size.

    The store is written beside its final name and moved there when whole.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    group = zarr.open_group(partial, mode="w", zarr_format=3)
    for name, array in arrays.items():
        array = np.asarray(array)
        rows = (chunk_rows or {}).get(name) or max(1, CHUNK_BYTES // max(1, array[:1].nbytes))
        chunks = (min(rows, max(1, len(array))), *(max(1, n) for n in array.shape[1:]))
        group.create_array(name, data=array, chunks=chunks)
    versions = {name: version(name) for name in LIBRARIES}
    group.attrs.update({"identity": identity, "versions": versions, "arrays": list(arrays), **attributes})
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)


def read(path: Path | str, identity: dict[str, Any] | None = None) -> zarr.Group:
    """Open a store for reading; arrays load when sliced.

    Raises StoreError if it is not there, is incomplete, or differs in any key of `identity`.
    """
    path = Path(path)
    if not (path / "zarr.json").is_file():
        raise StoreError(f"{path}: there is no Zarr store here")
    group = zarr.open_group(path, mode="r")
    if missing := [name for name in group.attrs.get("arrays", ["?"]) if name not in group]:
        raise StoreError(f"{path}: incomplete, {missing[0]} is missing; delete the store and run its rule again")
    found = group.attrs["identity"]
    for key, expected in (identity or {}).items():
        if found.get(key) != expected:
            raise StoreError(
                f"{path}: made for {key} {found.get(key)!r}, but this run has {expected!r}; "
                "delete the store and run its rule again"
            )
    return group


def pack_symmetric(c: NDArray) -> NDArray:
    """The upper triangle `[n (n + 1) / 2]` of a symmetric matrix `[n, n]`."""
    return c[np.triu_indices(len(c))]


def unpack_symmetric(packed: NDArray) -> NDArray:
    """The symmetric matrix of a packed upper triangle."""
    n = (int((8 * len(packed) + 1) ** 0.5) - 1) // 2
    c = np.zeros((n, n), packed.dtype)
    c[np.triu_indices(n)] = packed
    return c + np.triu(c, 1).T
