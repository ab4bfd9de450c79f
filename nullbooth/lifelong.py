"""Subjects learned one after another: what became of each, what everything else did, and how much room is left."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nullbooth import store
from nullbooth.comparison import DRIFT, FIDELITY, stacked
from nullbooth.intervals import bootstrap_mean
from nullbooth.projector import free_directions, free_share

COLUMNS = ("method", "seed", "known", "concept", "group", "metric", "value", "low", "high", "n")
COLORS_RIGHT = ("tuned", "unrelated", "color_accuracy")


@dataclass(frozen=True)
class Known:
    """Measurements (metrics.json) of one concept where `count` concepts are known."""

    method: str
    seed: int
    count: int
    concept: str
    metrics: dict[str, Any]

    def values(self, key: tuple[str, str, str]) -> list[float]:
        """By prompt; empty where it was not measured."""
        found = stacked([[self.metrics]]).get(key)
        return [] if found is None else found[0].tolist()


def tidy(measured: list[Known]) -> list[dict[str, Any]]:
    """One row per measurement of a tuned model."""
    return [
        {"method": known.method, "seed": known.seed, "known": known.count, "concept": known.concept}
        | {key: m[key] for key in ("group", "metric", "value", "low", "high", "n")}
        for known in measured
        for m in known.metrics["metrics"]
        if m["model"] == "tuned"
    ]


def summary(method: str, measured: list[Known]) -> dict[str, Any]:
    """Of one method: fidelity of all concepts when each was learned, and at the end, what was forgotten (differences of
    the same prompts), and the drift of everything else by how many concepts are known. With intervals over prompts."""
    last = max(known.count for known in measured)
    order = list(dict.fromkeys(known.concept for known in measured))
    # Merged adapters are known together from the second on: what each had learned, it shows alone.
    first = {(k.seed, k.concept): k.values(FIDELITY) for k in measured if k.count == order.index(k.concept) + 1}
    end = {(k.seed, k.concept): k.values(FIDELITY) for k in measured if k.count == last}
    then, now = (np.concatenate([found[key] for key in sorted(first)]) for found in (first, end))
    drift = {}
    for count in range(1, last + 1):
        values = [v for known in measured if known.count == count for v in known.values(DRIFT)]
        drift[str(count)] = bootstrap_mean(values)
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
    """By concept, its fidelity with an interval for each number of concepts known, from its own on."""
    found: dict[str, dict[int, list[float]]] = {concept: {} for concept in concepts}
    for known in measured:
        if known.method == method:
            found[known.concept].setdefault(known.count, []).extend(known.values(FIDELITY))
    return {
        concept: [(count, bootstrap_mean(values)) for count, values in sorted(by_count.items())]
        for concept, by_count in found.items()
    }


def free_counts(path: str, rule: str, value: float) -> dict[str, Any]:
    """Of projectors in a store: the mean share of free directions by kind of layer, and the site with the fewest."""
    group = store.read(path)
    kinds: dict[str, list[float]] = {}
    fewest = None
    for feature in group.attrs["features"]:
        w = group[f"{feature['name']}:values"][:]
        share = free_share(w, rule, value)
        count = share * len(w) if rule == "soft" else free_directions(w, rule, value)
        if fewest is None or count < fewest[1]:
            fewest = feature["name"], count, len(w)
        for site in feature["sites"]:
            kinds.setdefault(site.rpartition("attn2.")[2] or site, []).append(share)
    shares = {kind: sum(found) / len(found) for kind, found in sorted(kinds.items())}
    return {"kinds": shares, "site": fewest[0], "fewest": fewest[1], "width": fewest[2]}


def capacity(rooms: list[dict[str, Any]], rank: int | str) -> dict[str, Any]:
    """How much room there was for each concept in turn, at the site with the least, and for how many more there is.

    Each concept takes the mean of what those before took, in a straight line; a change of rank r wants r directions.
    rooms: `free_counts` for one concept after the other.
    """
    fewest = [room["fewest"] for room in rooms]
    taken = (fewest[0] - fewest[-1]) / max(1, len(fewest) - 1)
    wanted = 1 if rank == "full" else int(rank)
    more = None if taken <= 0 else max(0, int((fewest[-1] - wanted) / taken))
    said = f"free directions at {rooms[-1]['site']}, the fewest of all: " + ", ".join(f"{n:.0f}" for n in fewest)
    said += f" of {rooms[-1]['width']}; "
    if fewest[-1] < wanted:
        said += f"a change of rank {wanted} has no room left: raise protect.rule, or add to protect.sites"
    elif more is None:
        said += "the subjects take none of them"
    else:
        said += f"at {taken:.1f} a subject, there is room for about {more} more of rank {wanted}"
    return {"fewest": fewest, "width": rooms[-1]["width"], "more": more, "said": said}
