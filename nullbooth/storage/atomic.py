"""Atomic writes of files and folders, and file errors that name the path."""

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
    """Yield a temporary path beside `path` for a file or folder; sync it to disk and rename it after the block.

    If the block fails, the temporary path is removed and `path` stays as it was. Temporary paths of killed writers are
    removed first. Their names are random, so that a writer still alive cannot mix its data with its successor's.
    Raises OSError that names `path` if the disk is full or the system's error names no file.
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
    """Return True if files can be written to a folder, or to its nearest existing parent if it does not exist."""
    return os.access(existing(folder), os.W_OK | os.X_OK)


def existing(folder: Path | str) -> Path:
    """Return the folder, or its nearest existing parent."""
    folder = Path(folder).absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path | str, made_with: Path | str | None = None) -> Any:
    """Return the value of a JSON file. Raises ValueError naming it and what to delete (`made_with`, or the file)."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: broken ({error}); delete {made_with or 'it'} and run the same command again"
        ) from error


def _beside(path: Path) -> Path:
    """Random name beside `path` with its suffix, because some writers choose the format by it."""
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
    """Sync a file to disk. Without it, a power cut could leave an empty file under the final name, and a network file
    system would report a full disk only after the writer has finished."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`. A folder cannot replace another, so an older one is renamed first, then removed."""
    if not (partial.is_dir() and path.exists()):
        partial.replace(path)
        return
    older = _beside(path)
    path.rename(older)
    partial.rename(path)
    _remove(older)


def _said(error: OSError) -> str:
    reason = os.strerror(error.errno or 0)
    return f"{reason}: free some space and run the same command again" if error.errno in _FULL else reason
