"""Rule covariance: second moments of all protected prompts at one timestep, the sums of those of every shard."""

from nullbooth.statistics.sums import sum_shards
from nullbooth.storage.progress import log_to

if __name__ == "__main__":
    log_to(snakemake.log[0])
    moments, shards = snakemake.input.moments, snakemake.params.shards
    # The first ones, where no more are taken (protect.prompts_until).
    sum_shards(snakemake.output[0], moments, dict(list(shards.items())[: len(moments)]), snakemake.params.identity)
