"""Pages and tables: what they show, and the names under which they are kept."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nullbooth.inputs.shipped import shipped
from nullbooth.storage.digests import digest
from nullbooth.workflow.edited import Edited
from nullbooth.workflow.pictures import SHARED, Pictures
from nullbooth.workflow.project import Config, Project
from nullbooth.workflow.runs import Runs
from nullbooth.workflow.shown import Names
from nullbooth.workflow.stages import Stages
from nullbooth.workflow.statistics import Statistics

_CHANGES = ("mechanism.csv", "change_protected.svg", "change_heldout.svg")


class Pages:
    """The table of all measurements, the comparison, the lifelong figures and the gallery.

    A page is kept by what its plain names lead to, by its parameters and by the templates. tabulated, compared,
    pictured: the plain names that table, comparison and gallery show. table, comparison, gallery: their parameters.
    """

    def __init__(
        self,
        project: Project,
        statistics: Statistics,
        runs: Runs,
        pictures: Pictures,
        edited: Edited,
        stages: Stages,
        names: Names,
        small: bool,
    ):
        """small: whether pictures are so small that pages enlarge them pixel by pixel."""
        self._runs, self._names, self._kept = runs, names, runs.kept
        templates = sorted(shipped("workflow/report").glob("*.j2"))
        self._templates = digest([path.read_text(encoding="utf-8") for path in templates])
        # What adapters change in each layer, below the folder of a run.
        self.changes = f"mechanism/{digest([statistics.identity, statistics.heldout_identity])}"

        config = project.config
        self.table: Config = {
            "concepts": list(project.concepts),
            "methods": list(project.learned),
            "seeds": config["seeds"],
        }
        self.tabulated = [f"runs/{run}/metrics.json" for run in runs.of_methods]
        self.evaluation = self._page("evaluation", self.tabulated, **self.table)

        self.comparison: Config = {
            "points": project.points,
            "concepts": project.compared,
            "seeds": config["comparison"]["seeds"],
            "reference": project.reference,
            "steps": config["comparison"]["steps"],
            "small": small,
        }
        self.compared = [
            *(f"runs/{run}/loss.csv" for run in runs.trained_for_comparison),
            *(f"runs/{run}/{name}" for run in runs.of_comparison for name in ("metrics.json", "images")),
            *(f"images/base/{part}{pictures.short}" for part in [*project.compared, SHARED]),
        ]
        self.times_of_class = [
            f"{config['results']}/benchmarks/images/class/{name}/{pictures.classes[name]}.tsv"
            for name in project.compared
        ]

        self.add_names(names)
        places = [statistics.folder.name, *stages.seen.values(), *stages.judged.values(), *stages.free.values()]
        names.add("lifelong", self._page("lifelong", [], of=[*places, stages.together], **stages.about))

        self.gallery: Config = {
            "seeds": config["seeds"],
            "small": small,
            "runs": runs.of_methods,
            "methods": list(project.learned),
            "model": str(config["model"]),
            "sampler": config["sampler"],
            "protecting": project.protecting,
            "edits": config["edits"],
            "contexts": edited.contexts,
            "lifelong": bool(stages.runs),
        }
        of_runs = ["images", "metrics.json", "loss.csv", *(_CHANGES if project.protecting else [])]
        of_edits = ["edit.safetensors", "base", "images", "metrics.json", "metrics.csv"] if project.edits else []
        figures = ["spectra.svg", "free_directions.svg"] if project.protecting else []
        figures += ["leak.svg"] if project.protecting and len(statistics.shards) > 1 else []
        self.pictured = [
            *(f"runs/{run}/{name}" for run in runs.of_methods for name in of_runs),
            *(f"images/base/{part}" for part in pictures.parts),
            "evaluation/metrics.csv",
            *(f"figures/{name}" for name in figures),
            *(["lifelong"] if stages.runs else []),
            *(f"edits/{name}" for name in of_edits),
        ]
        captions = [
            {key: value for key, value in concept.items() if key not in ("images", "holdout")}
            for concept in project.concepts.values()
        ]
        names.add("samples", self._page("samples", self.pictured, concepts=captions, **self.gallery))

    def add_names(self, names: Names) -> None:
        """Add the plain names of tables, figures of changes and the comparison."""
        names.folders["evaluation"] = "evaluation/metrics.csv"
        for name in ("metrics.csv", "metrics.json"):
            names.add(f"evaluation/{name}", self.evaluation / name)
        for run in self._runs.of_methods:
            for name in _CHANGES:
                names.add(f"runs/{run}/{name}", Path(self._runs.folder(run), self.changes, name))
        names.add("comparison", self._page("comparison", self.compared, **self.comparison))

    def _page(self, kind: str, names: Iterable[str], **params: Any) -> Path:
        places = {name: str(Path(self._names.shown[name][0]).relative_to(self._kept)) for name in names}
        return self._kept / "pages" / kind / digest([params, places, self._templates])
