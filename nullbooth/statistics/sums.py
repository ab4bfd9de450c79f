"""Sums of second moments over shards, and means over timesteps. Imports no torch, to start fast."""

import numpy as np
from numpy.typing import NDArray

from nullbooth.errors import StoreError
from nullbooth.statistics.records import FeatureStep, MomentStore
from nullbooth.storage.progress import reporter

_SAME = ("features", "timestep", "timesteps", "denoiser")


def sum_shards(out: str, moments: list[str], shards: dict[str, dict], identity: dict) -> None:
    """Store the sums of the shards' second moments at one timestep.

    moments: one MomentStore per shard; shards: their identities by name, in the same order. Raises StoreError if they
    differ in features, timesteps or denoiser.
    """
    report, identities = reporter("shards"), list(shards.values())
    first = MomentStore(moments[0], identities[0])
    known = first.kept(*_SAME)
    totals: dict[FeatureStep, NDArray] = {}
    rows: dict[FeatureStep, int] = {}
    for i, (path, shard) in enumerate(zip(moments, identities, strict=True), 1):
        store = MomentStore(path, shard)
        for kept in _SAME:
            if store.about[kept] != known[kept]:
                raise StoreError(f"{path}: its {kept} differs from that of {moments[0]}; delete both and run again")
        for feature in store.features:
            key = feature.name, None
            totals[key] = totals[key] + store.sum(*key) if key in totals else store.sum(*key)
            rows[key] = rows.get(key, 0) + store.rows(*key)
        report(i, len(moments))
    about = first.kept("timestep", "timesteps", "denoiser")
    MomentStore.write(out, totals, rows, first.features, identity, shards=list(shards), **about)


def pool_timesteps(out: str, covariances: list[str], identity: dict) -> None:
    """Store the mean over timesteps of the second moments, for projectors of scope `pooled`.

    covariances: one MomentStore per timestep. Each timestep has the same weight, whatever its number of rows.
    """
    stores = [MomentStore(path, identity) for path in covariances]
    features, report = stores[0].features, reporter("features")
    sums: dict[FeatureStep, NDArray] = {}
    for i, feature in enumerate(features, 1):
        steps = stores[:1] if feature.static else stores
        total = sum(s.sum(feature.name) / s.rows(feature.name) for s in steps)
        sums[feature.name, None] = np.asarray(total / len(steps))
        report(i, len(features))
    about = stores[0].kept("timesteps", "denoiser") | {"timestep": None, "weights": stores[0].about["rows"]}
    MomentStore.write(out, sums, dict.fromkeys(sums, 1), features, identity, **about)
