"""Zarr stores that are complete or absent, record the identity of their inputs, and detect damage."""

import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from nullbooth.errors import StoreError
from nullbooth.storage.atomic import whole
from nullbooth.storage.progress import spent
from nullbooth.storage.seal import HINT, read_attributes, sealed

CHUNK_BYTES = 8 << 20
LIBRARIES = ("numpy", "zarr", "torch", "diffusers")


class _Checked(LocalStore):
    """A folder that records a checksum of each file on writing and compares it on reading.

    Zarr alone reads a missing chunk as zeros, and does not notice most flipped bits.
    """

    def __init__(self, root: Path, checksums: dict[str, int] | None = None):
        super().__init__(root, read_only=checksums is not None)
        self.checksums = {} if checksums is None else checksums

    async def set(self, key: str, value: Any, *args: Any) -> None:
        await super().set(key, value, *args)
        self.checksums[key] = zlib.crc32(value.as_numpy_array())

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        found = await super().get(key, prototype, byte_range)
        if key == "zarr.json":  # contains the checksums, and has its own seal
            return found
        if self.checksums.get(key) != (None if found is None else zlib.crc32(found.as_numpy_array().data)):
            raise StoreError(f"{self.root}: {key} does not match its checksum; {HINT}")
        return found


def write(
    path: Path | str,
    arrays: Mapping[str, Any],
    identity: dict[str, Any],
    *,
    chunk_rows: dict[str, int] | None = None,
    **attributes: Any,
) -> None:
    """Write arrays (compressed, chunked along the first axis) and attributes as a Zarr 3 group, atomically.

    chunk_rows: rows of a chunk, for arrays that are read in slices of that size; chunks of others hold about
    CHUNK_BYTES. Raises OSError that names the store if the disk is full, and StoreError if another process removed
    parts of it; an older store at `path` then stays.
    """
    with whole(path) as partial:
        files = _Checked(partial)
        group = zarr.open_group(files, mode="w", zarr_format=3)
        for name, array in arrays.items():
            array = np.asarray(array)
            rows = (chunk_rows or {}).get(name) or max(1, CHUNK_BYTES // max(1, array[:1].nbytes))
            chunks = (min(rows, max(1, len(array))), *(max(1, n) for n in array.shape[1:]))
            target = group.create_array(name, shape=array.shape, dtype=array.dtype, chunks=chunks)
            for i in range(0, len(array), rows):  # one at a time: parallel writes would go on after an error
                target[i : i + rows] = array[i : i + rows]
        versions = {name: version(name) for name in LIBRARIES}
        made = {"identity": identity, "versions": versions, "arrays": list(arrays), "spent": spent()}
        sums = {key: crc for key, crc in files.checksums.items() if key != "zarr.json"}
        group.attrs.update(sealed({**made, "checksums": sums, **attributes}))
        if gone := _missing(partial, sums):
            raise StoreError(f"{path}: another process removed {gone[0]} while it was written; stop that process")


def read(path: Path | str, identity: dict[str, Any] | None = None) -> zarr.Group:
    """Open a store for reading. Arrays load when sliced, and raise StoreError if their files are damaged.

    Raises StoreError if the store is missing or incomplete, or differs in any key of `identity`.
    """
    path = Path(path)
    attributes = read_attributes(path)
    if gone := _missing(path, attributes["checksums"]):
        raise StoreError(f"{path}: incomplete, {gone[0]} is missing; {HINT}")
    found = attributes["identity"]
    for key, expected in (identity or {}).items():
        if found.get(key) != expected:
            raise StoreError(f"{path}: made for {key} {found.get(key)!r}, but this run has {expected!r}; {HINT}")
    return zarr.open_group(_Checked(path, attributes["checksums"]), mode="r", zarr_format=3)


def _missing(path: Path, checksums: dict[str, int]) -> list[str]:
    return [key for key in checksums if not (path / key).is_file()]


def pack_symmetric(c: NDArray[Any]) -> NDArray[Any]:
    """Return the upper triangle `[n (n + 1) / 2]` of a symmetric matrix `[n, n]`, row by row."""
    return c[np.triu_indices(len(c))]


def unpack_symmetric(packed: NDArray[Any]) -> NDArray[Any]:
    """Return the symmetric matrix `[n, n]` of an upper triangle `[n (n + 1) / 2]`, in the same dtype."""
    n = (int((8 * len(packed) + 1) ** 0.5) - 1) // 2
    c = np.zeros((n, n), packed.dtype)
    c[np.triu_indices(n)] = packed
    return c + np.triu(c, 1).T
