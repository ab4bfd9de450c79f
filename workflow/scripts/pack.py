"""Rule packed: write the projectors under the rank rule to one file, for use by others."""

from pathlib import Path

from nullbooth.statistics import pack_file
from nullbooth.statistics.records import MomentStore
from nullbooth.storage.progress import log_to


def main(out: str, projectors: list[str], covariance: str, shards: dict[str, list[str]], params: dict) -> None:
    taken = MomentStore(covariance, params["identity"]).about["shards"]
    prompts = sorted(prompt for name in taken for prompt in shards[name])
    about = params.pop("about")
    pack_file.write(out, projectors, **params, **about, prompts=prompts)
    print(f"{out}: {Path(out).stat().st_size / 1e6:.1f} MB for {len(prompts)} protected prompts")


if __name__ == "__main__":
    log_to(snakemake.log[0])
    given, params = snakemake.input, dict(snakemake.params)
    main(snakemake.output[0], given.projectors, given.covariance, params.pop("shards"), params)
