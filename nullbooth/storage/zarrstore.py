"""Zarr stores that are either whole or absent, that know what they were made from, and that notice damage."""

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
from nullbooth.storage.seal import MEND, read_attributes, sealed

CHUNK_BYTES = 8 << 20
LIBRARIES = ("numpy", "zarr", "torch", "diffusers")


class _Checked(LocalStore):
    """A folder whose files are summed up when they are written, and compared when they are read.

    Zarr alone would take a chunk that is missing for zeros, and believe most of what a flipped bit turns data into.
    """

    def __init__(self, root: Path, checksums: dict[str, int] | None = None):
        super().__init__(root, read_only=checksums is not None)
        self.checksums = {} if checksums is None else checksums

    async def set(self, key: str, value: Any, *args: Any) -> None:
        await super().set(key, value, *args)
        self.checksums[key] = zlib.crc32(value.as_numpy_array())

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        found = await super().get(key, prototype, byte_range)
        if key == "zarr.json":  # has the checksums in it, and a seal of its own
            return found
        if self.checksums.get(key) != (None if found is None else zlib.crc32(found.as_numpy_array().data)):
            raise StoreError(f"{self.root}: {key} is not what was written there; {MEND}")
        return found


def write(
    path: Path | str,
    arrays: Mapping[str, Any],
    identity: dict[str, Any],
    *,
    chunk_rows: dict[str, int] | None = None,
    **attributes: Any,
) -> None:
    """Write arrays (compressed, chunked along the first axis) and attributes as a Zarr 3 group.

    `chunk_rows` sets the rows of a chunk for an array that is read in slices of that size.

    The store is written beside its final name and moved there when whole. Raises OSError that names it if the disk is
    full; what was there before then stays.
    """
    with whole(path) as partial:
        files = _Checked(partial)
        group = zarr.open_group(files, mode="w", zarr_format=3)
        for name, array in arrays.items():
            array = np.asarray(array)
            rows = (chunk_rows or {}).get(name) or max(1, CHUNK_BYTES // max(1, array[:1].nbytes))
            chunks = (min(rows, max(1, len(array))), *(max(1, n) for n in array.shape[1:]))
            target = group.create_array(name, shape=array.shape, dtype=array.dtype, chunks=chunks)
            for i in range(0, len(array), rows):  # one by one: of several at once, some would go on after an error
                target[i : i + rows] = array[i : i + rows]
        versions = {name: version(name) for name in LIBRARIES}
        made = {"identity": identity, "versions": versions, "arrays": list(arrays), "spent": spent()}
        sums = {key: crc for key, crc in files.checksums.items() if key != "zarr.json"}
        group.attrs.update(sealed({**made, "checksums": sums, **attributes}))
        if gone := _missing(partial, sums):
            raise StoreError(f"{path}: another process removed {gone[0]} while it was written; end the other one")


def read(path: Path | str, identity: dict[str, Any] | None = None) -> zarr.Group:
    """Open a store for reading; arrays load when sliced, and raise StoreError if their files are damaged.

    Raises StoreError if it is not there, is incomplete, or differs in any key of `identity`.
    """
    path = Path(path)
    attributes = read_attributes(path)
    if gone := _missing(path, attributes["checksums"]):
        raise StoreError(f"{path}: incomplete, {gone[0]} is missing; {MEND}")
    found = attributes["identity"]
    for key, expected in (identity or {}).items():
        if found.get(key) != expected:
            raise StoreError(f"{path}: made for {key} {found.get(key)!r}, but this run has {expected!r}; {MEND}")
    return zarr.open_group(_Checked(path, attributes["checksums"]), mode="r", zarr_format=3)


def _missing(path: Path, checksums: dict[str, int]) -> list[str]:
    return [key for key in checksums if not (path / key).is_file()]


def pack_symmetric(c: NDArray[Any]) -> NDArray[Any]:
    """The upper triangle `[n (n + 1) / 2]` of a symmetric matrix `[n, n]`."""
    return c[np.triu_indices(len(c))]


def unpack_symmetric(packed: NDArray[Any]) -> NDArray[Any]:
    """The symmetric matrix of a packed upper triangle."""
    n = (int((8 * len(packed) + 1) ** 0.5) - 1) // 2
    c = np.zeros((n, n), packed.dtype)
    c[np.triu_indices(n)] = packed
    return c + np.triu(c, 1).T
