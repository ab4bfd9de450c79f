"""Methods beside each other: how much of the subject for how much drift, with intervals from prompts and seeds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nullbooth.files import read_json
from nullbooth.intervals import QUANTILES, bootstrap_mean, resampled_means

FIDELITY = ("tuned", "subject", "dino_fidelity")
DRIFT = ("tuned", "unrelated", "dino_drift")
Key = tuple[str, str, str]  # model, group, metric


@dataclass(frozen=True)
class Point:
    """One method at one setting. `values[key]` is `[seeds, prompts]`, with the prompts of all concepts in a row."""

    curve: str
    name: str
    values: dict[Key, NDArray]
    step_seconds: float
    train_seconds: float

    def mean(self, key: Key) -> dict[str, float]:
        """Mean with a 95% interval over prompts and seeds."""
        return bootstrap_mean(self.values[key])


def stacked(runs: list[list[dict]]) -> dict[Key, NDArray]:
    """Values by prompt of runs `[seeds][concepts]` of metrics.json, as `[seeds, prompts]` by key.

    Prompts for which a metric says nothing are left out. Raises ValueError if the runs do not have the same prompts.
    """
    if any(run["prompts"] != first["prompts"] for row in runs for run, first in zip(row, runs[0], strict=True)):
        raise ValueError("the runs of one method were measured on different prompts: evaluate them again")
    found: dict[Key, list[list[float]]] = {}
    for row in runs:
        per_seed: dict[Key, list[float]] = {}
        for run in row:
            for m in run["metrics"]:
                values = [value for value in m["values"] if value is not None]
                per_seed.setdefault((m["model"], m["group"], m["metric"]), []).extend(values)
        for key, values in per_seed.items():
            found.setdefault(key, []).append(values)
    return {key: np.array(values) for key, values in found.items() if values[0]}


def read_runs(results: Path, method: str, concepts: list[str], seeds: list[int]) -> list[list[dict]]:
    """metrics.json of one method, `[seeds][concepts]`."""
    places = [[results / "runs" / c / method / str(s) / "metrics.json" for c in concepts] for s in seeds]
    return [[read_json(path) for path in row] for row in places]


def read_point(results: Path, curve: str, name: str, concepts: list[str], seeds: list[int]) -> Point:
    """One method at one setting, from the results of its runs."""
    folders = [results / "runs" / c / name / str(s) for c in concepts for s in seeds]
    tables = [np.loadtxt(folder / "loss.csv", delimiter=",", skiprows=1, usecols=2, ndmin=1) for folder in folders]
    return Point(
        curve,
        name,
        stacked(read_runs(results, name, concepts, seeds)),
        float(np.median(np.concatenate(tables))),
        float(np.mean([table.sum() for table in tables])),
    )


def drift_at(fidelity: NDArray, drift: NDArray, target: float) -> float:
    """The least drift at which a curve of points reaches a fidelity; infinite if it does not.

    Points in order of their fidelity are joined by straight lines.
    """
    order = np.argsort(fidelity)
    f, d = fidelity[order], drift[order]
    reached = d[f >= target].tolist()
    for i in range(len(f) - 1):
        if f[i] < target <= f[i + 1]:
            reached.append(d[i] + (target - f[i]) / (f[i + 1] - f[i]) * (d[i + 1] - d[i]))
    return float(min(reached, default=np.inf))


def at_equal_fidelity(points: list[Point], reference: str, n: int = 2000) -> tuple[float, dict[str, dict[str, float]]]:
    """The highest fidelity that the reference method reaches, and each method's drift there.

    By method: `value`, `low`, `high` of the drift; `ratio`, `ratio_low`, `ratio_high` to the reference's drift, by
    resamples in which every method meets the same prompts and seeds; `reached`, the share of resamples in which the
    method gets there at all. What is not reached is infinite.
    """
    curves = {point.curve: [p for p in points if p.curve == point.curve] for point in points}

    def drifts(of: Callable[[Point, Key], NDArray]) -> tuple[NDArray, dict[str, NDArray]]:
        fidelity = {c: np.stack([of(p, FIDELITY) for p in ps], -1) for c, ps in curves.items()}
        drift = {c: np.stack([of(p, DRIFT) for p in ps], -1) for c, ps in curves.items()}
        target = fidelity[reference].max(-1)
        rows = range(len(target))
        found = {c: np.array([drift_at(fidelity[c][i], drift[c][i], target[i]) for i in rows]) for c in curves}
        return target, found

    target, exact = drifts(lambda p, key: p.values[key].mean(keepdims=True).reshape(1))
    _, draws = drifts(lambda p, key: resampled_means(p.values[key], n))
    table = {}
    for curve in curves:
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = draws[curve] / draws[reference]
        low, high = _quantiles(draws[curve])
        ratio_low, ratio_high = _quantiles(ratios)
        table[curve] = {
            "value": float(exact[curve][0]),
            "low": low,
            "high": high,
            "ratio": float(exact[curve][0] / exact[reference][0]),
            "ratio_low": ratio_low,
            "ratio_high": ratio_high,
            "reached": float(np.isfinite(draws[curve]).mean()),
        }
    return float(target[0]), table


def _quantiles(draws: NDArray) -> tuple[float, float]:
    """95% interval of draws that may be infinite."""
    low, high = np.quantile(draws, QUANTILES, method="nearest")
    return float(low), float(high)


def pareto_front(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the points (drift, fidelity) that no other beats in one without losing in the other, by drift."""
    best, front = -np.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            front.append(i)
    return front
