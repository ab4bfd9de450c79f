"""Folders of pictures that the workflow drew, each with an `images.json` that lists them."""

from pathlib import Path
from typing import Any

from PIL import Image

from nullbooth.storage.atomic import read_json


def read_drawn(folder: Path, identity: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of `images.json` in a folder of drawn pictures.

    Raises ValueError if it or a listed picture is damaged or missing, or if it differs in any key of `identity`.
    """
    hint = f"delete {folder} and run the same command again"
    found = read_json(folder / "images.json", folder)
    for key, expected in (identity or {}).items():
        if (made_for := found["identity"].get(key)) != expected:
            raise ValueError(f"{folder}: drawn with {key} {made_for!r}, but this run has {expected!r}; {hint}")
    for entry in [*found["images"], *found.get("attention", [])]:
        path = folder / entry["file"]
        try:
            with Image.open(path) as image:
                image.verify()  # loading alone does not compare the checksums
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path}: missing or damaged ({error}); {hint}") from error
    return found
