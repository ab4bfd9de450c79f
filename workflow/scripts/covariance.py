"""Rule covariance: add up the second moments of all shards at one timestep."""

from nullbooth.statistics.sums import sum_shards
from nullbooth.storage.progress import log_to

if __name__ == "__main__":
    log_to(snakemake.log[0])
    moments, shards = snakemake.input.moments, snakemake.params.shards
    # Only the first shards if protect.prompts_until leaves out the others.
    sum_shards(snakemake.output[0], moments, dict(list(shards.items())[: len(moments)]), snakemake.params.identity)
