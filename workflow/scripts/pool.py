"""Rules pool and shard_pool: average the second moments over all timesteps."""

from nullbooth.statistics.sums import pool_timesteps
from nullbooth.storage.progress import log_to

if __name__ == "__main__":
    log_to(snakemake.log[0])
    pool_timesteps(snakemake.output[0], snakemake.input.covariances, **snakemake.params)
