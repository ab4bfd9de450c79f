"""Pictures of base and tuned models, and their measurements, named by prompts, sampler and evaluators."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nullbooth.inputs.groups import OF_ALL, OF_CONCEPT
from nullbooth.inputs.settings import fill_prompt, subject_words
from nullbooth.storage.digests import digest
from nullbooth.workflow.project import SHORT, Config, Project
from nullbooth.workflow.runs import Runs, Wildcards, run_of
from nullbooth.workflow.shown import Names

Prompts = dict[str, list[str]]
SHARED = "unrelated"  # the part of the base model's pictures that serves every concept


class Pictures:
    """Prompts, settings and folders of all pictures.

    A part is what the base model draws at a time: the prompts of one concept, or those that serve all of them. The
    comparison draws with fewer steps; its parts end with the number of steps.
    """

    def __init__(self, project: Project, runs: Runs):
        self.project, self.runs, self.sampling = project, runs, runs.sampling
        self.drawn = runs.kept / "drawn" / digest(project.model)
        self.short = SHORT + str(project.config["comparison"]["steps"])
        self.parts = [*project.concepts, SHARED]
        self.all_parts = [*self.parts, *(part + self.short for part in self.parts)]
        self.base = {part: self._key(self.base_prompts, {"part": part}) for part in self.all_parts}
        self.classes = {name: self._class_key(name) for name in project.concepts}
        # By run, where its pictures and measurements lie below its folder.
        self.tuned: dict[str, str] = {}
        self.measured: dict[str, str] = {}
        for run in runs.keys:
            wildcards = dict(zip(("concept", "method", "seed"), run.split("/"), strict=True))
            self.tuned[run] = f"images/{self._key(self.run_prompts, wildcards)}"
            self.measured[run] = f"metrics/{self.measured_key(self.tuned[run], wildcards)}.json"

    def _key(self, prompts: Callable[[Wildcards], Prompts], wildcards: Wildcards) -> str:
        return digest([prompts(wildcards), self.sampler_of(wildcards), self.sampling_of(wildcards)])

    def _class_key(self, concept: str) -> str:
        prompts = self.class_prompts({"concept": concept})
        return digest([prompts, self.project.config["sampler"], self.runs.sampling_of_class(concept)])

    def measured_key(self, pictures: str, wildcards: Wildcards) -> str:
        """Return the name of measurements: by pictures, what they are compared with, and the evaluators."""
        compared = [Path(path).name for path in self.base_of_run(wildcards)]
        return digest([pictures, compared, self.project.evaluators, self.photographs(wildcards)])

    def base_folder(self, part: str) -> str:
        return f"{self.drawn}/{part}/{self.base[part]}"

    def of_class(self, wildcards: Wildcards) -> str | list[str]:
        """Return the base model's pictures of the class, or nothing for methods that do not train on them."""
        concept = wildcards["concept"]
        return f"{self.drawn}/class/{concept}/{self.classes[concept]}" if self.runs.draws_class(wildcards) else []

    def tuned_folder(self, wildcards: Wildcards) -> str:
        run = run_of(wildcards)
        return f"{self.runs.kept}/runs/{run}/{wildcards['key']}/{self.tuned[run]}"

    def base_of_run(self, wildcards: Wildcards) -> list[str]:
        """Return the base model's pictures that those of a run are paired with."""
        suffix = self.short if wildcards["method"] in self.project.points else ""
        return [self.base_folder(part + suffix) for part in (wildcards["concept"], SHARED)]

    def base_embeddings(self, wildcards: Wildcards) -> list[str]:
        """Return the embeddings of the base model's pictures."""
        name = f"{digest(self.project.embedders)}.safetensors"
        folders = map(Path, self.base_of_run(wildcards))
        return [str(path.parent / "embeddings" / path.name / name) for path in folders]

    def photographs(self, wildcards: Wildcards) -> Config:
        """Return what a run is measured against; photographs count by content."""
        concept = self.project.concepts[wildcards["concept"]]
        return {key: concept.get(key) for key in ("name", "identifier", "images_digest", "holdout_digest")}

    def class_prompts(self, wildcards: Wildcards) -> Prompts:
        """Return the captions of the photographs with the class in place of the subject."""
        concept = self.project.concepts[wildcards["concept"]]
        words = {"subject": concept["class"], "class": concept["class"]}
        return {"class": [fill_prompt(prompt, words) for prompt in concept["class_prompts"]]}

    def class_sampling(self, wildcards: Wildcards) -> Config:
        return self.runs.sampling_of_class(wildcards["concept"])

    def run_prompts(self, wildcards: Wildcards) -> Prompts:
        """Return the prompts of one concept by group, with {subject} and {class} filled in."""
        concept = self.project.concepts[wildcards.get("concept") or wildcards["part"].removesuffix(self.short)]
        words = subject_words(concept)
        return {
            group: [fill_prompt(prompt, words) for prompt in prompts] for group, prompts in self.project.prompts.items()
        }

    def base_prompts(self, wildcards: Wildcards) -> Prompts:
        """Return what the base model draws: the groups of one concept, or those that serve every concept."""
        if wildcards["part"].removesuffix(self.short) == SHARED:
            return {group: self.project.prompts[group] for group in OF_ALL if group in self.project.prompts}
        return {group: prompts for group, prompts in self.run_prompts(wildcards).items() if group in OF_CONCEPT}

    def sampler_of(self, wildcards: Mapping[str, str]) -> Config:
        """Return the sampler of pictures; those of the comparison have fewer steps."""
        sampler = self.project.config["sampler"]
        fewer = wildcards.get("method") in self.project.points or self.short in wildcards.get("part", "")
        return {**sampler, "steps": self.project.config["comparison"]["steps"]} if fewer else sampler

    def sampling_of(self, wildcards: Wildcards) -> dict[str, Any]:
        """Return how pictures are drawn; those of the gallery with attention maps of the subject's words.

        The base model draws one more picture of each prompt. The distance between its own pictures is the scale on
        which drift is read.
        """
        if point := self.project.points.get(wildcards.get("method", "")):
            return self.sampling if point["scale"] == 1 else {**self.sampling, "scale": point["scale"]}
        found = dict(self.sampling)
        if wildcards.get("part"):
            found["per_prompt"] += 1
        if concept := self.project.concepts.get(wildcards.get("concept") or wildcards["part"]):
            found["attention"] = subject_words(concept)["subject"].split()
        return found

    def constraints(self) -> dict[str, str]:
        return {"part": "|".join(self.all_parts), "pictures": "[0-9a-f]{16}", "measured": "[0-9a-f]{16}"}

    def add_names(self, names: Names) -> None:
        """Add the plain names of pictures and measurements."""
        for part in self.all_parts:
            names.add(f"images/base/{part}", self.base_folder(part))
        for run in self.runs.keys:
            folder = Path(self.runs.folder(run))
            names.add(f"runs/{run}/images", folder / self.tuned[run])
            names.add(f"runs/{run}/metrics.json", folder / self.measured[run])
