"""Everything that the rules know: built once from the settings, and of use without Snakemake."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nullbooth.errors import SettingsError
from nullbooth.storage.atomic import writable
from nullbooth.workflow.edited import Edited
from nullbooth.workflow.memory import Memory
from nullbooth.workflow.pages import Pages
from nullbooth.workflow.pictures import Pictures
from nullbooth.workflow.project import Project
from nullbooth.workflow.runs import Runs
from nullbooth.workflow.shown import Names, known_as, show
from nullbooth.workflow.stages import Stages
from nullbooth.workflow.statistics import Statistics


class Workspace:
    """The settings, what they name, what results are made from, and where results lie.

    Each part belongs to one file of rules: `statistics`, `runs` (train.smk), `pictures` (sample.smk), `edited`
    (edit.smk), `stages` (lifelong.smk) and `pages` (evaluation.smk, gallery.smk). `names` has all plain names,
    `config` the settings with defaults, as jobs get them. Imports no torch: every job of Snakemake builds it again.
    """

    def __init__(self, given: dict[str, Any], warn: Callable[[str], None] | None = None):
        """given: the settings as Snakemake has them. warn: called with each warning; None, as in jobs, leaves out the
        checks that need to be done only once.

        Raises SettingsError, InputError, OSError or ValueError with a message that names key, value and fix.
        """
        self.project = Project(given, warn)
        self.config = self.project.config
        self.statistics = Statistics(self.project)
        if warn:
            for warning in self.statistics.foreign_packs():
                warn(warning)
        self.runs = Runs(self.project, self.statistics)
        self.pictures = Pictures(self.project, self.runs)
        self.edited = Edited(self.project, self.statistics, self.pictures)
        self.stages = Stages(self.project, self.statistics, self.runs, self.pictures)
        self.memory = Memory(self.project, warn)
        self.names = Names()
        for part in (self.statistics, self.runs, self.pictures, self.edited):
            part.add_names(self.names)
        small = (self.config["resolution"] or self.memory.side) < 256
        self.pages = Pages(
            self.project,
            self.statistics,
            self.runs,
            self.pictures,
            self.edited,
            self.stages,
            self.names,
            small,
        )

    def check_gpus(self, available: int) -> None:
        """Raise SettingsError if a training asks for more GPUs than there are."""
        if (most := max(map(self.runs.gpus, self.project.methods))) > available:
            raise SettingsError(f"train.gpus: {most}: this machine has {available}; set it to at most {available}")

    def wildcards(self) -> dict[str, str]:
        """Return the patterns of all wildcards."""
        return {
            "shard": "|".join(self.statistics.prompts),
            "step": "|".join(self.statistics.steps),
            "scope": "pooled|timestep",
            "number": "|".join(str(i + 1) for i in range(len(self.statistics.shards))),
            **self.runs.constraints(),
            **self.pictures.constraints(),
            **self.stages.constraints(),
        }

    def paths(self) -> dict[str, str]:
        """Return the path variables of the rules."""
        return {
            "results": str(self.config["results"]),
            "kept": str(self.statistics.kept),
            "statistics": str(self.statistics.folder),
            "drawn": str(self.pictures.drawn),
            "edited": str(self.edited.folder),
            "run": "runs/{concept}/{method}/{seed}",
        }

    def known_as(self, target: str) -> list[str] | None:
        """Return the files that rules make for a target below `results`, or None for any other target."""
        return known_as(target, self.config["results"], self.names.shown, self.names.folders)

    def show(self) -> None:
        """Link all plain names to what is there, unless `results` cannot be written to."""
        if not writable(self.config["results"]):
            return
        show(self.config["results"], self.names.shown, self.names.folders)

    def gallery(self) -> Path | None:
        """Return the page of the gallery, or None if it does not exist yet."""
        page = Path(self.config["results"], "samples", "index.html")
        return page if Path(self.names.shown["samples"][0], "index.html").exists() else None


def required(found: object, lacking: str) -> list[str]:
    """Return no files. Raises SettingsError with the text `lacking` if nothing is `found` in the settings."""
    if not found:
        raise SettingsError(lacking)
    return []
