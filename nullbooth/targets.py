"""What a person may ask Snakemake for by a plain name, as the files that its rules make."""

from collections.abc import Iterable, Mapping
from os.path import abspath
from pathlib import Path

# Within a folder that a link leads to: made as a whole by one rule, or told by one file of it.
_WHOLE = {"images": "images", "lora": "lora/README.md", "pipeline": "pipeline/model_index.json"}


def known_as(
    target: str, results: Path | str, shown: Mapping[str, tuple[Path, str]], pages: Iterable[str]
) -> list[str] | None:
    """The files that rules make for a target below `results`, or None for what is neither one nor behind one.

    shown: names below `results` that are links, by what they lead to and the file that this stands for (empty where it
    is one itself). A file behind a link is asked for where it is kept, and with it the link. pages: folders that one
    rule makes as a whole. Any spelling of a path is one (`./`, `//`, `~`, a slash at the end, absolute).
    """
    place = Path(abspath(Path(target).expanduser()))  # noqa: PTH100 (links are names here, not to be followed)
    if not place.is_relative_to(root := Path(abspath(results))):  # noqa: PTH100
        return None
    name = place.relative_to(root)
    behind = [link for link in map(Path, shown) if name.is_relative_to(link)]
    if not behind:
        whole = [page for page in pages if name.is_relative_to(page)]
        return [str(Path(results, *whole or [name]))] if name.parts else None
    link = max(behind, key=lambda path: len(path.parts))
    inside, (folder, file) = name.relative_to(link), shown[link.as_posix()]
    kept = [str(folder / _WHOLE.get(inside.parts[0], inside))] if inside.parts and file else []
    return [*kept, str(Path(results) / link)]
