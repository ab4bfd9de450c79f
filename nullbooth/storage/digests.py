"""Content hashes, remembered by path, size and times, so that large files are read once."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nullbooth.storage.atomic import read_json, write_text


def _cache_folder() -> Path | None:
    """The user's folder for caches, as the XDG specification has it; None where there is no home."""
    if (named := Path(os.environ.get("XDG_CACHE_HOME", ""))).is_absolute():
        return named
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no such user
        return None
    return home / ".cache" if home.is_absolute() else None


_REMEMBERED = folder / "nullbooth" / "fingerprints.json" if (folder := _cache_folder()) else None


def digest(value: object) -> str:
    """Short SHA-256 of any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def remembering() -> Iterator[dict[str, str]]:
    """What is remembered of files, by their places. What is added is kept, where there is a place to keep it."""
    remembered = {}
    if _REMEMBERED and os.access(_REMEMBERED, os.R_OK):
        remembered = read_json(_REMEMBERED)
    known = dict(remembered)
    yield known
    if known != remembered and _REMEMBERED:
        with suppress(OSError):  # no home that can be written, a full disk: files are then read again next time
            write_text(_REMEMBERED, json.dumps(known))


def place_of(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def remembered_digests(paths: list[Path]) -> list[str]:
    """SHA-256 of each file; those that were read before, and have not changed since, are not read again."""
    found = []
    with remembering() as known:
        for path in paths:
            if (place := place_of(path)) not in known:
                known[place] = file_digest(path)
            found.append(known[place])
    return found
