"""Shards of the protected prompts. Moments of kept shards are reused, so that only new prompts cost time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nullbooth.storage.digests import digest
from nullbooth.storage.seal import read_attributes


def partition(
    prompts: list[str], kept: list[list[str]], size: int, before: list[list[str]] | None = None
) -> list[list[str]]:
    """Split `prompts` into disjoint shards: those `before`, then `kept` ones that fit, largest first, then new ones of
    `size` prompts.

    Hashes of the prompts order the shards, and the prompts before they are cut into new shards. In alphabetical order,
    similar prompts would share a shard, and a few shards would not represent all. The result does not change while new
    shards become kept ones in any order, so that jobs that evaluate the workflow in the middle of a run agree with it.
    """
    missing = set(prompts)
    shards = []
    for shard in [*(before or []), *sorted(map(sorted, kept), key=lambda shard: (-len(shard), shard))]:
        if missing.issuperset(shard):
            shards.append(sorted(shard))
            missing.difference_update(shard)
    rest = sorted(missing, key=digest)
    shards += [sorted(rest[i : i + size]) for i in range(0, len(rest), size)]
    return sorted(shards, key=lambda shard: min(map(digest, shard)))


def enough(leaks: Sequence[float], share: float) -> bool:
    """Return True if the last shard lowered the leak of held-out prompts by no more than `share` of its value before.

    leaks: with the first shard alone, with the first two, and so on."""
    return len(leaks) > 1 and leaks[-2] - leaks[-1] <= share * leaks[-2]


def shard_identity(identity: dict[str, str], prompts: list[str]) -> dict[str, str]:
    """Return the identity of a shard's stores: `identity` with the hash of these prompts alone."""
    return {**identity, "prompts": digest(sorted(prompts))}


def kept_shards(folder: Path, identity: dict[str, str]) -> dict[str, list[str]]:
    """Return the prompts, by shard name, of every shard under `folder` made for `identity`, whatever its prompts.

    Trajectories are large and may be deleted once moments exist; the prompts are then read from the moments.
    """
    found = {}
    for shard in sorted(folder.iterdir()) if folder.is_dir() else []:
        for store in ("trajectory.zarr", "moments/00.zarr"):
            if made := _attributes(shard / store):
                if made["identity"] == shard_identity(identity, made["prompts"]):
                    found[shard.name] = made["prompts"]
                break
    return found


def cut_shards(identity: dict[str, str], prompts: list[str], size: int) -> dict[str, list[str]]:
    """Return the prompts of each shard by name, cut as if no shard was kept."""
    return {digest(shard_identity(identity, shard)): shard for shard in partition(prompts, [], size)}


def choose_shards(
    folder: Path, sums: Path, identity: dict[str, str], prompts: list[str], size: int
) -> dict[str, list[str]]:
    """Return the prompts of each shard by name: shards that were added up in the store `sums` and are still kept, then
    others by `partition`."""
    kept = kept_shards(folder, identity)
    before = (_attributes(sums) or {}).get("shards", [])
    shards = partition(prompts, list(kept.values()), size, [kept[name] for name in before if name in kept])
    return {digest(shard_identity(identity, shard)): shard for shard in shards}


def _attributes(store: Path) -> dict[str, Any] | None:
    """Return the attributes of a store, or None if it does not exist."""
    return read_attributes(store) if (store / "zarr.json").is_file() else None
