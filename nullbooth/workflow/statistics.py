"""Statistics of the protected prompts: what they depend on, how prompts are cut into shards, and where stores lie."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nullbooth.inputs.methods import is_ours
from nullbooth.statistics import packs
from nullbooth.statistics.shards import choose_shards, cut_shards, enough, shard_identity
from nullbooth.storage.atomic import read_json
from nullbooth.storage.digests import digest
from nullbooth.workflow.project import Project
from nullbooth.workflow.shown import Names

_SUMS = ("covariances", "projectors")


class Statistics:
    """Names and contents of all stores that are made from protected prompts.

    Every store carries its identity: the digests of all that it depends on. Every reader compares it.

    kept: the folder of everything that is named by its content. It has a folder for each shard (`shards`), for the sums
    over all shards (`statistics`), for adapters and their pictures (`runs`) and for the base model's (`drawn`).
    identity: of the sums. of_shards: of a shard, but for its prompts. shards: prompts by name. heldout: name of the
    shard of unprotected prompts, whose moments measure what adapters change for them.
    """

    def __init__(self, project: Project):
        """Raises ValueError if kept shards cannot be read."""
        config, protect = project.config, project.config["protect"]
        self.project = project
        self.steps, self.pooled = project.steps, [*project.steps, "pooled"]
        negatives = protect["negatives"] if config["sampler"]["guidance"] > 1 else []
        self.of_shards: dict[str, str] = {
            "model": project.model,
            "prompts": digest(project.protected),
            "sampler": digest([config["sampler"], protect["seed"], config["resolution"]]),
            "sites": digest(protect["sites"]),
            "precision": config["precision"],
            **project.computed,
            # Left out where there are none, so that statistics made before negatives existed are found.
            **({"negatives": digest(negatives)} if negatives else {}),
        }
        # How many shards are protected may depend on the leak (rule `leak`). Then the sums depend on more than a shard.
        self.until = None if project.packs else protect["prompts_until"]
        deciding = [self.until, protect["shard_size"], protect["rule"], project.prompts["unrelated"]]
        self.identity = self.of_shards | ({"until": digest(deciding)} if self.until else {})

        self.kept = Path(config["results"]) / "kept"
        self.folder = self.kept / "statistics" / digest(self.identity)
        if self.until:
            # Cut without a look at what is kept: what is protected must not depend on what was computed before.
            self.shards = cut_shards(self.of_shards, project.protected, protect["shard_size"])
        else:
            sums = self.folder / "covariances/00.zarr"
            kept = self.kept / "shards"
            self.shards = choose_shards(kept, sums, self.of_shards, project.protected, protect["shard_size"])
        self.identities = {name: shard_identity(self.of_shards, prompts) for name, prompts in self.shards.items()}
        self.heldout_identity = shard_identity(self.of_shards, project.prompts["unrelated"])
        self.heldout = digest(self.heldout_identity)
        self.prompts = {**self.shards, self.heldout: project.prompts["unrelated"]}

        self.rule = digest(protect["rule"])
        ours = [method for method in project.learned.values() if is_ours(method)]
        # Scopes of the packs that `pack` makes: those that the methods read, or else the smallest.
        self.scopes = sorted({packs.scope_of(method) for method in ours}) or ["pooled"]
        self.figures = f"{self.folder}/figures/{self.rule}"
        leak = digest([protect["rule"], self.heldout_identity, list(self.identities.values())])
        self.leak = f"{self.folder}/leak/{leak}"
        self.stores = {
            "trajectories": [self.trajectory(shard) for shard in self.shards],
            "moments": [self.moments(shard, step) for shard in self.shards for step in self.steps],
            "sums": [
                f"{self.folder}/{kind}/{step}.zarr" for kind in ("covariances", "projectors") for step in self.pooled
            ],
        }
        if project.packs:
            self.stores |= {"moments": [], "sums": []}

    def trajectory(self, shard: str) -> str:
        return str(self.kept / "shards" / shard / "trajectory.zarr")

    def moments(self, shard: str, step: str) -> str:
        return str(self.kept / "shards" / shard / "moments" / f"{step}.zarr")

    def prompts_of(self, wildcards: Mapping[str, str]) -> list[str]:
        return self.prompts[wildcards["shard"]]

    def identity_of(self, wildcards: Mapping[str, str]) -> dict[str, str]:
        return shard_identity(self.of_shards, self.prompts_of(wildcards))

    def taken(self, leak: Callable[[int], str]) -> list[str]:
        """Return the protected shards: all, or the first ones until another one lowers the leak by too little.

        leak: returns the file with the leak of so many shards. It may raise Snakemake's error that the file is still to
        be made.
        """
        leaks: list[float] = []
        for count in range(1, len(self.shards) if self.until else 0):
            leaks.append(read_json(leak(count))["leak"])
            if enough(leaks, self.until or 0):
                return list(self.shards)[:count]
        return list(self.shards)

    def trajectories_taken(self, leak: Callable[[int], str]) -> list[str]:
        return [self.trajectory(shard) for shard in self.taken(leak)]

    def moments_taken(self, leak: Callable[[int], str], step: str) -> list[str]:
        return [self.moments(shard, step) for shard in self.taken(leak)]

    def leaks_taken(self, leak: Callable[[int], str]) -> list[str]:
        """Return the leaks that decided how many shards are protected, for their figure."""
        return [f"{self.leak}/{i + 1}.json" for i in range(len(self.taken(leak)))]

    def first(self, wildcards: Mapping[str, str]) -> list[str]:
        """The first shards, `number` of them, as the leak is measured."""
        return list(self.shards)[: int(wildcards["number"])]

    def projectors(self, method: dict[str, Any]) -> list[str]:
        """The projectors that a method reads, none with a pack. Step 00 also has those of static features."""
        if not is_ours(method) or self.project.packs:
            return []
        steps = ["pooled"] if method["scope"] == "pooled" else self.steps
        return [f"{self.folder}/projectors/{step}.zarr" for step in steps]

    def in_use(self) -> list[str]:
        """The sums and projectors that the adapters of `methods` rest on."""
        needed = {path for method in self.project.learned.values() for path in self.projectors(method)}
        return sorted(needed) + [f"{self.folder}/covariances/{step}.zarr" for step in self.steps if needed]

    def foreign_packs(self) -> list[str]:
        """Warnings of packs that were made with another sampler than that of the settings."""
        return [
            f"protect.pack: {path} was made with another sampler, resolution or seed: it protects "
            f"{len(about['timesteps'])} timesteps, and every other timestep takes the nearest of them"
            for path, about in self.project.packs.values()
            if about["identity"]["sampler"] != self.identity["sampler"]
        ]

    def add_names(self, names: Names) -> None:
        """Add the plain names of figures, packs, sums and trajectories."""
        names.folders |= {"figures": "figures/free_directions.csv", "packs": f"packs/{self.scopes[0]}.safetensors"}
        for name in ("spectra.svg", "free_directions.svg", "free_directions.csv"):
            names.add(f"figures/{name}", f"{self.figures}/{name}")
        for name in ("leak.svg", "leak.csv"):
            names.add(f"figures/{name}", f"{self.leak}/{name}")
        for scope in ("pooled", "timestep"):
            names.add(f"packs/{scope}.safetensors", f"{self.folder}/packs/{self.rule}/{scope}.safetensors")
        for kind in _SUMS:
            for step in self.pooled:
                names.add(f"{kind}/{step}.zarr", f"{self.folder}/{kind}/{step}.zarr")
        for i, shard in enumerate(self.shards):
            names.add(f"trajectories/{i:02d}.zarr", self.trajectory(shard))
