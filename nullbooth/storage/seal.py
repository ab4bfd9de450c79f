"""What a store says of itself, sealed; read without Zarr's library, which takes longer to load than all the rest."""

from pathlib import Path
from typing import Any

from nullbooth.errors import StoreError
from nullbooth.storage.atomic import read_json
from nullbooth.storage.digests import digest

MEND = "delete the store and run its rule again"


def sealed(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes with a seal by which damage to them is noticed."""
    return {**attributes, "seal": digest(attributes)}


def read_attributes(store: Path) -> dict[str, Any]:
    """Attributes of a store. Raises StoreError if there is none, or if they are not what was written."""
    path = store / "zarr.json"
    if not path.is_file():
        raise StoreError(f"{store}: there is no Zarr store here")
    found = read_json(path, store)
    attributes = found.get("attributes", {})
    inside = {key: value for key, value in attributes.items() if key != "seal"}
    if found != {"attributes": sealed(inside), "zarr_format": 3, "node_type": "group"}:
        raise StoreError(f"{path}: damaged, or not written by this version of NullBooth; {MEND}")
    return attributes
