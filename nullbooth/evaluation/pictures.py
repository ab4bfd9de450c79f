"""Tensors of the pictures that the workflow drew."""

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from nullbooth.models.pixels import load_image

if TYPE_CHECKING:  # imported late below: the workflow lists and checks photographs without torch
    from torch import Tensor


def read_group(
    folders: dict[Path, list[dict]], group: str, only: set[tuple[str, int]] | None = None
) -> tuple[list[dict], "Tensor"]:
    """Read the pictures of one group of prompts: their entries, and tensors `[n, 3, h, w]` in [-1, 1]. folders: entries
    by folder; only: prompts and seeds to read (None: all)."""
    import torch

    listed = [(entry, folder / entry["file"]) for folder, entries in folders.items() for entry in entries]
    found = [(entry, path) for entry, path in listed if entry["group"] == group]
    if only is not None:
        found = [(entry, path) for entry, path in found if (entry["prompt"], entry["seed"]) in only]
    with Image.open(found[0][1]) as first:
        size = (first.height, first.width)
    return [entry for entry, _ in found], torch.stack([load_image(path, size) for _, path in found])
