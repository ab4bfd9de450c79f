"""Measurements of edits: efficacy, generality (other contexts) and specificity (drift of everything else)."""

import json
from pathlib import Path

import torch

from nullbooth.evaluation.attributes import attribute_accuracy, edited_attributes
from nullbooth.evaluation.encoders import embed_images, embed_texts, load_encoders
from nullbooth.evaluation.intervals import bootstrap_mean
from nullbooth.evaluation.measure import paired_drift, possible
from nullbooth.evaluation.pictures import read_group
from nullbooth.inputs.edits import Edit, edits_of
from nullbooth.models.precision import pick_device
from nullbooth.storage.atomic import write_text
from nullbooth.storage.pictures import read_drawn
from nullbooth.storage.tables import write_csv

COLUMNS = ("edit", "model", "group", "metric", "value", "low", "high", "n")
KEPT = ("unrelated", "protected")


def measure_edit(encoders: dict, x: torch.Tensor, pairs: list[tuple[str, str]]) -> dict[str, list[float | None]]:
    """Measure pictures `[n, 3, h, w]` of one edit, drawn for the first prompt of each pair and meant as the second."""
    sources, targets = (list(texts) for texts in zip(*pairs, strict=True))
    found = embed_images(encoders["clip"], x)
    to, of = (embed_texts(encoders["clip"], texts) for texts in (targets, sources))
    margin = ((to - of) * found).sum(1)
    rows = {"clip_margin": margin.tolist(), "clip_prefers": (margin > 0).float().tolist()}
    if encoders["dino"].heads is not None:
        rows |= edited_attributes(encoders["dino"], x, sources, targets)
    return rows


def measure_edits(
    json_path: str,
    csv_path: str,
    edited: str,
    base: list[str],
    identity: dict,
    edits: list[dict[str, str]],
    contexts: dict[str, list[str]],
    config: dict,
) -> None:
    """Measure the pictures in the folders `edited` and `base`, and write the rows as JSON and CSV."""
    encoders = load_encoders(config["evaluate"], identity, pick_device(config["device"]))
    drawn = read_drawn(Path(edited))
    ours = {Path(edited): drawn["images"]}
    theirs = {folder: read_drawn(folder, drawn["identity"])["images"] for folder in map(Path, base)}
    rows: list[dict] = []

    def row(edit: str, model: str, group: str, metric: str, values: list[float | None]) -> None:
        if known := [float(value) for value in values if value is not None]:
            interval = bootstrap_mean(known, within=possible(metric))
            rows.append({"edit": edit, "model": model, "group": group, "metric": metric, **interval})

    for group, texts in contexts.items():
        meant: dict[str, tuple[Edit, str]] = {}
        for edit in edits_of(edits):
            for source, target in map(edit.filled, texts):
                meant.setdefault(source, (edit, target))
        for model, folders in (("base", theirs), ("edited", ours)):
            entries, x = read_group(folders, group)
            every: dict[str, list] = {}
            for edit in edits_of(edits):
                rows_of = [i for i, entry in enumerate(entries) if meant[entry["prompt"]][0] == edit]
                pairs = [(entries[i]["prompt"], meant[entries[i]["prompt"]][1]) for i in rows_of]
                for metric, values in measure_edit(encoders, x[rows_of], pairs).items():
                    row(f"{edit.source} -> {edit.target}", model, group, metric, values)
                    every.setdefault(metric, []).extend(values)
            for metric, values in every.items():
                row("all", model, group, metric, values)
    # What the base model draws for the targets themselves is the most that an edit can reach.
    asked = {t: (s, t) for texts in contexts.values() for edit in edits_of(edits) for s, t in map(edit.filled, texts)}
    entries, x = read_group(theirs, "meant")
    for metric, values in measure_edit(encoders, x, [asked[entry["prompt"]] for entry in entries]).items():
        row("all", "base", "meant", metric, values)
    for group in KEPT:
        if not any(entry["group"] == group for entry in drawn["images"]):
            print(f"every {group} prompt mentions an edited concept: nothing to measure")
            continue
        entries, x = read_group(ours, group)
        wanted = {(entry["prompt"], entry["seed"]) for entry in entries}
        _, y = read_group(theirs, group, wanted)
        prompts = [entry["prompt"] for entry in entries]
        for name, encoder in encoders.items():
            drift = paired_drift(embed_images(encoder, x), embed_images(encoder, y))
            row("all", "edited", group, f"{name}_drift", drift.tolist())
        if encoders["dino"].heads is not None:
            for model, pictures in (("base", y), ("edited", x)):
                for name, hits in attribute_accuracy(encoders["dino"], pictures, prompts).items():
                    row("all", model, group, f"{name}_accuracy", hits)
    write_text(json_path, json.dumps({"identity": identity, "metrics": rows}, indent=1))
    write_csv(csv_path, rows, COLUMNS)
