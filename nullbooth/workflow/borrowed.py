"""Warnings about settings for the embedded model that are used with another model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nullbooth.inputs.settings import EMBEDDED, sweep_points
from nullbooth.inputs.shipped import shipped

_PROMPTS = Path("config/prompts")
_PHOTOGRAPHIC = "photographic.txt"  # the only file there that is not for the embedded model
_GUIDANCE, _RATE, _IDENTIFIER = 3.0, 2e-3, "vbk"


def borrowed(config: dict[str, Any]) -> list[str]:
    """Return a warning about all settings that suit only the embedded model, with hints; none for that model itself."""
    if Path(config["model"]).resolve() == shipped(EMBEDDED) or not (found := list(_settings(config))):
        return []
    return [f"model: {config['model']} has settings that suit only the embedded model: set {', '.join(found)}"]


def _settings(config: dict[str, Any]) -> Iterator[str]:
    if not config["protect"]["pack"] and _is_embedded(config["protect"]["prompts"]):
        yield f"protect.prompts to {_PROMPTS / _PHOTOGRAPHIC} or a file of your own"
    groups = [group for group, path in config["sample"]["prompts"].items() if _is_embedded(path)]
    if groups:
        yield f"sample.prompts ({', '.join(groups)}) to files of your own"
    contexts = [key for key in ("templates", "paraphrases") if config["edits"] and _is_embedded(config["edit"][key])]
    if contexts:
        yield f"edit ({', '.join(contexts)}) to files of your own"
    for name, other in (("clip", "openai/clip-vit-large-patch14"), ("dino", "facebook/dinov2-base")):
        if shipped("resources") in Path(config["evaluate"][name]).resolve().parents:
            yield f"evaluate.{name} to a model of photographs such as {other}"
    if config["sampler"]["guidance"] == _GUIDANCE:
        yield "sampler.guidance as in the model's card (Stable Diffusion 1 and 2: 7.5, XL: 5.0, FLUX.1-dev: 3.5)"
    if any(_rate(config, point) == _RATE for method in config["methods"] for point in sweep_points(method)):
        yield "train.learning_rate to 1.0e-4"
    if numbers := [str(i) for i, entry in enumerate(config["concepts"]) if entry["identifier"] == _IDENTIFIER]:
        yield f"identifier of concepts {', '.join(numbers)} to a rare word of its tokenizer such as sks"


def _is_embedded(path: str) -> bool:
    """Return True for a file of prompts that is for the embedded model."""
    found = Path(path).resolve()
    return found.parent == shipped(str(_PROMPTS)) and found.name != _PHOTOGRAPHIC


def _rate(config: dict[str, Any], method: dict[str, Any]) -> float:
    return {**config["train"], **method["train"]}["learning_rate"]
