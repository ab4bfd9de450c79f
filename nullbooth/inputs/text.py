"""Text from outside: how files of it are read, what must not stand in it, and how it is shown in a message."""

import re
import reprlib
from pathlib import Path

from nullbooth.errors import InputError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
# What a key of a service looks like, or the name and password of an address.
_SECRET = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}|://[^/\s@]+:[^/\s@]+@")
# Control characters but tab and ends of lines, and halves of characters (lone surrogates), which no file can hold.
_STRANGE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


def shown(value: object) -> str:
    """A value as one short line."""
    return _SHORT.repr(value)


def has_secret(text: str) -> bool:
    """Whether a text looks as if it held an access token or a password."""
    return _SECRET.search(text) is not None


def strange_character(text: str) -> str | None:
    """The first character that no prompt, name or path needs, such as U+0000; line ends and tabs are not strange."""
    found = _STRANGE.search(text)
    return found and f"U+{ord(found[0]):04X}"


def read_text(path: Path | str, key: str | None = None) -> str:
    """A whole UTF-8 file with `\\n` at the end of lines. `key` is the setting that names it. Raises InputError."""
    path, named = Path(path), f"{key}: " if key else ""
    try:
        if not path.is_file():  # nor a pipe or a device, which may never end
            raise InputError(f"{named}{shown(str(path))}: no such file")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{named}{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{named}{shown(str(path))}: {error.strerror}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if strange := strange_character(line):
            raise InputError(f"{named}{path}:{number}: the control character {strange} stands in it; remove it")
    return text
