"""Rule leak: how much of what prompts held out give the layers would pass, if the first shards alone were protected."""

import json

import numpy as np

from nullbooth.errors import ProjectorError
from nullbooth.statistics.projector import decompose, leak, projector
from nullbooth.storage import zarrstore
from nullbooth.storage.atomic import write_text
from nullbooth.storage.progress import log_to, reporter


def pooled(groups: list, name: str) -> np.ndarray:
    """The second moment `[n, n]` of several shards, from those that were pooled over the timesteps: rows of a shard are
    at each timestep the same share of all, so that these average as the shards' rows do."""
    weights = [group.attrs["weights"][name] for group in groups]
    moments = [zarrstore.unpack_symmetric(group[name][:]) for group in groups]
    return sum(n * c for n, c in zip(weights, moments, strict=True)) / sum(weights)


def heldout_moment(group, feature: dict) -> np.ndarray:
    """The mean over all timesteps of the second moment `[n, n]` for prompts that are not protected."""
    steps = 1 if feature["static"] else len(group.attrs["timesteps"])
    names = [f"{step:02d}:{feature['name']}" for step in range(steps)]
    return sum(zarrstore.unpack_symmetric(group[n][:]) / group.attrs["rows"][n] for n in names) / steps


def leaking(c: np.ndarray, other: np.ndarray, rule: dict, name: str) -> float:
    """Share of the moment `other` that passes the projector of the moment `c`; nothing where nothing is free."""
    [(kind, value)] = rule.items()
    try:
        return leak(projector(*decompose(c, name), kind, value, name), other)
    except ProjectorError:
        return 0.0


def main(out: str, moments: list[str], heldout: str, shards: dict, prompts: int, rule: dict, others: dict) -> None:
    groups = [zarrstore.read(path, identity) for path, identity in zip(moments, shards.values(), strict=True)]
    other, found, report = zarrstore.read(heldout, others), {}, reporter("features")
    features = groups[0].attrs["features"]
    for i, feature in enumerate(features, 1):
        name = feature["name"]
        passed = leaking(pooled(groups, name), heldout_moment(other, feature), rule, name)
        found[name] = {"sites": len(feature["sites"]), "leak": passed}
        report(i, len(features))
    mean = np.average([f["leak"] for f in found.values()], weights=[f["sites"] for f in found.values()])
    said = {"shards": len(groups), "prompts": prompts, "leak": float(mean), "features": found}
    write_text(out, json.dumps(said, indent=1))


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(snakemake.output[0], snakemake.input.moments, snakemake.input.heldout, **snakemake.params)
