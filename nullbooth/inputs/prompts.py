"""Files of prompts."""

from pathlib import Path

from nullbooth.errors import InputError
from nullbooth.inputs.text import read_text


def read_prompts(path: Path | str, key: str | None = None) -> list[str]:
    """Prompts of a text file, one a line, without blank lines, comments (#) and repetitions, sorted.

    Sorted, because the moments do not depend on the order: neither should the cache. `key` is the setting that names
    the file. Raises InputError if there are none.
    """
    lines = (line.strip() for line in read_text(path, key).split("\n"))  # not splitlines: U+2028 may stand in a prompt
    prompts = sorted({line for line in lines if line and not line.startswith("#")})
    if not prompts:
        raise InputError(f"{f'{key}: ' if key else ''}{path}: no prompts in it; write one a line")
    return prompts
