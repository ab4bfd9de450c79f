"""How much of the features of prompts that are not protected would pass, if the first shards alone were protected."""

import json

import numpy as np
from numpy.typing import NDArray

from nullbooth.errors import ProjectorError
from nullbooth.statistics.projector import decompose, leak, projector
from nullbooth.statistics.records import MomentStore
from nullbooth.storage.atomic import write_text
from nullbooth.storage.progress import reporter


def pooled_moment(shards: list[MomentStore], name: str) -> NDArray:
    """The second moment `[n, n]` of several shards, from means over all timesteps.

    Each shard counts by its rows of one timestep: they are the same share of all rows at every timestep.
    """
    weights = [shard.weight(name) for shard in shards]
    moments = [shard.second_moment(name) for shard in shards]
    return sum(n * c for n, c in zip(weights, moments, strict=True)) / sum(weights)


def leaking(c: NDArray, other: NDArray, rule: dict[str, float], name: str) -> float:
    """Share of the moment `other` that passes the projector of the moment `c`; 0 where nothing is free."""
    [(kind, value)] = rule.items()
    try:
        return leak(projector(*decompose(c, name), kind, value, name), other)
    except ProjectorError:
        return 0.0


def write_leak(
    out: str, moments: list[str], heldout: str, shards: dict[str, dict], prompts: int, rule: dict, others: dict
) -> None:
    """Write the leak of each feature, and its mean over sites, as JSON.

    moments: stores of shards pooled over timesteps, with the identities `shards`; heldout: moments of prompts that are
    not protected, at every timestep, with the identity `others`; prompts: how many are protected.
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
