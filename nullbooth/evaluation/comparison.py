"""Comparison of methods: subject fidelity against drift, with intervals over prompts and seeds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullbooth.evaluation.intervals import QUANTILES, bootstrap_mean, resampled_means
from nullbooth.evaluation.measure import possible
from nullbooth.storage.atomic import read_json

FIDELITY = ("tuned", "subject", "dino_fidelity")
DRIFT = ("tuned", "unrelated", "dino_drift")
LEAST = {FIDELITY: -1.0, DRIFT: 1e-6}  # lower bounds of resampled means: a drift is positive, and ratios divide by it
MOST_GAP = 0.1  # largest difference in fidelity of two points between which a drift is interpolated
Key = tuple[str, str, str]  # model, group, metric


@dataclass(frozen=True)
class Point:
    """One method at one setting and scale. `values[key]` is `[seeds, prompts]`, with the prompts of all concepts along
    one axis. Points of one `line` are joined in the order of their scales."""

    curve: str
    name: str
    values: dict[Key, NDArray]
    step_seconds: float
    train_seconds: float
    line: str = ""
    scale: float = 1.0

    def mean(self, key: Key) -> dict[str, float]:
        """Return the mean with its 95% interval over prompts and seeds."""
        return bootstrap_mean(self.values[key], within=possible(key[2]))


def stacked(runs: list[list[dict]]) -> dict[Key, NDArray]:
    """Return the values by prompt of runs `[seeds][concepts]` of metrics.json, as `[seeds, prompts]` by key.

    Missing values are left out. Raises ValueError if the runs have different prompts.
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
    """Read metrics.json of the runs of one method, `[seeds][concepts]`."""
    places = [[results / "runs" / c / method / str(s) / "metrics.json" for c in concepts] for s in seeds]
    return [[read_json(path) for path in row] for row in places]


def read_point(results: Path, point: dict[str, Any], concepts: list[str], seeds: list[int]) -> Point:
    """Read one of settings.compared_points from the results of its runs."""
    folders = [results / "runs" / c / point["run"] / str(s) for c in concepts for s in seeds]
    tables = [np.loadtxt(folder / "loss.csv", delimiter=",", skiprows=1, usecols=2, ndmin=1) for folder in folders]
    return Point(
        point["curve"],
        point["name"],
        stacked(read_runs(results, point["name"], concepts, seeds)),
        float(np.median(np.concatenate(tables))),
        float(np.mean([table.sum() for table in tables])),
        point["line"],
        point["scale"],
    )


def lines_of(points: list[Point]) -> list[list[Point]]:
    """Return the lines of a curve, with points in the order of their scales, then of their fidelity."""
    lines = [[p for p in points if p.line == line] for line in dict.fromkeys(p.line for p in points)]
    return [sorted(line, key=lambda p: (p.scale, p.values[FIDELITY].mean())) for line in lines]


def drift_at(fidelity: NDArray, drift: NDArray, target: float) -> tuple[float, float]:
    """Return the least drift at which a line of points reaches a fidelity, and the gap in fidelity between the points
    that it is interpolated from.

    fidelity, drift: `[points]`, joined by straight lines in this order. The drift is infinite if the line does not
    reach the fidelity; the gap is 0 at a measured point.
    """
    reached = [(float(d), 0.0) for d in drift[fidelity >= target]]
    for (f, g), (d, e) in zip(pairwise(fidelity), pairwise(drift), strict=True):
        if min(f, g) < target <= max(f, g):
            reached.append((float(d + (target - f) / (g - f) * (e - d)), float(abs(g - f))))
    return min(reached, default=(np.inf, 0.0))


def at_equal_fidelity(points: list[Point], reference: str, n: int = 2000) -> tuple[float, dict[str, dict[str, float]]]:
    """Return the highest fidelity of the reference method, and each method's drift at this fidelity.

    By method: `value`, `low`, `high` of the drift; `ratio`, `ratio_low`, `ratio_high` to the reference's drift, over
    resamples that have the same prompts and seeds for every method; `reached`, the share of resamples in which the
    method reaches the fidelity; `gap`, between the fidelities of the two points that the drift is interpolated from.
    Drifts that are not reached are infinite. If the gap exceeds MOST_GAP, the curve may bend in between, and figures
    are nan.
    """
    curves = {point.curve: lines_of([p for p in points if p.curve == point.curve]) for point in points}

    def drifts(of: Callable[[Point, Key], NDArray]) -> tuple[NDArray, dict[str, NDArray]]:
        found = {
            c: [[np.stack([of(p, k) for p in ps], -1) for k in (FIDELITY, DRIFT)] for ps in curves[c]] for c in curves
        }
        target = np.concatenate([fidelity for fidelity, _ in found[reference]], -1).max(-1)
        return target, {
            c: np.array([min(drift_at(f[i], d[i], target[i]) for f, d in lines) for i in range(len(target))])
            for c, lines in found.items()
        }

    target, exact = drifts(lambda p, key: p.values[key].mean(keepdims=True).reshape(1))
    _, draws = drifts(lambda p, key: np.maximum(resampled_means(p.values[key], n), LEAST[key]))
    draws = {curve: found[:, 0] for curve, found in draws.items()}
    table = {}
    for curve in curves:
        value, gap = exact[curve][0]
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio, ratios = value / exact[reference][0, 0], draws[curve] / draws[reference]
        low, high = _quantiles(draws[curve])
        ratio_low, ratio_high = _quantiles(ratios)
        table[curve] = {
            "value": float(value),
            "low": low,
            "high": high,
            "ratio": float(ratio),
            "ratio_low": ratio_low,
            "ratio_high": ratio_high,
        }
        if gap > MOST_GAP:
            table[curve] = dict.fromkeys(table[curve], math.nan)
        table[curve] |= {"gap": float(gap), "reached": float(np.isfinite(draws[curve]).mean())}
    return float(target[0]), table


def _quantiles(draws: NDArray) -> tuple[float, float]:
    """Return the 95% interval of draws that may be infinite."""
    low, high = np.quantile(draws, QUANTILES, method="nearest")
    return float(low), float(high)


def pareto_front(points: list[tuple[float, float]]) -> list[int]:
    """Return the indices of the Pareto-optimal points (drift, fidelity), by increasing drift."""
    best, front = -np.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            front.append(i)
    return front
