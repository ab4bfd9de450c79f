"""Text of the user: reading of files, characters and secrets that it must not contain, and its form in messages."""

import re
import reprlib
from pathlib import Path

from nullbooth.errors import InputError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
# Access tokens of services, or names and passwords in addresses.
_SECRET = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}|://[^/\s@]+:[^/\s@]+@")
# Control characters except tabs and line ends, and lone surrogates, which no file can hold.
_STRANGE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


def shown(value: object) -> str:
    """Return a value as one short line, for messages."""
    return _SHORT.repr(value)


def has_secret(text: str) -> bool:
    """Check whether a text seems to contain an access token or a password."""
    return _SECRET.search(text) is not None


def strange_character(text: str) -> str | None:
    """Return the first control character (except line ends and tabs) or lone surrogate, as `U+0000`; else None."""
    found = _STRANGE.search(text)
    return found and f"U+{ord(found[0]):04X}"


def read_text(path: Path | str, key: str | None = None) -> str:
    """Read a UTF-8 file, with `\\n` at the end of lines. key: setting that names it. Raises InputError."""
    path, named = Path(path), f"{key}: " if key else ""
    try:
        if not path.is_file():  # pipes and devices are refused too: they may never end
            raise InputError(f"{named}{shown(str(path))}: no such file")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{named}{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{named}{shown(str(path))}: {error.strerror}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if strange := strange_character(line):
            raise InputError(f"{named}{path}:{number}: contains the control character {strange}; remove it")
    return text
