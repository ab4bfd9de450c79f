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
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError, WebPImagePlugin  # noqa: F401 (Pillow knows WebP once this is imported)

from nullbooth.errors import InputError
from nullbooth.inputs.colour import as_seen, colour_note, seen_anew
from nullbooth.inputs.text import read_text, shown, strange_character
from nullbooth.storage.digests import digest, file_digest

if TYPE_CHECKING:  # late below: the workflow lists and checks photographs without torch
    pass

# Read by content, whatever the ending. Some of Pillow's other formats run programs (EPS).
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
# Endings that browsers show. Earlier versions read these alone.
IN_BROWSERS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
# Formats that are read under their own endings alone: TGA has no mark by which other files could be told from it.
_OWN = {
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), "JPEG2000"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **dict.fromkeys((".tga", ".vda", ".icb", ".vst"), "TGA"),
    ".avif": "AVIF",
    ".dib": "DIB",
}
SUFFIXES = (*IN_BROWSERS, ".jfif", ".jpe", ".jif", ".jfi", ".mpo", ".apng", *_OWN)
# Pictures of formats that are not read: they are meant to be learned, unless the same one lies beside as a JPEG.
_UNREAD = (
    *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".psd", ".psb", ".xcf", ".kra", ".exr", ".hdr", ".qoi"),
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".raf", ".orf", ".rw2", ".pef", ".srw"),
    *(".x3f", ".rwl", ".3fr", ".iiq", ".erf", ".kdc", ".mrw", ".dcr", ".raw", ".avifs"),
)
_CAPTIONS = (".txt", ".caption")  # beside a photograph, under its name
_METADATA = ("metadata.jsonl", "metadata.csv")  # of a folder, as ImageFolder of datasets has them
# What systems leave in folders, beside names that begin with a dot; Finder's icon ends in a carriage return.
_LEFT = (
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "__macosx", "#recycle", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__"),
)
_PIXELS = 89_478_485  # Pillow's own limit, whatever another library has set it to
_SMALLEST = 16
_JP2_HEADER = 1 << 20  # bytes, in which a profile stands
_MOST_NAMED = 20  # files in one message
_MOST_SOUGHT = 20_000  # files in subfolders
# What Pillow and its decoders let through.
_BROKEN = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, SyntaxError, EOFError),
    *(struct.error, zlib.error),
)


def list_images(folder: Path | str, key: str | None = None) -> list[Path]:
    """Image files of a folder, sorted; `key` is the setting that names it. Raises InputError if there are none, and for
    files that cannot be what they seem."""
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
    """Names of what a folder holds beside photographs and captions, without what systems leave there; subfolders with
    the number of their pictures. expected: resolved paths that other settings name."""
    photographs = list_images(folder)
    used = {*photographs, *_caption_files(photographs)}
    found = [p for p in _entries(Path(folder)) if p not in used and p.resolve() not in expected]
    pictures = {p: _pictures(p) for p in found}
    names = [f"{p.name}/ ({pictures[p]} pictures)" if p.is_dir() else p.name for p in found]
    more = len(names) - _MOST_NAMED
    return [*names[:_MOST_NAMED], *([f"{more} more"] if more > 0 else [])]


def content_digest(folder: Path | str) -> str:
    """Digest of the photographs in a folder and of their captions, by name; other files leave no trace.

    Photographs and captions that earlier versions passed over, or saw in other colours, are marked: results that were
    made without them are not taken for those made with them.
    """
    photographs = list_images(folder)
    marks = {p: "+" * (p.suffix.lower() not in IN_BROWSERS or _seen_anew(p)) for p in photographs}
    marks |= {p: "+" * (p.suffix.lower() not in (".txt", ".jsonl")) for p in _caption_files(photographs)}
    return digest({p.name: file_digest(p) + mark for p, mark in marks.items()})


def _entries(folder: Path) -> list[Path]:
    """What a person has put into a folder, sorted."""
    return sorted(p for p in folder.iterdir() if _is_meant(p.name))


def _pictures(folder: Path) -> int:
    """How many pictures are in a subfolder and below; 0 of a file."""
    found = islice(folder.rglob("*"), _MOST_SOUGHT) if folder.is_dir() else ()
    return sum(
        p.suffix.lower() in (*SUFFIXES, *_UNREAD) and all(map(_is_meant, p.relative_to(folder).parts)) for p in found
    )


def _is_meant(name: str) -> bool:
    """Whether a person, and not the system, has put a file of this name into a folder."""
    return not name.startswith((".", "~$")) and name.lower() not in _LEFT


def _normal(name: str) -> str:
    """A file name in one Unicode form: macOS writes accents apart, other systems do not."""
    return unicodedata.normalize("NFC", name)


def _stays(path: Path) -> None:
    """Refuse what is no file, and links to what lies elsewhere: results show pictures and captions to others."""
    if not path.is_file():
        raise InputError(f"{path}: not a file; remove it")
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise InputError(f"{path}: a link that leaves its folder; copy the file here instead")


def open_image(path: Path) -> Image.Image:
    """A photograph as an RGB image: turned as EXIF says, in the colours that a viewer shows (`as_seen`).

    Raises InputError if it is not a readable picture, moves, or is so large that it may be an attack.
    """
    with _opened(path, 1) as image:
        return as_seen(ImageOps.exif_transpose(image))


