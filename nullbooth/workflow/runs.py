"""Runs: one adapter for each concept, method and seed, named by the recipe that it is made from."""

import re
from collections.abc import Iterable, Mapping
from math import ceil
from pathlib import Path
from typing import Any

from nullbooth.inputs.methods import METHODS, is_lora, is_ours, prior_of, reads_trajectories
from nullbooth.inputs.settings import refuse_half
from nullbooth.statistics import packs
from nullbooth.storage.digests import digest
from nullbooth.workflow.project import Config, Project
from nullbooth.workflow.shown import Names
from nullbooth.workflow.statistics import Statistics

Wildcards = Mapping[str, str]
# Settings of `train` that are newer than results to be found: at these values they are left out of recipes. Add a new
# setting of `train` here, with its default.
LATER_TRAIN: dict[str, Any] = {}
_FILES = ("adapter.safetensors", "loss.csv", "config.yaml", "tensorboard", "wandb")


def run_of(wildcards: Wildcards) -> str:
    """Return the run `concept/method/seed` of a job."""
    return "/".join(wildcards[name] for name in ("concept", "method", "seed"))


class Runs:
    """All runs of a workspace, with the recipes and keys (digests of recipes) of their adapters.

    of_methods: runs of `methods`; of_comparison: those of `comparison`, one for each point; trained_for_comparison:
    those whose adapters the points draw with.
    """

    def __init__(self, project: Project, statistics: Statistics):
        config = project.config
        self.project, self.statistics, self.kept = project, statistics, statistics.kept
        self.of_methods = [f"{c}/{m}/{s}" for c in project.concepts for m in project.learned for s in config["seeds"]]
        seeds = config["comparison"]["seeds"]
        self.of_comparison = [f"{c}/{m}/{s}" for c in project.compared for m in project.points for s in seeds]
        self.trained_for_comparison = list(dict.fromkeys(map(self.trained, self.of_comparison)))
        # What later subjects preserve of earlier ones (`lifelong`).
        self.later = {"weight": config["lifelong"]["weight"], "prompts": project.subject_prompts}
        self.sampling = {
            **{key: config[key] for key in ("precision", "resolution")},
            **project.computed,
            **{key: config["sample"][key] for key in ("per_prompt", "seed")},
        }
        self.recipes: dict[str, Config] = {}
        self.keys: dict[str, str] = {}
        # In the order of concepts: a recipe contains the keys of earlier ones.
        for run in dict.fromkeys([*self.of_methods, *self.trained_for_comparison, *self.of_comparison]):
            self.recipes[run] = self._recipe(run)
            self.keys[run] = digest(self.recipes[run])

    @property
    def exportable(self) -> list[str]:
        """Runs whose adapter is one low-rank change for all timesteps, as a LoRA file needs."""
        return [run for run in self.of_methods if is_lora(self.method(run))]

    def method(self, run: str) -> Config:
        return self.project.methods[run.split("/")[1]]

    def trained(self, run: str) -> str:
        """Return the run whose adapter a run draws with: another one for points of the comparison at other scales."""
        concept, method, seed = run.split("/")
        return f"{concept}/{self.project.points.get(method, {}).get('run', method)}/{seed}"

    def folder(self, run: str) -> str:
        """Return the folder of a run's adapter and of all that is made with it."""
        return f"{self.kept}/runs/{run}/{self.keys[run]}"

    def keyed(self, runs: Iterable[str]) -> list[str]:
        """Return runs with their keys."""
        return [f"{run}/{self.keys[run]}" for run in runs]

    def adapters(self, runs: Iterable[str]) -> list[str]:
        return [f"{self.folder(run)}/adapter.safetensors" for run in runs]

    def earlier(self, run: str) -> list[str]:
        """Return the runs on top of which one is learned, in their order."""
        concept, method, seed = run.split("/")
        names = list(self.project.concepts)
        sequence = self.method(run)["lifelong"] == "sequence"
        return [f"{name}/{method}/{seed}" for name in (names[: names.index(concept)] if sequence else [])]

    def _recipe(self, run: str) -> Config:
        """Return all that an adapter is made from. Photographs count by content, wherever they lie."""
        concept, method, seed = run.split("/")
        config, identity_of_sums, chosen = self.project.config, self.statistics.identity, self.project.methods[method]
        train = {**config["train"], **chosen["train"], "seed": int(seed), "precision": config["precision"]}
        train = {key: value for key, value in train.items() if key not in LATER_TRAIN or value != LATER_TRAIN[key]}
        rule = (chosen["rule"] or config["protect"]["rule"]) if is_ours(chosen) else None
        own: Config = {key: identity_of_sums[key] for key in ("model", "sites", "weights") if key in identity_of_sums}
        # Most rivals read nothing of the protected prompts.
        identity: Config = dict(identity_of_sums) if METHODS[chosen["method"]].reads else own
        if rule and (scope := packs.scope_of(chosen)) in self.project.packs:
            identity = own | {"pack": self.project.pack_contents[scope]}
            rule = self.project.packs[scope][1]["rule"]
        if earlier := {run: self.keys[run] for run in self.earlier(run)}:
            identity = identity | {"earlier": earlier}
            if is_ours(chosen):
                identity["lifelong"] = self.later
        # Dropped captions are trained with what guidance gives the denoiser in place of the prompt.
        sampler = ("scheduler", "options", "arguments", *(["guidance"] if train["caption_dropout"] else []))
        learned = ("name", "identifier", "class", "prompt", "images_digest", "class_prompts")
        recipe = {
            "concept": {key: self.project.concepts[concept][key] for key in learned},
            "method": {
                "train": train,
                **{key: chosen[key] for key in ("method", "scope", "rank", "alpha", "prior")},
                "rule": rule,
            },
            "sampler": {key: config["sampler"][key] for key in sampler},
            "resolution": config["resolution"],
            "sites": config["protect"]["sites"],
            "identity": identity,
        }
        if prior_of(chosen) == "images":
            # Training resumes from a checkpoint only if that was made with the same pictures.
            recipe["class_pictures"] = digest([config["sampler"], self.sampling_of_class(concept)])
        return recipe

    def sampling_of_class(self, concept: str) -> Config:
        """Return how pictures of a class are drawn: enough per prompt, from noise that no evaluated picture has."""
        config, prompts = self.project.config, self.project.concepts[concept]["class_prompts"]
        per_prompt = ceil(config["sample"]["class_images"] / len(prompts))
        return {**self.sampling, "per_prompt": per_prompt, "seed": self.sampling["seed"] + 1_000_000}

    def adapter(self, wildcards: Wildcards) -> list[str]:
        """Return the adapter that a job draws with, as a list of one."""
        return [f"{self.kept}/runs/{self.trained(run_of(wildcards))}/{wildcards['key']}/adapter.safetensors"]

    def adapters_before(self, wildcards: Wildcards) -> list[str]:
        """Return the adapters on top of which a run is learned."""
        return self.adapters(self.earlier(run_of(wildcards)))

    def projectors(self, wildcards: Wildcards) -> list[str]:
        """Return the projectors that a training reads. Raises SettingsError if the method cannot be trained so."""
        run = run_of(wildcards)
        method = self.method(run)
        if self.recipes[run]["identity"].get("lifelong"):
            steps = ["pooled"] if method["scope"] == "pooled" else self.statistics.steps
            folder = f"{self.kept}/runs/{run}/{wildcards['key']}"
            return [f"{folder}/projectors/{step}.zarr" for step in steps]
        # Methods of `methods` were checked when the settings were read. Those of the comparison are another target.
        if self.project.packs:
            packs.check_method(method, self.project.packs)
        refuse_half(f"comparison.methods: {wildcards['method']}", method["method"], self.project.config["weights"])
        return self.statistics.projectors(method)

    def reads_trajectories(self, wildcards: Wildcards) -> bool:
        return reads_trajectories(self.project.methods[wildcards["method"]])

    def draws_class(self, wildcards: Wildcards) -> bool:
        return prior_of(self.project.methods[wildcards["method"]]) == "images"

    def gpus(self, method: str) -> int:
        """Return how many GPUs one training of a method takes."""
        return {**self.project.config["train"], **self.project.methods[method]["train"]}["gpus"]

    def part(self, key: str) -> Any:
        """Return a function of wildcards that gives one part of a run's recipe."""
        return lambda wildcards: self.recipes[run_of(wildcards)][key]

    def constraints(self) -> dict[str, str]:
        return {
            "concept": "|".join(self.project.concepts),
            "method": "|".join(map(re.escape, self.project.methods)),
            "seed": r"\d+",
            "key": "|".join(sorted(set(self.keys.values()))),
        }

    def add_names(self, names: Names) -> None:
        """Add the plain names of adapters, losses and exports."""
        for run in self.keys:
            # A run that draws with the adapter of another has measurements only.
            stands = "adapter.safetensors" if self.trained(run) == run else "metrics.json"
            names.folders[f"runs/{run}"] = f"runs/{run}/{stands}"
            for name in _FILES:
                names.add(f"runs/{run}/{name}", Path(self.folder(run), name))
            names.add(f"runs/{run}/lora", Path(self.folder(run), "lora"), "README.md")
