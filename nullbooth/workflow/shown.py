"""Plain names: the targets that users request from Snakemake, and links to their results under `results`.

Rules write to `results/kept`, under names made from content. A plain name leads to the kept result of the present
config. `shown` maps plain names to a kept file or folder, and the file in it that a rule makes (empty if a rule makes
the target as a whole). `folders` maps folders of plain names to the name that stands for all of them.
"""

import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

Shown = Mapping[str, tuple[Path | str, str]]


@dataclass
class Names:
    """All plain names of a workspace.

    shown: by plain name, a kept file or folder, and the file in it that a rule makes (empty if a rule makes it as a
    whole). folders: by folder of plain names, the name that stands for all of them.
    """

    shown: dict[str, tuple[Path | str, str]] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, target: Path | str, file: str = "") -> None:
        self.shown[name] = target, file

    def files(self, names: Iterable[str]) -> list[str]:
        """Return the kept files that rules make for plain names."""
        return [str(Path(*self.shown[name])) for name in names]

    def targets(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return what plain names lead to, as JSON values: a parameter of a script, which passes it to `view`."""
        return {name: list(map(str, self.shown[name])) for name in names}


def known_as(target: str, results: Path | str, shown: Shown, folders: Mapping[str, str]) -> list[str] | None:
    """Return the files that rules make for a target below `results`, or None for targets elsewhere.

    A target inside a result stands for that result. Paths may have any spelling (`./`, `//`, `~`, a slash at the end,
    absolute).
    """
    place = Path(os.path.abspath(Path(target).expanduser()))  # noqa: PTH100 (links are names here, not to be followed)
    if not place.is_relative_to(root := Path(os.path.abspath(results))):  # noqa: PTH100
        return None
    if not (name := place.relative_to(root)).parts:
        return None
    names = (folders.get(name.as_posix(), name.as_posix()), *(parent.as_posix() for parent in name.parents))
    known = next((shown[name] for name in names if name in shown), (Path(results, name), ""))
    return [str(Path(*known))]


def show(root: Path | str, shown: Shown, folders: Mapping[str, str]) -> None:
    """Link the plain names below `root` to existing results.

    A folder of `folders` changes as a whole once it has a result, so that links to results of another adapter do not
    stay beside new ones. Other links stay until there is a new result. Files and folders in place of links, as made by
    earlier versions, are renamed, with a message.
    """
    root = Path(root)
    there = {name for name, (target, file) in shown.items() if Path(target, file).exists()}
    changing = {folder for folder in folders if any(Path(name).is_relative_to(folder) for name in there)}
    for name, (target, _) in shown.items():
        if name in there:
            _link(root, root / name, Path(target))
        elif (root / name).is_symlink() and not changing.isdisjoint(p.as_posix() for p in Path(name).parents):
            (root / name).unlink()


@contextmanager
def view(shown: Shown) -> Iterator[Path]:
    """Yield a temporary folder with links of only these plain names, independent of those under `results`."""
    with TemporaryDirectory() as folder:
        show(folder, shown, {})
        yield Path(folder)


def _link(root: Path, place: Path, target: Path) -> None:
    for above in [p for p in reversed(place.parents) if p.is_relative_to(root) and p != root]:
        if above.is_symlink() and above.resolve().is_relative_to((root / "kept").resolve()):
            above.unlink()  # an earlier version linked the whole folder
    place.parent.mkdir(parents=True, exist_ok=True)
    wanted = os.path.relpath(target.resolve(), place.parent.resolve())
    if place.is_symlink() and os.readlink(place) == wanted:  # noqa: PTH115 (text, as it was written)
        return
    if place.exists() and not place.is_symlink():
        aside = next(p for i in range(1000) if not (p := place.with_name(f"{place.name}.old{i or ''}")).exists())
        place.rename(aside)
        print(f"results: {place} was not a link, as in earlier versions; renamed to {aside}", file=sys.stderr)
    made = place.with_name(f".{place.name}-{secrets.token_hex(4)}")
    made.symlink_to(wanted)
    made.replace(place)
