"""Edits in closed form: their recipe, the pictures that show them, and where these lie."""

from pathlib import Path

from nullbooth.inputs.edits import Edit
from nullbooth.storage.digests import digest
from nullbooth.workflow.pictures import SHARED, Pictures, Prompts
from nullbooth.workflow.project import Config, Project
from nullbooth.workflow.shown import Names
from nullbooth.workflow.statistics import Statistics


class Edited:
    """Recipe, prompts and places of all edits of the settings. Without edits, nothing uses it.

    contexts: by group of pictures, the contexts in which edits are drawn. base_prompts, prompts: what the base model
    and the edited model draw. base_pictures, pictures, metrics: where pictures and measurements lie.
    """

    def __init__(self, project: Project, statistics: Statistics, pictures: Pictures):
        config = project.config
        self.edits: list[Edit] = project.edits
        self._pictures_each = config["edit"]["pictures"]
        pack_rule = next((about["rule"] for _, about in project.packs.values()), None)
        self.recipe: Config = {
            "edits": config["edits"],
            "rule": config["edit"]["rule"] or pack_rule or config["protect"]["rule"],
            "l2": config["edit"]["l2"],
            "templates": project.contexts.get("templates"),
            "protected": project.retained,
            "arguments": config["sampler"]["arguments"],
            "resolution": config["resolution"],
            "identity": {key: statistics.identity[key] for key in ("model", "weights") if key in statistics.identity},
        }
        self.folder = statistics.kept / "edits" / digest(self.recipe)
        self.contexts = {
            "edited": project.contexts.get("templates", []),
            "paraphrased": project.contexts.get("paraphrases", []),
        }
        self.base_prompts: Prompts = {
            "edited": self._filled("edited"),
            "paraphrased": self._filled("paraphrased"),
            "meant": self._filled("edited", target=True) + self._filled("paraphrased", target=True),
        }
        self.prompts: Prompts = {**{group: self.base_prompts[group] for group in self.contexts}, **project.unedited}
        self.base_pictures, self.pictures = (
            self.folder / name / digest([prompts, config["sampler"], pictures.sampling])
            for name, prompts in {"base": self.base_prompts, "images": self.prompts}.items()
        )
        shared = pictures.base[SHARED]
        compared = [self.base_pictures.name, self.pictures.name, shared, project.evaluators, self.contexts]
        self.metrics = self.folder / "metrics" / digest(compared)

    def _filled(self, group: str, target: bool = False) -> list[str]:
        """Return prompts of all edits in some contexts, as they are written or as they shall be understood (target)."""
        # Chosen by hash: the first ones of the alphabet would all be photographs.
        chosen = sorted(self.contexts[group], key=digest)[: self._pictures_each]
        return list(dict.fromkeys(edit.filled(context)[target] for edit in self.edits for context in chosen))

    def add_names(self, names: Names) -> None:
        """Add the plain names of edits, their pictures, measurements and exports."""
        names.folders["edits"] = "edits/edit.safetensors"
        for name in ("edit.safetensors", "edit.json", "config.yaml"):
            names.add(f"edits/{name}", self.folder / name)
        for kind in ("json", "csv"):
            names.add(f"edits/metrics.{kind}", Path(f"{self.metrics}.{kind}"))
        names.add("edits/base", self.base_pictures)
        names.add("edits/images", self.pictures)
        names.add("edits/pipeline", self.folder / "pipeline", "model_index.json")
        names.add("edits/lora", self.folder / "lora", "diffusers.safetensors")
