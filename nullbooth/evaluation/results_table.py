"""All measurements as one tidy table: by seed, over seeds, and as paired differences between methods."""

import json
from pathlib import Path

from nullbooth.evaluation.comparison import read_runs, stacked
from nullbooth.evaluation.intervals import bootstrap_mean
from nullbooth.evaluation.measure import possible
from nullbooth.storage.atomic import write_text
from nullbooth.storage.tables import write_csv

COLUMNS = ("concept", "method", "seed", "group", "metric", "value", "low", "high", "n")


def rows_of(concept: str, methods: dict[str, list[dict]], seeds: list[int]) -> list[dict]:
    """Return the rows of one concept. methods: metrics.json of each seed, by method.

    Base model and photographs appear as methods. Seed `all`: intervals over prompts and seeds. Method `a - b`:
    differences of each method `a` from the first, `b`, prompt by prompt and seed by seed.
    """
    rows = []

    def row(method: str, seed: int | str, group: str, metric: str, interval: dict) -> None:
        figures = {key: interval[key] for key in ("value", "low", "high", "n")}
        rows.append({"concept": concept, "method": method, "seed": seed, "group": group, "metric": metric, **figures})

    values = {method: stacked([[run] for run in runs]) for method, runs in methods.items()}
    first = next(iter(methods))
    for m in methods[first][0]["metrics"]:
        if m["model"] != "tuned":
            row(m["model"], "", m["group"], m["metric"], m)
    for method, runs in methods.items():
        for seed, run in zip(seeds, runs, strict=True):
            for m in run["metrics"]:
                if m["model"] == "tuned":
                    row(method, seed, m["group"], m["metric"], m)
        for key, found in values[method].items():
            model, group, metric = key
            if model == "tuned" and len(seeds) > 1:
                row(method, "all", group, metric, bootstrap_mean(found, within=possible(metric)))
            if model == "tuned" and method != first:
                row(f"{method} - {first}", "all", group, metric, bootstrap_mean(found - values[first][key]))
    return rows


def write_results(
    csv_path: str, json_path: str, results: Path, concepts: list[str], methods: list[str], seeds: list[int]
) -> None:
    """Write the rows of all concepts as CSV and JSON. results: folder with the measurements of all runs."""
    rows = []
    for concept in concepts:
        runs = {m: [run for [run] in read_runs(results, m, [concept], seeds)] for m in methods}
        rows += rows_of(concept, runs, seeds)
    write_csv(csv_path, rows, COLUMNS)
    write_text(json_path, json.dumps(rows, indent=1))
