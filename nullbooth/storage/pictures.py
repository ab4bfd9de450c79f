"""Folders of pictures that the workflow drew, with `images.json`, which lists them."""

from pathlib import Path
from typing import Any

from PIL import Image

from nullbooth.storage.atomic import read_json


def read_drawn(folder: Path, identity: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `images.json` says of the pictures in a folder that the workflow drew.

    Raises ValueError if it or a picture that it lists is damaged, or if it differs in any key of `identity`.
    """
    mend = f"delete {folder} and run the same command again"
    found = read_json(folder / "images.json", folder)
    for key, expected in (identity or {}).items():
        if (made_for := found["identity"].get(key)) != expected:
            raise ValueError(f"{folder}: drawn with {key} {made_for!r}, but this run has {expected!r}; {mend}")
    for entry in [*found["images"], *found.get("attention", [])]:
        path = folder / entry["file"]
        try:
            with Image.open(path) as image:
                image.verify()  # its checksums, which loading alone does not look at
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path}: missing or damaged ({error}); {mend}") from error
    return found
