"""Reading of prompt files."""

from pathlib import Path

from nullbooth.errors import InputError
from nullbooth.inputs.text import read_text


def read_prompts(path: Path | str, key: str | None = None) -> list[str]:
    """Read the prompts of a text file, one per line, without blank lines, comments (#) and repetitions, sorted.

    They are sorted because moments do not depend on the order, so that the cache must not either. key: setting that
    names the file. Raises InputError if there are none.
    """
    lines = (line.strip() for line in read_text(path, key).split("\n"))  # not splitlines: prompts may contain U+2028
    prompts = sorted({line for line in lines if line and not line.startswith("#")})
    if not prompts:
        raise InputError(f"{f'{key}: ' if key else ''}{path}: no prompts in it; write one per line")
    return prompts
