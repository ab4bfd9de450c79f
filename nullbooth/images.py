"""Photographs of a concept and their captions."""

import json
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps, WebPImagePlugin  # noqa: F401 (Pillow knows WebP once this is imported)

from nullbooth.files import read_json
from nullbooth.text import InputError, read_text, shown, strange_character

if TYPE_CHECKING:  # late below: the workflow lists and checks photographs without torch
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_UNREAD = (".heic", ".heif", ".avif", ".jxl", ".tif", ".tiff", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # by content; others of Pillow's run programs (EPS)
_PIXELS = 89_478_485  # Pillow's own limit, whatever another library has set it to
_SMALLEST = 16
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)  # what Pillow lets through


def list_images(folder: Path | str, key: str | None = None) -> list[Path]:
    """Image files of a folder, sorted; `key` is the setting that names it. Raises InputError if there are none, and for
    files that cannot be what they seem."""
    named, folder = f"{key}: " if key else "", Path(folder)
    if not folder.is_dir():
        raise InputError(f"{named}{folder}: no such folder of images")
    files = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    if unread := [p for p in files if p.suffix.lower() in _UNREAD]:
        raise InputError(f"{unread[0]}: this format is not read; save the picture as PNG or JPEG")
    paths = [p for p in files if p.suffix.lower() in SUFFIXES]
    for path in paths:
        _stays(path)
    if not paths:
        raise InputError(f"{named}{folder}: no image in it ({', '.join(SUFFIXES)})")
    return paths


def _stays(path: Path) -> None:
    """Refuse what is no file, and links to what lies elsewhere: results show pictures and captions to others."""
    if not path.is_file():
        raise InputError(f"{path}: not a file; remove it")
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise InputError(f"{path}: a link that leaves its folder; copy the file here instead")


def open_image(path: Path, check: bool = False) -> Image.Image:
    """A photograph as an RGB image: turned as EXIF says, 16 bits scaled to 8, transparency over white.

    Raises InputError if it is not a readable picture, moves, or is so large that it may be an attack. To `check` a
    picture, small ones are refused too, and JPEGs decoded at an eighth of their size: every byte is still read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                _refuse(path, image, _SMALLEST if check else 1)
                if check:
                    image.draft("RGB", (_SMALLEST, _SMALLEST))
                return _as_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path}: {error}; scale it down") from error
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError(f"{path}: not a readable image ({error}); save it again, or remove it") from error


def _refuse(path: Path, image: Image.Image, smallest: int) -> None:
    size = f"{path}: {image.width} x {image.height} pixels"
    if image.width * image.height > _PIXELS:
        raise InputError(f"{size}, more than can be opened safely; scale it down")
    if min(image.size) < smallest:
        raise InputError(f"{size}, too few to learn from; give at least {smallest} on each side")
    if getattr(image, "is_animated", False) and image.format != "MPO":  # telephones put a second view into JPEGs
        raise InputError(f"{path}: an animated {image.format}; save the one picture that you mean as PNG or JPEG")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white
        import numpy as np

        return Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def load_image(path: Path, size: int | tuple[int, int]) -> "Tensor":
    """A photograph (`open_image`) as float32 `[3, h, w]` in [-1, 1], centre-cropped and resized."""
    import numpy as np
    import torch

    height, width = (size, size) if isinstance(size, int) else size
    image = ImageOps.fit(open_image(path), (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def to_pil(x: "Tensor") -> Image.Image:
    """`[3, h, w]` in [-1, 1] as an 8-bit image."""
    array = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    return Image.fromarray(array.cpu().numpy())


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


def captions(paths: list[Path], default: str) -> list[str]:
    """Caption of each image: from `metadata.jsonl` (file_name, text), else from a .txt beside it, else `default`.

    Raises InputError for a caption that is empty or has no image.
    """
    folder, names, stems = paths[0].parent, {p.name for p in paths}, {p.stem for p in paths}
    beside = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() == ".txt" and not p.name.startswith(".")}
    if stray := sorted(set(beside) - stems):
        raise InputError(f"{beside[stray[0]]}: a caption without an image; rename it as its image, or remove it")
    texts = {stem: _caption(path) for stem, path in beside.items()}
    listed = _listed(folder / "metadata.jsonl", names)
    return [listed.get(path.name) or texts.get(path.stem) or default for path in paths]


def _caption(path: Path) -> str:
    _stays(path)
    if not (text := read_text(path).strip()):
        raise InputError(f"{path}: an empty caption; say what the picture shows, or remove the file")
    return text


def _listed(path: Path, names: set[str]) -> dict[str, str]:
    """Captions of metadata.jsonl by file name; none if it is not there."""
    if not path.exists():
        return {}
    _stays(path)
    found: dict[str, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            entry = json.loads(line)
            name, text = entry["file_name"], entry["text"]
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError("not text")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f'{where}: expected {{"file_name": ..., "text": ...}}, both text') from error
        if name not in names:
            raise InputError(
                f"{where}: {shown(name)}: no such image in {path.parent}; correct the name or remove the line"
            )
        if name in found:
            raise InputError(f"{where}: {name!r} is listed twice; remove one of the lines")
        if not text.strip():
            raise InputError(f"{where}: an empty caption; say what the picture shows, or remove the line")
        if strange := strange_character(text):
            raise InputError(f"{where}: the control character {strange} stands in the text; remove it")
        found[name] = text
    return found
