"""Photographs of a concept and their captions."""

import csv
import io
import json
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError, WebPImagePlugin  # noqa: F401 (Pillow knows WebP once this is imported)

from nullbooth.errors import InputError
from nullbooth.inputs.colour import as_seen, colour_note, seen_anew
from nullbooth.inputs.text import read_text, shown, strange_character
from nullbooth.storage.digests import digest, file_digest

# Recognised by content, whatever the ending. Some other formats make Pillow run programs (EPS).
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
# Endings that browsers show. Earlier versions read only these.
IN_BROWSERS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
# Formats that are read only under their own endings: TGA files, for one, have no signature.
_OWN = {
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), "JPEG2000"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **dict.fromkeys((".tga", ".vda", ".icb", ".vst"), "TGA"),
    ".avif": "AVIF",
    ".dib": "DIB",
}
SUFFIXES = (*IN_BROWSERS, ".jfif", ".jpe", ".jif", ".jfi", ".mpo", ".apng", *_OWN)
# Formats that are not read. Such pictures are refused, unless the same picture is beside them in another format.
_UNREAD = (
    *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".psd", ".psb", ".xcf", ".kra", ".exr", ".hdr", ".qoi"),
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".raf", ".orf", ".rw2", ".pef", ".srw"),
    *(".x3f", ".rwl", ".3fr", ".iiq", ".erf", ".kdc", ".mrw", ".dcr", ".raw", ".avifs"),
)
_CAPTIONS = (".txt", ".caption")  # beside a photograph, under its name
_METADATA = ("metadata.jsonl", "metadata.csv")  # of a folder, as in ImageFolder of datasets
# Files that systems leave in folders, besides hidden ones; the name of Finder's icon ends in a carriage return.
_LEFT = (
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "__macosx", "#recycle", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__"),
)
_PIXELS = 89_478_485  # Pillow's default limit, which other libraries may have changed
_SMALLEST = 16
_JP2_HEADER = 1 << 20  # bytes in which a profile is searched
_MOST_NAMED = 20  # files in one message
_MOST_SOUGHT = 20_000  # files in subfolders
# Exceptions that Pillow and its decoders raise for broken files.
_BROKEN = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, SyntaxError, EOFError),
    *(struct.error, zlib.error),
)


def list_images(folder: Path | str, key: str | None = None) -> list[Path]:
    """Return the image files of a folder, sorted. key: setting that names it. Raises InputError if there are none, and
    for unread formats, links to other folders and names that look the same."""
    named, folder = f"{key}: " if key else "", Path(folder)
    if not folder.is_dir():
        raise InputError(f"{named}{folder}: no such folder of images")
    files = _entries(folder)
    paths = [p for p in files if p.suffix.lower() in SUFFIXES]
    read = {p.stem for p in paths}
    if unread := [p for p in files if p.suffix.lower() in _UNREAD and not p.is_dir() and p.stem not in read]:
        raise InputError(f"{unread[0]}: this format is not read; save the picture as PNG or JPEG, or move it elsewhere")
    for path in paths:
        _stays(path)
    if not paths:
        inside = ", ".join([f"{shown(p.name)} has {count}" for p in files if (count := _pictures(p))][:5])
        hint = f"; of its subfolders, {inside}: name one of them" if inside else f" ({', '.join(SUFFIXES)})"
        raise InputError(f"{named}{folder}: no image in it{hint}")
    same: dict[str, Path] = {}
    for path in paths:
        if (other := same.setdefault(_normal(path.name), path)) != path:
            raise InputError(f"{path}: its name looks like that of another file, {other.name!a}; rename one")
    return paths


def list_unused(folder: Path | str, expected: Collection[Path] = ()) -> list[str]:
    """Return the names of unused files in a folder of photographs, and of subfolders with their numbers of pictures.
    Files of the system are left out. expected: resolved paths that other settings name, left out too."""
    photographs = list_images(folder)
    used = {*photographs, *_caption_files(photographs)}
    found = [p for p in _entries(Path(folder)) if p not in used and p.resolve() not in expected]
    pictures = {p: _pictures(p) for p in found}
    names = [f"{p.name}/ ({pictures[p]} pictures)" if p.is_dir() else p.name for p in found]
    more = len(names) - _MOST_NAMED
    return [*names[:_MOST_NAMED], *([f"{more} more"] if more > 0 else [])]


