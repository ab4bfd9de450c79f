"""Subjects learned in sequence: fidelity over time, drift of other prompts, and remaining free directions."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from nullbooth.evaluation.comparison import DRIFT, FIDELITY, stacked
from nullbooth.evaluation.intervals import bootstrap_mean
from nullbooth.statistics.projector import free_share
from nullbooth.statistics.records import EigenStore

COLUMNS = ("method", "seed", "known", "concept", "group", "metric", "value", "low", "high", "n")
COLORS_RIGHT = ("tuned", "unrelated", "color_accuracy")


@dataclass(frozen=True)
class Known:
    """Measurements (metrics.json) of one concept after `count` concepts were learned; 0 if it was learned alone, to be
    merged with others."""

    method: str
    seed: int
    count: int
    concept: str
    metrics: dict[str, Any]

    def values(self, key: tuple[str, str, str]) -> list[float]:
        """Return the values by prompt, or none if they were not measured."""
        found = stacked([[self.metrics]]).get(key)
        return [] if found is None else found[0].tolist()


def tidy(measured: list[Known]) -> list[dict[str, Any]]:
    """Return one row per measurement of a tuned model."""
    return [
        {"method": known.method, "seed": known.seed, "known": known.count, "concept": known.concept}
        | {key: m[key] for key in ("group", "metric", "value", "low", "high", "n")}
        for known in measured
        for m in known.metrics["metrics"]
        if m["model"] == "tuned"
    ]


def summary(method: str, measured: list[Known]) -> dict[str, Any]:
    """Summarise a method: fidelity of all concepts when each was learned and at the end, what was forgotten
    (differences of the same prompts), and the drift of other prompts by the number of learned concepts; with intervals
    over prompts.
    """
    last = max(known.count for known in measured)
    order = list(dict.fromkeys(known.concept for known in measured))
    alone = any(known.count == 0 for known in measured)
    own = {concept: 0 if alone else place for place, concept in enumerate(order, 1)}
    first = {(k.seed, k.concept): k.values(FIDELITY) for k in measured if k.count == own[k.concept]}
    end = {(k.seed, k.concept): k.values(FIDELITY) for k in measured if k.count == last}
    then, now = (np.concatenate([found[key] for key in sorted(first)]) for found in (first, end))
    drift = {}
    for count in range(1, last + 1):
        values = [v for known in measured if known.count == count for v in known.values(DRIFT)]
        drift[str(count)] = bootstrap_mean(values, within=(0.0, np.inf))
    row = {
        "method": method,
        "when_learned": bootstrap_mean(then),
        "at_the_end": bootstrap_mean(now),
        "forgotten": bootstrap_mean(then - now),
        "drift": drift,
    }
    if right := [v for known in measured if known.count == last for v in known.values(COLORS_RIGHT)]:
        row["colors_right"] = bootstrap_mean(right)
    return row


def fidelities(measured: list[Known], method: str, concepts: list[str]) -> dict[str, list[tuple[int, dict]]]:
    """Return by concept its fidelity, with an interval, for each number of learned concepts from its own on."""
    found: dict[str, dict[int, list[float]]] = {concept: {} for concept in concepts}
    for known in measured:
        if known.method == method and known.count:
            found[known.concept].setdefault(known.count, []).extend(known.values(FIDELITY))
    return {
        concept: [(count, bootstrap_mean(values)) for count, values in sorted(by_count.items())]
        for concept, by_count in found.items()
    }


def free_counts(path: str, rule: str, value: float) -> dict[str, Any]:
    """Return `kinds` and `mean`, the mean shares of free directions by kind of layer and over all layers, and `counts`,
    their number in each layer (soft rule: the sum of weights), from an EigenStore under a rank rule."""
    store = EigenStore(path)
    kinds: dict[str, list[float]] = {}
    counts = []
    for feature in store.features:
        w = store.values(feature.name)
        share = free_share(w, rule, value, store.reference(feature.name))
        for site in feature.sites:
            kinds.setdefault(re.sub(r".*\battn\d*\.", "", site), []).append(share)
            counts.append(share * len(w))
    every = [share for found in kinds.values() for share in found]
    shares = {kind: sum(found) / len(found) for kind, found in sorted(kinds.items())}
    return {"kinds": shares, "mean": sum(every) / len(every), "counts": counts}


def capacity(rooms: list[dict[str, Any]], rank: int | str) -> dict[str, Any]:
    """Return the shares of free directions for each concept in turn, and a linear estimate of how many more concepts
    they allow.

    rooms: `free_counts` for each concept. A change of rank r needs r free directions in a layer.
    """
    means, counts = [room["mean"] for room in rooms], rooms[-1]["counts"]
    taken = (means[0] - means[-1]) / max(1, len(means) - 1)
    wanted = 1 if rank == "full" else int(rank)
    short = sum(count < wanted for count in counts)
    more = int(means[-1] / taken) if taken > 0 else None
    said = "free directions, mean of all layers: " + ", ".join(f"{mean:.1%}" for mean in means)
    if short == len(counts):
        more = 0
        said += f"; no layer has as many left as the rank, {wanted}: raise protect.rule or add to protect.sites"
    else:
        said += "; the subjects use none" if more is None else f"; at this pace they last for about {more} more"
        said += f"; {short} of {len(counts)} layers have fewer than the rank, {wanted}" if short else ""
    return {"means": means, "short": short, "layers": len(counts), "more": more, "said": said}
