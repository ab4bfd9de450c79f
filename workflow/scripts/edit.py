"""Rule edit: solve the edits of the config, in order, for all cross-attention keys and values."""

from nullbooth.editing.job import write_edits
from nullbooth.storage.progress import log_to

if __name__ == "__main__":
    log_to(snakemake.log[0])
    write_edits(dict(snakemake.output.items()), snakemake.params.recipe, snakemake.config)
