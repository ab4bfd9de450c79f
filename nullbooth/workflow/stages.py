"""Lifelong learning: what is known after each concept, how it is drawn, and what later subjects preserve."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from nullbooth.inputs.methods import is_ours
from nullbooth.inputs.settings import fill_prompt, subject_words
from nullbooth.storage.digests import digest
from nullbooth.workflow.pictures import Pictures, Prompts
from nullbooth.workflow.project import Config, Project
from nullbooth.workflow.runs import Runs, Wildcards, run_of
from nullbooth.workflow.statistics import Statistics


class Stages:
    """The stages of methods with `lifelong`. A stage is what a method knows after some concepts: several adapters.

    of_methods: `sequence` or `merged` by method. runs: by key of a stage, the runs whose adapters are at work. seen,
    judged: pictures and measurements by (method, seed, number of concepts known, concept). together: pictures of two
    subjects by `method/seed`. free: projectors that tell how many directions were free, by (method, seed, concept).

    Places begin with the path variables <kept> and <statistics>: the page's name, a digest of them, then does not
    depend on the results folder.
    """

    def __init__(self, project: Project, statistics: Statistics, runs: Runs, pictures: Pictures):
        self.project, self.statistics, self._runs, self._pictures = project, statistics, runs, pictures
        self.of_methods = {name: point["lifelong"] for name, point in project.learned.items() if point["lifelong"]}
        self.runs: dict[str, list[str]] = {}
        for method, seed in itertools.product(self.of_methods, project.config["seeds"]):
            for count in range(2, len(project.concepts) + 1):
                self.runs[self._key(method, seed, count)] = self._first(method, seed, count)
        self.free = dict(place for scope in ("pooled", "timestep", "shared") for place in self._free(scope))
        self.seen = self._by_stage(pictures.tuned, self._pictures_at)
        self.judged = self._by_stage(pictures.measured, self._measured_at)
        whole = {
            runs[0].partition("/")[2]: key for key, runs in self.runs.items() if len(runs) == len(project.concepts)
        }
        self.together = {run: f"<kept>/lifelong/{run}/{key}/{self._pairs_at(key)}" for run, key in whole.items()}
        self.about: Config = {
            "stages": [list(key) for key in self.seen],
            "rooms": [list(key) for key in self.free],
            "runs": list(self.together),
            "rules": {
                name: project.methods[name]["rule"] or project.config["protect"]["rule"] for name in self.of_methods
            },
            "ranks": {name: project.methods[name]["rank"] for name in self.of_methods},
            "concepts": list(project.concepts),
        }

    def _first(self, method: str, seed: int | str, count: int) -> list[str]:
        return [f"{concept}/{method}/{seed}" for concept in list(self.project.concepts)[:count]]

    def _key(self, method: str, seed: int | str, count: int) -> str:
        return digest(self._runs.keyed(self._first(method, seed, count)))

    def _pictures_at(self, stage: str, concept: str) -> str:
        """Return where pictures of a concept lie below a stage."""
        prompts = self.prompts({"stage": stage, "concept": concept})
        return f"images/{digest([prompts, self.project.config['sampler'], self._pictures.sampling])}"

    def _measured_at(self, stage: str, concept: str) -> str:
        wildcards = {"concept": concept, "method": self.runs[stage][0].split("/")[1]}
        return f"metrics/{self._pictures.measured_key(self._pictures_at(stage, concept), wildcards)}.json"

    def _pairs_at(self, stage: str) -> str:
        """Return where pictures of two subjects lie below a stage."""
        pairs = self.pairs({"stage": stage})
        return f"together/{digest([pairs, self.project.config['sampler'], self._pictures.sampling])}"

    def _by_stage(
        self, of_run: Mapping[str, str], of_stage: Callable[[str, str], str]
    ) -> dict[tuple[str, int, int, str], str]:
        """Return files by (method, seed, number of concepts known, concept), from when a concept is learned to the end.

        of_run: where files lie below a run's folder; of_stage: below a stage, by its key and concept. The last concept
        of a sequence was drawn and measured as a run of its own. So was one that was learned alone, to be merged: this
        counts as zero concepts known.
        """
        found, concepts = {}, list(self.project.concepts)
        for run in self._runs.of_methods:
            concept, method, seed = run.split("/")
            if method not in self.of_methods:
                continue
            alone = f"<kept>/runs/{run}/{self._runs.keys[run]}/{of_run[run]}"
            if self.of_methods[method] == "merged":
                found[method, int(seed), 0, concept] = alone
            for count in range(concepts.index(concept) + 1, len(concepts) + 1):
                place = alone
                if count > 1 and (concepts[count - 1] != concept or self.of_methods[method] != "sequence"):
                    stage = self._key(method, seed, count)
                    place = f"<kept>/lifelong/{method}/{seed}/{stage}/{concept}/{of_stage(stage, concept)}"
                found[method, int(seed), count, concept] = place
        return found

    def _free(self, scope: str) -> list[tuple[tuple[str, int, str], str]]:
        """Return projectors that tell how many directions were free, of sequences that protect."""
        found = []
        for run in self._runs.of_methods:
            concept, method, seed = run.split("/")
            chosen = self.project.methods[method]
            if self.of_methods.get(method) == "sequence" and is_ours(chosen) and chosen["scope"] == scope:
                step = "pooled" if scope == "pooled" else self.statistics.steps[0]
                joined = self._runs.recipes[run]["identity"].get("lifelong")
                place = f"<kept>/runs/{run}/{self._runs.keys[run]}" if joined else "<statistics>"
                found.append(((method, int(seed), concept), f"{place}/projectors/{step}.zarr"))
        return found

    def taught_prompts(self, wildcards: Wildcards) -> list[str]:
        """Return the prompts of one subject that later subjects preserve: `lifelong.prompts`, or its captions."""
        concept = self.project.concepts[wildcards["concept"]]
        texts = self.project.subject_prompts or concept["class_prompts"]
        return [fill_prompt(prompt, subject_words(concept)) for prompt in texts]

    def moments_identity(self, wildcards: Wildcards) -> dict[str, Any]:
        return self._moments_identity(run_of(wildcards))

    def _moments_identity(self, run: str) -> dict[str, Any]:
        """Return what the moments of a learned subject are made from."""
        return {
            "model": self.project.model,
            "sampler": self.statistics.identity["sampler"],
            "run": self._runs.keys[run],
            "prompts": self.project.subject_prompts,
        }

    def earlier_moments(self, wildcards: Wildcards) -> list[str]:
        return [f"{self._runs.folder(run)}/moments.zarr" for run in self._runs.earlier(run_of(wildcards))]

    def earlier_identities(self, wildcards: Wildcards) -> list[dict[str, Any]]:
        return [self._moments_identity(run) for run in self._runs.earlier(run_of(wildcards))]

    def adapters(self, wildcards: Wildcards) -> list[str]:
        return self._runs.adapters(self.runs[wildcards["stage"]])

    def pictures(self, wildcards: Wildcards) -> str:
        stage, concept = wildcards["stage"], wildcards["concept"]
        place = f"<kept>/lifelong/{wildcards['method']}/{wildcards['seed']}/{stage}/{concept}"
        return f"{place}/{self._pictures_at(stage, concept)}"

    def prompts(self, wildcards: Wildcards) -> Prompts:
        """Return all groups of the concept that was learned last; of earlier ones only those that show themselves."""
        groups = self._pictures.run_prompts(wildcards)
        last = self.runs[wildcards["stage"]][-1].split("/")[0] == wildcards["concept"]
        return groups if last else {group: groups[group] for group in ("subject", "class")}

    def pairs(self, wildcards: Wildcards) -> list[list[str]]:
        """Return two prompts for each two consecutive concepts: for the left and the right half of one picture."""
        words = [subject_words(self.project.concepts[run.split("/")[0]]) for run in self.runs[wildcards["stage"]]]
        left, right = self.project.config["lifelong"]["pair"]
        return [[fill_prompt(left, a), fill_prompt(right, b)] for a, b in itertools.pairwise(words)]

    def constraints(self) -> dict[str, str]:
        return {"stage": "|".join(self.runs) or "none"}
