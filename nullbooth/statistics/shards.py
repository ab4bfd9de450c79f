"""Protected prompts in shards that are kept: moments add up, so that new prompts cost no more than themselves."""

from collections.abc import Sequence
from pathlib import Path

from nullbooth.storage.digests import digest
from nullbooth.storage.seal import read_attributes


def partition(
    prompts: list[str], kept: list[list[str]], size: int, before: list[list[str]] | None = None
) -> list[list[str]]:
    """`prompts` as shards without overlap: those `before`, then those of `kept` that fit, largest first, then new ones
    of `size` prompts. Hashes of the prompts order the shards, and the prompts of which new ones are cut: by the
    alphabet, similar prompts would share a shard, and a few shards would not stand for all.

    The answer stays the same while the new shards become kept ones, in whatever order: jobs that read the workflow
    again in the middle of a run agree with it.
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
    """Whether the last shard that was added lowered the leak on prompts held out by no more than this share of it.

    leaks: with the first shard, with the first two, and so on."""
    return len(leaks) > 1 and leaks[-2] - leaks[-1] <= share * leaks[-2]


def shard_identity(identity: dict[str, str], prompts: list[str]) -> dict[str, str]:
    """What a shard's stores are made from: `identity` for these prompts alone."""
    return {**identity, "prompts": digest(sorted(prompts))}


def kept_shards(folder: Path, identity: dict[str, str]) -> dict[str, list[str]]:
    """Prompts, by name, of every shard under `folder` that was made for `identity`, whatever its prompts.

    Trajectories are large and may be deleted once there are moments, so that either of the two says what it is of.
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
    """The shards of `prompts` by name, as they are cut where none are kept, and those that are kept do not matter."""
    return {digest(shard_identity(identity, shard)): shard for shard in partition(prompts, [], size)}


def choose_shards(
    folder: Path, sums: Path, identity: dict[str, str], prompts: list[str], size: int
) -> dict[str, list[str]]:
    """The shards of `prompts` by name: those that the store `sums` was added up from, as long as they are kept, and
    others by `partition`."""
    kept = kept_shards(folder, identity)
    before = (_attributes(sums) or {}).get("shards", [])
    shards = partition(prompts, list(kept.values()), size, [kept[name] for name in before if name in kept])
    return {digest(shard_identity(identity, shard)): shard for shard in shards}


def _attributes(store: Path) -> dict | None:
    """Attributes of a store; None if it is not there."""
    return read_attributes(store) if (store / "zarr.json").is_file() else None
