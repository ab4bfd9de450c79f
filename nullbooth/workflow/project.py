"""The settings and everything that they name: read and checked once, before any rule exists."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nullbooth.errors import SettingsError
from nullbooth.inputs.edits import Edit, edits_of, not_concerned
from nullbooth.inputs.groups import check_groups
from nullbooth.inputs.methods import is_ours
from nullbooth.inputs.photographs import captions, content_digest, list_images
from nullbooth.inputs.prompts import read_prompts
from nullbooth.inputs.settings import compared_points, complete, read_schema, sweep_points
from nullbooth.models.identity import known_configs, model_identity, single_identity
from nullbooth.statistics import packs
from nullbooth.storage.digests import digest, file_digest
from nullbooth.workflow.preflight import check_identifiers, check_inputs

Config = dict[str, Any]
SHORT = "@"  # marks names of pictures that are drawn with the comparison's fewer steps


class Project:
    """All inputs of a workflow run: model, prompts, concepts, methods, packs, edits and evaluators.

    config: the settings with all defaults, and with what was looked up (commit of the model, digests of photographs).
    learned: methods by name, one for each point of a sweep; points: those of the comparison; methods: both.
    packs: by scope, a file with projectors and its description. It replaces the statistics.
    prompts: the prompts that are drawn, by group; protected: the protected prompts.
    """

    def __init__(self, given: Config, warn: Callable[[str], None] | None = None):
        """Read the settings as given by the user and all that they name.

        warn: called with each warning. None leaves out the checks that only the first process of a run has to do.
        Raises SettingsError, InputError, OSError or ValueError with a message that names key, value and fix.
        """
        self.config = complete(given, read_schema())
        if warn:
            for warning in check_inputs(self.config):
                warn(warning)
        self.learned = {point["name"]: point for entry in self.config["methods"] for point in sweep_points(entry)}
        self._identify_model()
        self._open_packs("rule" in given["protect"])
        self._read_prompts()
        self._read_edits()
        self._identify_evaluators()
        self._read_concepts()
        self._read_comparison()

    def _identify_model(self) -> None:
        config = self.config
        path = Path(config["model"])
        self.single = path if path.is_file() else None
        if self.single:
            config["model_config"] = config["model_config"] or known_configs(self.single)
            self.model = single_identity(self.single, config["model_config"], config["revision"])
        else:
            self.model = model_identity(config["model"], config["revision"], variant=config["variant"])
        config["revision"] = self.model.partition("@")[2] or None  # the commit: jobs load exactly this one
        self.model += f":{config['variant']}" if config["variant"] else ""

    def _open_packs(self, asked: bool) -> None:
        """asked: whether the user set protect.rule, which then must be one that the pack allows."""
        protect = self.config["protect"]
        self.packs: dict[str, tuple[Path, dict[str, Any]]] = {}
        if protect["pack"]:
            self.packs, protect["pack"] = packs.open_packs(
                protect["pack"],
                {packs.scope_of(method) for method in self.learned.values() if is_ours(method)},
                self.model,
                digest(protect["sites"]),
                protect["rule"] if asked else None,
            )
            for method in self.learned.values():
                packs.check_method(method, self.packs)
        self.pack_contents = {scope: packs.content(path) for scope, (path, _) in self.packs.items()}

    def _read_prompts(self) -> None:
        config = self.config
        if self.packs:
            self.protected = next(about["prompts"] for _, about in self.packs.values())
            check_identifiers(config, self.protected)
        else:
            self.protected = read_prompts(config["protect"]["prompts"])
        self.prompts = {group: read_prompts(path) for group, path in config["sample"]["prompts"].items()}
        check_groups(
            self.prompts,
            self.protected,
            config["protect"]["pack" if self.packs else "prompts"],
            [entry["identifier"] for entry in config["concepts"]],
        )
        # Chosen by hash: adding a protected prompt then rarely changes which of them are drawn.
        self.prompts["protected"] = sorted(sorted(self.protected, key=digest)[: config["sample"]["protected"]])
        path = config["lifelong"]["prompts"]
        self.subject_prompts = read_prompts(path, "lifelong.prompts") if path else None

    def _read_edits(self) -> None:
        """contexts: templates and paraphrases, none without edits; unedited: drawn prompts that no edit concerns."""
        self.edits: list[Edit] = edits_of(self.config["edits"])
        names = ("templates", "paraphrases") if self.edits else ()
        self.contexts = {key: read_prompts(self.config["edit"][key], f"edit.{key}") for key in names}
        self.unedited = {group: not_concerned(self.prompts[group], self.edits) for group in ("unrelated", "protected")}
        self.retained = not_concerned(self.protected, self.edits) if self.edits else None
        if self.retained == []:
            raise SettingsError(
                "edits: every protected prompt names something that is edited; protect others (protect.prompts)"
            )

    def _identify_evaluators(self) -> None:
        """evaluators: identities of all models that measure pictures; embedders: of those that embed them."""
        evaluate = self.config["evaluate"]
        self.evaluators = {
            name: model_identity(path, key=f"evaluate.{name}", index="config.json")
            for name, path in evaluate.items()
            if name != "lpips"
        }
        if evaluate["lpips"]:
            self.evaluators["lpips"] = file_digest(Path(evaluate["lpips"]))
        self.embedders = {name: self.evaluators[name] for name in ("clip", "dino")}

    def _read_concepts(self) -> None:
        for entry in self.config["concepts"]:
            for key in filter(entry.get, ("images", "holdout")):
                entry[f"{key}_digest"] = content_digest(entry[key])
            found = captions(list_images(entry["images"]), entry["prompt"])
            entry["class_prompts"] = sorted({*found, entry["prompt"]})
        self.concepts: dict[str, Config] = {entry["name"]: entry for entry in self.config["concepts"]}

    def _read_comparison(self) -> None:
        comparison = self.config["comparison"]
        self.compared = comparison["concepts"] or list(self.concepts)[:1]
        if unknown := [name for name in self.compared if name not in self.concepts]:
            raise SettingsError(
                f"comparison.concepts: unknown concept {unknown[0]!r}; use some of {', '.join(self.concepts)}"
            )
        curves = [entry["name"] for entry in comparison["methods"]]
        self.reference = comparison["reference"] or next(iter(curves), None)
        if curves and self.reference not in curves:
            raise SettingsError(
                f"comparison.reference: unknown method {self.reference!r}; use one of {', '.join(curves)}"
            )
        self.points = compared_points(comparison)
        # A point at another scale draws with the adapter of another run (`run`), so that nothing is trained for it.
        trained = {point["run"]: point for point in self.points.values()}
        self.methods = {**self.learned, **trained, **self.points}

    @property
    def steps(self) -> list[str]:
        """Names of the sampler's timesteps: 00, 01, ..."""
        return [f"{i:02d}" for i in range(self.config["sampler"]["steps"])]

    @property
    def computed(self) -> Config:
        """Settings of the model's computation. Defaults are left out, so that results from before them are found."""
        usual = {"weights": "fp32", "attention": None}
        return {key: self.config[key] for key, default in usual.items() if self.config[key] != default}

    @property
    def protecting(self) -> bool:
        """True if statistics are needed: a method protects, and no pack replaces them."""
        return not self.packs and any(map(is_ours, self.learned.values()))
