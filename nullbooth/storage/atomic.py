"""Files and folders that are whole or absent, and errors that name them."""

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """A name beside `path`, for this block to write a file or folder to; moved to `path` when all of it is on the disk.

    If the block fails, nothing of it stays, and what was at `path` before is still there. What killed writers left
    behind is removed; each writer has a name of its own, so that one which lives on cannot mix with its successor.
    Raises OSError with `path` in it where the system says no more than that the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in _leftovers(path):
        _remove(leftover)
    partial = _beside(path)
    try:
        yield partial
        for file in partial.rglob("*") if partial.is_dir() else [partial]:
            if file.is_file():
                _sync(file)
        _move(partial, path)
    except BaseException as error:
        _remove(partial)
        if isinstance(error, OSError) and error.errno and (error.errno in _FULL or error.filename is None):
            raise OSError(error.errno, _said(error), str(path)) from error
        raise


def writable(folder: Path | str) -> bool:
    """Whether files can be written to a folder that is there, or that is to be made."""
    return os.access(existing(folder), os.W_OK | os.X_OK)


def existing(folder: Path | str) -> Path:
    """The folder, or the nearest above it that is there."""
    folder = Path(folder).absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def write_text(path: Path | str, text: str) -> None:
    """Write a text file that is whole or absent."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path | str, made_with: Path | str | None = None) -> Any:
    """The value in a JSON file. Raises ValueError that names it, and what to delete (`made_with`, or the file)."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: broken ({error}); delete {made_with or 'it'} and run the same command again"
        ) from error


def _beside(path: Path) -> Path:
    """A new name with the same suffix, by which some writers choose the format."""
    return path.with_name(f"{path.stem}.partial-{secrets.token_hex(4)}{path.suffix}")


def _leftovers(path: Path) -> list[Path]:
    ours = re.compile(rf"{re.escape(path.stem)}\.partial-[0-9a-f]{{8}}{re.escape(path.suffix)}")
    return [p for p in path.parent.iterdir() if ours.fullmatch(p.name)]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # another process may be doing the same
    else:
        path.unlink(missing_ok=True)


def _sync(file: Path) -> None:
    """Bring a file to the disk: else a power cut could leave an empty one under a final name, and a network file
    system would say only later, to nobody, that its disk is full."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(partial: Path, path: Path) -> None:
    """Rename; a folder cannot replace another, so the older one steps aside first."""
    if not (partial.is_dir() and path.exists()):
        partial.replace(path)
        return
    older = _beside(path)
    path.rename(older)
    partial.rename(path)
    _remove(older)


def _said(error: OSError) -> str:
    reason = os.strerror(error.errno or 0)
    return f"{reason}: make room and run the same command again" if error.errno in _FULL else reason
