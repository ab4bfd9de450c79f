"""Sealed attributes of Zarr stores, read without the zarr package, which is slow to import."""

from pathlib import Path
from typing import Any

from nullbooth.errors import StoreError
from nullbooth.storage.atomic import read_json
from nullbooth.storage.digests import digest

HINT = "delete the store and run its rule again"


def sealed(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes with a `seal`, a digest of them that reveals damage."""
    return {**attributes, "seal": digest(attributes)}


def read_attributes(store: Path) -> dict[str, Any]:
    """Return the attributes of a store. Raises StoreError if there is no store, or if they are damaged."""
    path = store / "zarr.json"
    if not path.is_file():
        raise StoreError(f"{store}: there is no Zarr store here")
    found = read_json(path, store)
    attributes = found.get("attributes", {})
    inside = {key: value for key, value in attributes.items() if key != "seal"}
    if found != {"attributes": sealed(inside), "zarr_format": 3, "node_type": "group"}:
        raise StoreError(f"{path}: damaged, or not written by this version of NullBooth; {HINT}")
    return attributes
