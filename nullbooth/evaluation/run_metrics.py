"""Measurements of a run: subject fidelity, drift from the base model, and attributes, with intervals over prompts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nullbooth.evaluation.attributes import attribute_accuracy
from nullbooth.evaluation.distances import DISTANCES, of_rows
from nullbooth.evaluation.encoders import Encoder, embed_images, embed_texts, load_encoders, read_embeddings
from nullbooth.evaluation.intervals import bootstrap_mean, half_samples
from nullbooth.evaluation.lpips import load_lpips, lpips
from nullbooth.evaluation.measure import diversity, paired_drift, possible, subject_fidelity
from nullbooth.evaluation.pictures import read_group
from nullbooth.inputs.groups import OF_ALL, OF_CONCEPT
from nullbooth.inputs.photographs import list_images
from nullbooth.models.pixels import load_image
from nullbooth.models.precision import pick_device
from nullbooth.storage.atomic import write_text
from nullbooth.storage.pictures import read_drawn

GROUPS = (*OF_CONCEPT, *OF_ALL)


def by_prompt(prompts: list[str], values: list[float | None]) -> list[float | None]:
    """Return the mean of each prompt's pictures, in the order of the prompts; None for a prompt without values."""
    found: dict[str, list[float]] = {prompt: [] for prompt in prompts}
    for prompt, value in zip(prompts, values, strict=True):
        if value is not None:
            found[prompt].append(float(value))
    return [sum(part) / len(part) if part else None for part in found.values()]


def spoken_class(prompt: str, identifier: str) -> str:
    """Return a prompt without the identifier, which encoders do not know: they can judge the class only."""
    return " ".join(word for word in prompt.split() if word != identifier)


def measure_group(
    group: str,
    prompts: list[str],
    pictures: dict[str, Tensor],
    embedded: dict[str, Tensor],
    spare: tuple[list[str], dict[str, Tensor]],
    encoders: dict[str, Encoder],
    reference: dict[str, Tensor],
    weights: dict[str, Tensor] | None,
    identifier: str,
    row: Callable[..., None],
) -> None:
    """Add the rows of one group of prompts. pictures: `base` and `tuned`, `[n, 3, h, w]`, in pairs from the same noise;
    embedded: embeddings of the base model's, by encoder; spare: prompts of extra pictures by the base model from other
    noise, and their embeddings by encoder. How much these differ is the scale of drift.
    """
    features = {
        name: {"base": embedded[name], "tuned": embed_images(encoder, pictures["tuned"])}
        for name, encoder in encoders.items()
    }
    for name, found in features.items():
        row("tuned", group, f"{name}_drift", paired_drift(found["tuned"], found["base"]))
        for model in pictures:
            fidelity = subject_fidelity(found[model], reference[name])
            row(model, group, f"{name}_fidelity", fidelity)
            if (group, name) == ("class", "dino"):
                row(model, group, "pres", fidelity)
            shown, texts = found[model], list(prompts)
            if model == "base" and spare[0]:
                shown, texts = torch.cat((shown, spare[1][name])), texts + spare[0]
            if pairs := diversity(shown, texts):
                row(model, group, f"{name}_div", [pairs[p].mean() if p in pairs else None for p in prompts])
    base, tuned = pictures["base"], pictures["tuned"]
    row("tuned", group, "pixel_mse", ((tuned - base) ** 2).mean((1, 2, 3)) / 4)
    if weights is not None:
        row("tuned", group, "lpips", lpips(weights, tuned, base))
    named = embed_texts(encoders["clip"], [spoken_class(prompt, identifier) for prompt in prompts])
    agreement = {model: (found * named).sum(1) for model, found in features["clip"].items()}
    for model, values in agreement.items():
        row(model, group, "clip_text", values)
    row("tuned", group, "clip_text_change", agreement["tuned"] - agreement["base"])
    if encoders["dino"].heads is not None:
        for model, x in pictures.items():
            for name, hits in attribute_accuracy(encoders["dino"], x, prompts).items():
                row(model, group, f"{name}_accuracy", hits)
    if group in OF_ALL and len(base) >= 4:
        for name, found in features.items():
            pair = found["base"].numpy(), found["tuned"].numpy()
            for metric, distance in DISTANCES.items():
                interval = half_samples(of_rows(distance, *pair), len(pair[0]), n=50)
                row("tuned", group, f"{name}_{metric}", [], interval)