def check_image(path: Path) -> str | None:
    """Refuse as `open_image` does, and small pictures too; returns a warning of colours that may look different.

    JPEGs are decoded at an eighth of their size: every byte is still read.
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
    """A picture whose header was read, and errors that name it if reading goes on in the block."""
    own = _OWN.get(path.suffix.lower())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of tags that no one reads here
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
    """Put right what Pillow does not read: profiles in JPEG 2000, and alpha in TGA, which many programs leave at 0."""
    if image.format == "JPEG2000":
        header = path.read_bytes()[:_JP2_HEADER]
        start = header.find(b"colr\2")  # the box of a profile: its length, its name, three bytes, the profile
        if start > 3:
            end = start - 4 + int.from_bytes(header[start - 4 : start], "big")
            image.info["icc_profile"] = header[start + 7 : end]
    elif image.format == "TGA" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image.putalpha(255)


def _reason(path: Path, error: Exception) -> str:
    """Why a picture cannot be read: HEIC and AVIF often have the name of a JPEG."""
    with open(path, "rb") as file:
        start = file.read(12)
    if isinstance(error, UnidentifiedImageError) and start[4:8] == b"ftyp":
        return f"by its content it is {start[8:].decode('latin-1').strip()}, which this ending does not say"
    return str(error)


def _refuse(path: Path, image: Image.Image, smallest: int) -> None:
    size = f"{path}: {image.width} x {image.height} pixels"
    if image.width * image.height > _PIXELS:
        raise InputError(f"{size}, more than can be opened safely; scale it down")
    tags = getattr(image, "tag_v2", {})  # of a TIFF: 262 says whether 0 is white
    if image.format == "TIFF" and (image.mode == "I" or (image.mode.startswith("I") and tags.get(262) == 0)):
        raise InputError(f"{path}: grey in which 65535 is not white; save the picture as PNG or JPEG")
    if min(image.size) < smallest:
        raise InputError(f"{size}, too few to learn from; give at least {smallest} on each side")
    if getattr(image, "is_animated", False) and image.format != "MPO":  # telephones put a second view into JPEGs
        what = "a TIFF of several pictures" if image.format == "TIFF" else f"an animated {image.format}"
        raise InputError(f"{path}: {what}; save the one picture that you mean as PNG or JPEG")


def captions(paths: list[Path], default: str) -> list[str]:
    """Caption of each image: from `metadata.jsonl` or `metadata.csv` (file_name, text), a .txt or .caption beside it,
    or else `default`.

    Names match in any Unicode form. Raises InputError for a caption that is empty or has no image, and for two of one
    image that differ.
    """
    folder, names, stems = paths[0].parent, {_normal(p.name) for p in paths}, {_normal(p.stem) for p in paths}
    beside = [p for p in _entries(folder) if p.suffix.lower() in _CAPTIONS]
    if stray := [p for p in beside if _normal(p.stem) not in stems]:
        raise InputError(f"{stray[0]}: a caption without an image; rename it as its image, or remove it")
    listed = [(folder / name, _listed(folder / name, names)) for name in _METADATA if (folder / name).exists()]
    texts = {p: _caption(p) for p in beside}
    return [_chosen(path, listed, texts) or default for path in paths]


def _chosen(path: Path, listed: list[tuple[Path, dict[str, str]]], texts: dict[Path, str]) -> str | None:
    """The one caption of an image, if it has any."""
    found = {source: by_name[name] for source, by_name in listed if (name := _normal(path.name)) in by_name}
    found |= {source: text for source, text in texts.items() if _normal(source.stem) == _normal(path.stem)}
    if len({" ".join(text.split()) for text in found.values()}) > 1:
        said = ", ".join(f"{source.name} {shown(text)}" for source, text in found.items())
        raise InputError(f"{path}: its captions differ: {said}; leave one of them")
    return next(iter(found.values()), None)


def _caption_files(paths: list[Path]) -> list[Path]:
    """The files that `captions` reads."""
    folder, stems = paths[0].parent, {_normal(p.stem) for p in paths}
    beside = [p for p in _entries(folder) if p.suffix.lower() in _CAPTIONS and _normal(p.stem) in stems]
    return [p for p in (*beside, *(folder / name for name in _METADATA)) if p.is_file()]


def _caption(path: Path) -> str:
    _stays(path)
    if not (text := read_text(path).strip()):
        raise InputError(f"{path}: an empty caption; say what the picture shows, or remove the file")
    return text


def _listed(path: Path, names: set[str]) -> dict[str, str]:
    """Captions of a folder's list by the normal form of the file name."""
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
            raise InputError(f"{where}: the control character {strange} stands in the text; remove it")
        found[normal] = text
    return found


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Place, file name and text of each line of metadata.jsonl."""
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
    """Place, file name and text of each row of metadata.csv."""
    rows = csv.DictReader(io.StringIO(read_text(path)), strict=True)
    try:
        if not {"file_name", "text"} <= set(rows.fieldnames or ()):
            raise InputError(f"{path}:1: expected the columns file_name and text, separated by commas")
        for row in rows:
            where, fields = f"{path}:{rows.line_num}", (row["file_name"], row["text"])
            if None in row or None in fields:
                raise InputError(f"{where}: not as many fields as columns; put a text with commas between quotes")
            yield (where, *fields)
    except csv.Error as error:
        raise InputError(
            f"{path}:{rows.line_num}: not CSV ({error}); put texts between quotes, and double those"
        ) from error
