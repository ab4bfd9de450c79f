"""Leak of held-out prompts through projectors made from only the first shards of the protected prompts."""

import json

import numpy as np
from numpy.typing import NDArray

from nullbooth.errors import ProjectorError
from nullbooth.statistics.projector import decompose, leak, projector
from nullbooth.statistics.records import MomentStore
from nullbooth.storage.atomic import write_text
from nullbooth.storage.progress import reporter


def pooled_moment(shards: list[MomentStore], name: str) -> NDArray:
    """Return the second moment `[n, n]` float64 of several shards, from their means over all timesteps.

    Shards are weighted by their rows at one timestep, since their shares of the rows are the same at every timestep.
    """
    weights = [shard.weight(name) for shard in shards]
    moments = [shard.second_moment(name) for shard in shards]
    return np.asarray(sum(n * c for n, c in zip(weights, moments, strict=True)) / sum(weights))


def leaking(c: NDArray, other: NDArray, rule: dict[str, float], name: str) -> float:
    """Leak of the moment `other` `[n, n]` through the projector of the moment `c` `[n, n]`; 0 if nothing is free."""
    [(kind, value)] = rule.items()
    try:
        return leak(projector(*decompose(c, name), kind, value, name), other)
    except ProjectorError:
        return 0.0


def write_leak(
    out: str, moments: list[str], heldout: str, shards: dict[str, dict], prompts: int, rule: dict, others: dict
) -> None:
    """Write the leak of each feature, and the mean over sites, as JSON.

    moments: stores of the shards, pooled over timesteps; shards: their identities; heldout: store of the moments of
    unprotected prompts at every timestep; others: its identity; prompts: number of protected prompts in the shards.
    """
    stores = [MomentStore(path, identity) for path, identity in zip(moments, shards.values(), strict=True)]
    other, found, report = MomentStore(heldout, others), {}, reporter("features")
    for i, feature in enumerate(stores[0].features, 1):
        steps = [0] if feature.static else list(range(len(other.timesteps)))
        passed = leaking(
            pooled_moment(stores, feature.name), other.mean_moment(feature.name, steps), rule, feature.name
        )
        found[feature.name] = {"sites": len(feature.sites), "leak": passed}
        report(i, len(stores[0].features))
    mean = np.average([f["leak"] for f in found.values()], weights=[f["sites"] for f in found.values()])
    said = {"shards": len(stores), "prompts": prompts, "leak": float(mean), "features": found}
    write_text(out, json.dumps(said, indent=1))
