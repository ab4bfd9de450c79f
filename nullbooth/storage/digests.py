"""Content hashes, cached by path, size and times, so that large files are read only once."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nullbooth.storage.atomic import read_json, write_text


def _cache_folder() -> Path | None:
    """Return the user's cache folder according to the XDG specification; None without a home folder."""
    if (named := Path(os.environ.get("XDG_CACHE_HOME", ""))).is_absolute():
        return named
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no such user
        return None
    return home / ".cache" if home.is_absolute() else None


_REMEMBERED = folder / "nullbooth" / "fingerprints.json" if (folder := _cache_folder()) else None


def digest(value: object) -> str:
    """First 16 hex digits of the SHA-256 of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def remembering() -> Iterator[dict[str, str]]:
    """Yield the cached digests by `place_of` a file; entries added in the block are saved if the cache is writable."""
    remembered = {}
    if _REMEMBERED and os.access(_REMEMBERED, os.R_OK):
        remembered = read_json(_REMEMBERED)
    known = dict(remembered)
    yield known
    if known != remembered and _REMEMBERED:
        with suppress(OSError):  # no writable home or a full disk: files are hashed again next time
            write_text(_REMEMBERED, json.dumps(known))


def place_of(path: Path) -> str:
    """Cache key of a file: resolved path, size, and times of modification and change."""
    stat = path.stat()
    return f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def remembered_digests(paths: list[Path]) -> list[str]:
    """SHA-256 of each file in `paths`. Files that have not changed since they were last hashed are not read again."""
    found = []
    with remembering() as known:
        for path in paths:
            if (place := place_of(path)) not in known:
                known[place] = file_digest(path)
            found.append(known[place])
    return found