def measure_run(
    out: str, tuned: str, base: list[str], embedded: list[str], identity: dict, concept: dict, config: dict
) -> None:
    """Measure a run's pictures against the base model's, and write metrics.json to `out`.

    tuned, base: folders of pictures; embedded: files of the base model's embeddings. Raises ValueError if prompts or
    seeds differ.
    """
    encoders = config["evaluate"]
    [folders] = [entry for entry in config["concepts"] if entry["name"] == concept["name"]]
    loaded = load_encoders(encoders, identity, pick_device(config["device"]))
    weights = load_lpips(encoders["lpips"]) if encoders["lpips"] else None
    photographs = list_images(folders["holdout"] or folders["images"])
    reference = {
        name: embed_images(encoder, torch.stack([load_image(path, encoder.size) for path in photographs]))
        for name, encoder in loaded.items()
    }
    rows: list[dict] = []
    spoken: dict[str, list[str]] = {}

    def row(model: str, group: str, metric: str, values: Any, interval: dict | None = None) -> None:
        """Add a row: the mean over prompts with its interval, or a given interval."""
        per_prompt = by_prompt(spoken.get(group) or [str(i) for i in range(len(values))], values) if len(values) else []
        if interval is None:
            known = [value for value in per_prompt if value is not None]
            interval = bootstrap_mean(known, within=possible(metric))
        rows.append({"model": model, "group": group, "metric": metric, **interval, "values": per_prompt})

    if folders["holdout"]:  # fidelity of real pictures of the subject, as its scale
        for name, encoder in loaded.items():
            x = torch.stack([load_image(path, encoder.size) for path in list_images(folders["images"])])
            fidelity = subject_fidelity(embed_images(encoder, x), reference[name])
            row("photographs", "subject", f"{name}_fidelity", fidelity)
    drawn = read_drawn(Path(tuned))
    ours = {Path(tuned): drawn["images"]}
    theirs = {folder: read_drawn(folder, drawn["identity"])["images"] for folder in map(Path, base)}
    known = [read_embeddings(path) for path in embedded]
    for group in [group for group in GROUPS if any(entry["group"] == group for entry in drawn["images"])]:
        entries, x = read_group(ours, group)
        base_entries, y = read_group(theirs, group)
        places = {(entry["prompt"], entry["seed"]): i for i, entry in enumerate(base_entries)}
        paired = [places.pop((entry["prompt"], entry["seed"]), None) for entry in entries]
        if None in paired:
            raise ValueError(f"{tuned} and {base[0]} differ in their {group} prompts or seeds: draw both again")
        spoken[group], rest = [entry["prompt"] for entry in entries], list(places.values())
        every = {name: torch.cat([part[name, group] for part in known if (name, group) in part]) for name in loaded}
        pictures, vectors = {"base": y[paired], "tuned": x}, {name: found[paired] for name, found in every.items()}
        spare = [prompt for prompt, _ in places], {name: found[rest] for name, found in every.items()}
        print(f"measuring {len(entries)} pictures: {group}")
        measure_group(
            group, spoken[group], pictures, vectors, spare, loaded, reference, weights, concept["identifier"], row
        )
    prompts = {group: list(dict.fromkeys(texts)) for group, texts in spoken.items()}
    found = {"encoders": encoders, "identity": identity, "prompts": prompts, "metrics": rows}
    write_text(out, json.dumps(found, indent=1))