def content_digest(folder: Path | str) -> str:
    """Return the digest of the photographs in a folder and their captions, by name; other files do not count.

    Marks photographs and captions that earlier versions ignored or read in other colours, so that results of those
    versions are not reused.
    """
    photographs = list_images(folder)
    marks = {p: "+" * (p.suffix.lower() not in IN_BROWSERS or _seen_anew(p)) for p in photographs}
    marks |= {p: "+" * (p.suffix.lower() not in (".txt", ".jsonl")) for p in _caption_files(photographs)}
    return digest({p.name: file_digest(p) + mark for p, mark in marks.items()})


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder that a person has put there, sorted."""
    return sorted(p for p in folder.iterdir() if _is_meant(p.name))


def _pictures(folder: Path) -> int:
    """Return the number of pictures in a subfolder and below; 0 for a file."""
    found = islice(folder.rglob("*"), _MOST_SOUGHT) if folder.is_dir() else ()
    return sum(
        p.suffix.lower() in (*SUFFIXES, *_UNREAD) and all(map(_is_meant, p.relative_to(folder).parts)) for p in found
    )


def _is_meant(name: str) -> bool:
    """Return False for names of hidden files and of files that systems leave in folders."""
    return not name.startswith((".", "~$")) and name.lower() not in _LEFT


def _normal(name: str) -> str:
    """Return a file name in Unicode form NFC: macOS separates accents from letters, other systems do not."""
    return unicodedata.normalize("NFC", name)


def _stays(path: Path) -> None:
    """Refuse folders, and links to files elsewhere, because results show pictures and captions to others."""
    if not path.is_file():
        raise InputError(f"{path}: not a file; remove it")
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise InputError(f"{path}: a link that leaves its folder; copy the file here instead")


def open_image(path: Path) -> Image.Image:
    """Open a photograph as an RGB image, turned by its EXIF orientation, in the colours that viewers show (`as_seen`).

    Raises InputError if it is not readable, is animated, or is so large that it may be an attack.
    """
    with _opened(path, 1) as image:
        return as_seen(ImageOps.exif_transpose(image))


def check_image(path: Path) -> str | None:
    """Refuse pictures that `open_image` refuses, and small ones; return a warning if colours may look different.

    JPEGs are decoded at an eighth of their size, which still reads every byte. Raises InputError.
    """
    with _opened(path, _SMALLEST) as image:
        note = colour_note(image)
        image.draft("RGB", (_SMALLEST, _SMALLEST))
        as_seen(image)
    return note and f"{path}: {note}"


def _seen_anew(path: Path) -> bool:
    with _opened(path, 1) as image:
        return seen_anew(image)


@contextmanager
def _opened(path: Path, smallest: int) -> Iterator[Image.Image]:
    """Yield a picture whose header was read and checked. Errors of reading it in the block become InputErrors that name
    the file."""
    own = _OWN.get(path.suffix.lower())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about tags that are not read here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=(*_FORMATS, *([own] if own else []))) as image:
                _refuse(path, image, smallest)
                _complete(path, image)
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path}: {error}; scale it down") from error
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError(
            f"{path}: not a readable image ({_reason(path, error)}); save it again, or remove it"
        ) from error


def _complete(path: Path, image: Image.Image) -> None:
    """Add the colour profile of JPEG 2000, which Pillow does not read, and opacity to TGA with alpha 0 everywhere."""
    if image.format == "JPEG2000":
        header = path.read_bytes()[:_JP2_HEADER]
        start = header.find(b"colr\2")  # box of a profile: length, name, three bytes, profile
        if start > 3:
            end = start - 4 + int.from_bytes(header[start - 4 : start], "big")
            image.info["icc_profile"] = header[start + 7 : end]
    elif image.format == "TGA" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image.putalpha(255)


def _reason(path: Path, error: Exception) -> str:
    """Return the reason why a picture cannot be read; HEIC and AVIF are often named as JPEG."""
    with open(path, "rb") as file:
        start = file.read(12)
    if isinstance(error, UnidentifiedImageError) and start[4:8] == b"ftyp":
        return f"its content is {start[8:].decode('latin-1').strip()}, which does not match its ending"
    return str(error)


def _refuse(path: Path, image: Image.Image, smallest: int) -> None:
    size = f"{path}: {image.width} x {image.height} pixels"
    if image.width * image.height > _PIXELS:
        raise InputError(f"{size}, more than can be opened safely; scale it down")
    tags = getattr(image, "tag_v2", {})  # of a TIFF; tag 262 is 0 if the value 0 is white
    if image.format == "TIFF" and (image.mode == "I" or (image.mode.startswith("I") and tags.get(262) == 0)):
        raise InputError(f"{path}: grey in which 65535 is not white; save the picture as PNG or JPEG")
    if min(image.size) < smallest:
        raise InputError(f"{size}, too few to learn from; use at least {smallest} on each side")
    if getattr(image, "is_animated", False) and image.format != "MPO":  # phones store a second view in JPEGs
        what = "a TIFF of several pictures" if image.format == "TIFF" else f"an animated {image.format}"
        raise InputError(f"{path}: {what}; save the one picture that you mean as PNG or JPEG")


def captions(paths: list[Path], default: str) -> list[str]:
    """Return the caption of each image, from `metadata.jsonl` or `metadata.csv` (file_name, text) of its folder, or a
    .txt or .caption file beside it; else `default`.

    Names match in any Unicode form. Raises InputError for captions that are empty or without an image, and if the
    captions of one image differ.
    """
    folder, names, stems = paths[0].parent, {_normal(p.name) for p in paths}, {_normal(p.stem) for p in paths}
    beside = [p for p in _entries(folder) if p.suffix.lower() in _CAPTIONS]
    if stray := [p for p in beside if _normal(p.stem) not in stems]:
        raise InputError(f"{stray[0]}: a caption without an image; rename it to match its image, or remove it")
    listed = [(folder / name, _listed(folder / name, names)) for name in _METADATA if (folder / name).exists()]
    texts = {p: _caption(p) for p in beside}
    return [_chosen(path, listed, texts) or default for path in paths]


def _chosen(path: Path, listed: list[tuple[Path, dict[str, str]]], texts: dict[Path, str]) -> str | None:
    """Return the caption of an image, or None. Raises InputError if it has several that differ."""
    found = {source: by_name[name] for source, by_name in listed if (name := _normal(path.name)) in by_name}
    found |= {source: text for source, text in texts.items() if _normal(source.stem) == _normal(path.stem)}
    if len({" ".join(text.split()) for text in found.values()}) > 1:
        said = ", ".join(f"{source.name} {shown(text)}" for source, text in found.items())
        raise InputError(f"{path}: its captions differ: {said}; keep one of them")
    return next(iter(found.values()), None)


def _caption_files(paths: list[Path]) -> list[Path]:
    """Return the files that `captions` reads."""
    folder, stems = paths[0].parent, {_normal(p.stem) for p in paths}
    beside = [p for p in _entries(folder) if p.suffix.lower() in _CAPTIONS and _normal(p.stem) in stems]
    return [p for p in (*beside, *(folder / name for name in _METADATA)) if p.is_file()]


def _caption(path: Path) -> str:
    _stays(path)
    if not (text := read_text(path).strip()):
        raise InputError(f"{path}: an empty caption; say what the picture shows, or remove the file")
    return text


def _listed(path: Path, names: set[str]) -> dict[str, str]:
    """Return the captions in a folder's list, by the normal form of the file name. Raises InputError."""
    _stays(path)
    found: dict[str, str] = {}
    for where, name, text in _lines(path) if path.suffix == ".jsonl" else _rows(path):
        if (normal := _normal(name)) not in names:
            raise InputError(
                f"{where}: {shown(name)}: no such image in {path.parent}; correct the name or remove the line"
            )
        if normal in found:
            raise InputError(f"{where}: {name!r} is listed twice; remove one of the lines")
        if not text.strip():
            raise InputError(f"{where}: an empty caption; say what the picture shows, or remove the line")
        if strange := strange_character(text):
            raise InputError(f"{where}: the text contains the control character {strange}; remove it")
        found[normal] = text
    return found


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield place, file name and text of each line of metadata.jsonl. Raises InputError."""
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
        yield where, name, text


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield place, file name and text of each row of metadata.csv. Raises InputError."""
    rows = csv.DictReader(io.StringIO(read_text(path)), strict=True)
    try:
        if not {"file_name", "text"} <= set(rows.fieldnames or ()):
            raise InputError(f"{path}:1: expected the columns file_name and text, separated by commas")
        for row in rows:
            where, fields = f"{path}:{rows.line_num}", (row["file_name"], row["text"])
            if None in row or None in fields:
                raise InputError(f"{where}: not as many fields as columns; put texts with commas in quotes")
            yield (where, *fields)
    except csv.Error as error:
        raise InputError(
            f"{path}:{rows.line_num}: not CSV ({error}); put texts in quotes, and double quotes inside them"
        ) from error
