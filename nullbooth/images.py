"""Photographs of a concept and their captions."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def list_images(folder: Path | str) -> list[Path]:
    """Image files of a folder, sorted. Raises if the folder is missing or has none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{folder}: no image in it ({', '.join(SUFFIXES)})")
    return paths


def load_image(path: Path, size: int | tuple[int, int]) -> Tensor:
    """An image as float32 `[3, h, w]` in [-1, 1]: turned as EXIF says, centre-cropped and resized."""
    height, width = (size, size) if isinstance(size, int) else size
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error
    image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def to_pil(x: Tensor) -> Image.Image:
    """`[3, h, w]` in [-1, 1] as an 8-bit image."""
    array = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    return Image.fromarray(array.cpu().numpy())


def captions(paths: list[Path], default: str) -> list[str]:
    """Caption of each image: from `metadata.jsonl` (file_name, text), else from a .txt beside it, else `default`."""
    listed: dict[str, str] = {}
    metadata = paths[0].parent / "metadata.jsonl"
    if metadata.is_file():
        for number, line in enumerate(metadata.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entry = json.loads(line)
                listed[entry["file_name"]] = entry["text"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f'{metadata}:{number}: expected {{"file_name": ..., "text": ...}}') from error
    result = []
    for path in paths:
        beside = path.with_suffix(".txt")
        if path.name in listed:
            result.append(listed[path.name])
        elif beside.is_file():
            result.append(beside.read_text(encoding="utf-8").strip())
        else:
            result.append(default)
    return result
