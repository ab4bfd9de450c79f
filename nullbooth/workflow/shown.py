"""Plain names: what a person may ask Snakemake for, and the links by which results are found under `results`.

Everything is kept under a name made from its content (`results/kept`). A plain name leads to what belongs to the config
as it is now. `shown` has, by plain name, a file or folder that is kept, and the file in it that a rule makes (empty
where a rule makes it as a whole). `folders` has, by folder, the one of its plain names that stands for all.
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

    shown: by plain name, a file or folder that is kept, and the file in it that a rule makes (empty where a rule makes
    it as a whole). folders: by folder of plain names, the name that stands for all of them.
    """

    shown: dict[str, tuple[Path | str, str]] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, target: Path | str, file: str = "") -> None:
        self.shown[name] = target, file

    def files(self, names: Iterable[str]) -> list[str]:
        """Return the kept files that rules make for plain names."""
        return [str(Path(*self.shown[name])) for name in names]

    def targets(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return what plain names lead to, as JSON: a script gets it as a parameter and passes it to `view`."""
        return {name: list(map(str, self.shown[name])) for name in names}


def known_as(target: str, results: Path | str, shown: Shown, folders: Mapping[str, str]) -> list[str] | None:
    """The files that rules make for a target below `results`, or None for what is not below it.

    A target inside of what a rule makes is that. Any spelling of a path is one (`./`, `//`, `~`, a slash at the end,
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
    """Link the plain names below `root` to what is there.

    A folder of `folders` changes as a whole, when there is something for it: a link to what another adapter made must
    not stay beside those of this one. Other links stay until there is something else. What is no link, as of an earlier
    version, is moved aside and named.
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
    """A folder for a while with nothing but those plain names, whatever those of the results lead to by then."""
    with TemporaryDirectory() as folder:
        show(folder, shown, {})
        yield Path(folder)


def _link(root: Path, place: Path, target: Path) -> None:
    for above in [p for p in reversed(place.parents) if p.is_relative_to(root) and p != root]:
        if above.is_symlink() and above.resolve().is_relative_to((root / "kept").resolve()):
            above.unlink()  # an earlier version linked the folder as a whole
    place.parent.mkdir(parents=True, exist_ok=True)
    wanted = os.path.relpath(target.resolve(), place.parent.resolve())
    if place.is_symlink() and os.readlink(place) == wanted:  # noqa: PTH115 (text, as it was written)
        return
    if place.exists() and not place.is_symlink():
        aside = next(p for i in range(1000) if not (p := place.with_name(f"{place.name}.old{i or ''}")).exists())
        place.rename(aside)
        print(f"results: {place} was no link, as of an earlier version: now it is {aside}", file=sys.stderr)
    made = place.with_name(f".{place.name}-{secrets.token_hex(4)}")
    made.symlink_to(wanted)
    made.replace(place)
