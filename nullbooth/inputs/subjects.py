"""Checks of the photographs and captions that subjects are learned from, and of the prompts that draw them."""

from pathlib import Path
from typing import Any

from nullbooth.errors import SettingsError
from nullbooth.inputs.photographs import captions, check_image, list_images, list_unused
from nullbooth.inputs.settings import fill_prompt, names_subject, subject_words
from nullbooth.inputs.text import shown

_SHOWN = 8  # file names in a warning


def check_subjects(concepts: list[dict[str, Any]]) -> list[str]:
    """Refuse photographs and captions that cannot be used; return warnings. Raises InputError."""
    named = {Path(concept[key]).resolve() for concept in concepts for key in ("images", "holdout") if concept[key]}
    found = []
    for i, concept in enumerate(concepts):
        for key in filter(concept.get, ("holdout", "images")):
            found += check_photographs(Path(concept[key]), f"concepts.{i}.{key}", named)
        found += check_captions(concept, f"concepts.{i}")
    return found


def check_named(prompts: list[str], concept: dict[str, Any]) -> None:
    """Refuse prompts of `sample.prompts.subject` that do not name the subject of a concept. Raises SettingsError."""
    if nameless := [prompt for prompt in prompts if not names_subject(prompt, concept)]:
        raise SettingsError(
            f"sample.prompts.subject: {shown(nameless[0])}: neither {{subject}} nor {shown(concept['identifier'])} is "
            f"in it ({len(nameless)} such prompts), so that it cannot draw the subject; write {{subject}} into it"
        )


def check_photographs(folder: Path, key: str, named: set[Path]) -> list[str]:
    """Refuse photographs that cannot be read; return warnings about their colours, and about unused files. named:
    folders that other settings name. Raises InputError."""
    paths = list_images(folder, key)
    found = [f"{key}: {note}" for note in map(check_image, paths) if note]
    if unused := list_unused(folder, named):
        found.append(
            f"{key}: {folder}: not used: {', '.join(unused)}; photographs are read from this folder only, captions "
            "from .txt and .caption files beside them, metadata.jsonl and metadata.csv"
        )
    return found


def check_captions(concept: dict[str, Any], key: str) -> list[str]:
    """Refuse captions with placeholders of other tools; return a warning about those that do not name the subject.
    Raises SettingsError."""
    paths = list_images(concept["images"])
    said = dict(zip(paths, captions(paths, ""), strict=True))
    for path in filter(said.get, paths):
        try:
            fill_prompt(said[path], subject_words(concept))
        except SettingsError as error:
            raise SettingsError(f"{key}.images: the caption of {path}: {error}") from error
    nameless = [path.name for path in paths if not names_subject(said[path] or concept["prompt"], concept)]
    if not nameless:
        return []
    first = next(path for path in paths if path.name == nameless[0])
    source = f"{key}.images" if said[first] else f"{key}.prompt"
    names = ", ".join(nameless[:_SHOWN]) + (", ..." if nameless[_SHOWN:] else "")
    return [
        f"{source}: {len(nameless)} of {len(paths)} captions name the subject neither by {{subject}} nor by "
        f"{shown(concept['identifier'])}, such as {shown(said[first] or concept['prompt'])}; the identifier does not "
        f"learn what these photographs show ({names}): write {{subject}} into them"
    ]
