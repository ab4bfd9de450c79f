"""Results of subjects learned in sequence, as table, figures and JSON."""

import json
import shutil
from pathlib import Path

from nullbooth.evaluation import figures
from nullbooth.evaluation.lifelong import COLUMNS, Known, capacity, fidelities, free_counts, summary, tidy
from nullbooth.storage.atomic import read_json
from nullbooth.storage.tables import write_csv


def write_lifelong(
    out: str,
    metrics: list[str],
    images: list[str],
    rooms_at: list[str],
    together: list[str],
    stages: list[list],
    rooms: list[list],
    runs: list[str],
    rules: dict[str, dict],
    ranks: dict[str, int | str],
    concepts: list[str],
) -> None:
    """Write `lifelong.csv`, `lifelong.json`, figures, and pictures of two subjects to the new folder `out`."""
    measured = [
        Known(method, seed, count, concept, read_json(path))
        for (method, seed, count, concept), path in zip(stages, metrics, strict=True)
    ]
    methods = list(dict.fromkeys(known.method for known in measured))
    free: dict[str, list[dict]] = {}  # by method, for its first seed: one entry per concept in turn
    for (method, seed, _), path in zip(rooms, rooms_at, strict=True):
        if seed == min(known.seed for known in measured if known.method == method):
            free.setdefault(method, []).append(free_counts(path, *next(iter(rules[method].items()))))
    folder = Path(out)
    folder.mkdir()
    write_csv(folder / "lifelong.csv", tidy(measured), COLUMNS)
    rows = [summary(method, [known for known in measured if known.method == method]) for method in methods]
    for row in rows:
        if found := free.get(row["method"]):
            row["room"] = capacity(found, ranks[row["method"]])
            print(f"{row['method']}: {row['room']['said']}")
    shown = [
        {"method": known.method, "seed": known.seed, "known": known.count, "concept": known.concept, "images": path}
        for known, path in zip(measured, images, strict=True)
    ]
    pairs = [{"run": run, "images": path} for run, path in zip(runs, together, strict=True)]
    said = {"methods": rows, "concepts": concepts, "shown": shown, "together": pairs}
    (folder / "lifelong.json").write_text(json.dumps(said, indent=1))
    curves = {row["method"]: fidelities(measured, row["method"], concepts) for row in rows}
    drifts = {row["method"]: [(int(count), value) for count, value in row["drift"].items()] for row in rows}
    figures.save(figures.retention(curves, drifts), folder / "retention.svg", folder / "retention.png")
    if free:
        kinds = {}
        for method, found in free.items():
            for kind in found[0]["kinds"]:
                name = kind if len(free) == 1 else f"{method}, {kind}"
                kinds[name] = [counts["kinds"][kind] for counts in found]
        figures.save(figures.rooms(kinds, "share of free directions"), folder / "room.svg")
    for run, path in zip(runs, together, strict=True):
        shutil.copytree(path, folder / "together" / run)
