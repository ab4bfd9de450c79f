"""Second moments of shards added up, and of timesteps pooled. Starts without torch."""

from nullbooth.errors import StoreError
from nullbooth.statistics.records import MomentStore
from nullbooth.storage.progress import reporter

_SAME = ("features", "timestep", "timesteps", "denoiser")


def sum_shards(out: str, moments: list[str], shards: dict[str, dict], identity: dict) -> None:
    """Store the sums of all shards' second moments at one timestep.

    shards: identities by name, in the order of `moments`. Raises StoreError if shards are of different timesteps or
    features.
    """
    report, identities = reporter("shards"), list(shards.values())
    first = MomentStore(moments[0], identities[0])
    known, totals, rows = first.kept(*_SAME), {}, {}
    for i, (path, shard) in enumerate(zip(moments, identities, strict=True), 1):
        store = MomentStore(path, shard)
        for key in _SAME:
            if store.about[key] != known[key]:
                raise StoreError(f"{path}: its {key} differs from that of {moments[0]}; delete both, run again")
        for feature in store.features:
            key = feature.name, None
            totals[key] = totals[key] + store.sum(*key) if key in totals else store.sum(*key)
            rows[key] = rows.get(key, 0) + store.rows(*key)
        report(i, len(moments))
    about = first.kept("timestep", "timesteps", "denoiser")
    MomentStore.write(out, totals, rows, first.features, identity, shards=list(shards), **about)


def pool_timesteps(out: str, covariances: list[str], identity: dict) -> None:
    """Store the mean of all timesteps' second moments, for projectors that hold at every timestep at once.

    Each timestep has the same weight, whatever its number of rows.
    """
    stores = [MomentStore(path, identity) for path in covariances]
    features, sums, report = stores[0].features, {}, reporter("features")
    for i, feature in enumerate(features, 1):
        steps = stores[:1] if feature.static else stores
        sums[feature.name, None] = sum(s.sum(feature.name) / s.rows(feature.name) for s in steps) / len(steps)
        report(i, len(features))
    about = stores[0].kept("timesteps", "denoiser") | {"timestep": None, "weights": stores[0].about["rows"]}
    MomentStore.write(out, sums, dict.fromkeys(sums, 1), features, identity, **about)
