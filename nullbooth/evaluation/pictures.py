"""Pictures that the workflow drew, as they lie in results."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from nullbooth.models.pixels import load_image
from nullbooth.storage.atomic import read_json

if TYPE_CHECKING:  # late below: the workflow lists and checks photographs without torch
    from torch import Tensor


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


def read_group(
    folders: dict[Path, list[dict]], group: str, only: set[tuple[str, int]] | None = None
) -> tuple[list[dict], "Tensor"]:
    """Entries and pictures `[n, 3, h, w]` in [-1, 1] of one group of prompts. folders: what each of them lists; only:
    prompts and seeds to read, or None for all."""
    import torch

    listed = [(entry, folder / entry["file"]) for folder, entries in folders.items() for entry in entries]
    found = [(entry, path) for entry, path in listed if entry["group"] == group]
    if only is not None:
        found = [(entry, path) for entry, path in found if (entry["prompt"], entry["seed"]) in only]
    with Image.open(found[0][1]) as first:
        size = (first.height, first.width)
    return [entry for entry, _ in found], torch.stack([load_image(path, size) for _, path in found])
