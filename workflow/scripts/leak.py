"""Rule leak: compute the leak of held-out prompts if only the first shards were protected."""

from nullbooth.statistics.leak import write_leak
from nullbooth.storage.progress import log_to

if __name__ == "__main__":
    log_to(snakemake.log[0])
    write_leak(snakemake.output[0], snakemake.input.moments, snakemake.input.heldout, **snakemake.params)
