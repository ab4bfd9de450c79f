"""Rule packed: projectors under the rank rule as one file, for others to train with."""

from pathlib import Path

from nullbooth.statistics import packs
from nullbooth.statistics.records import MomentStore
from nullbooth.storage.progress import log_to


def main(
    out: str,
    projectors: list[str],
    covariance: str,
    scope: str,
    rule: dict,
    identity: dict,
    about: dict,
    shards: dict[str, list[str]],
) -> None:
    taken = MomentStore(covariance, identity).about["shards"]
    prompts = sorted(prompt for name in taken for prompt in shards[name])
    packs.write(out, projectors, identity, rule, scope, **about, prompts=prompts)
    print(f"{out}: {Path(out).stat().st_size / 1e6:.1f} MB for {len(prompts)} protected prompts")


if __name__ == "__main__":
    log_to(snakemake.log[0])
    i = snakemake.input
    main(snakemake.output[0], i.projectors, i.covariance, **snakemake.params)
