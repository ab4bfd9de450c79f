"""Rule together: draw two subjects in one picture, each prompt in its own half, with all adapters loaded."""

from nullbooth.evaluation.together import draw_together
from nullbooth.storage.progress import log_to

if __name__ == "__main__":
    log_to(snakemake.log[0])
    draw_together(snakemake.output[0], snakemake.input.adapters, **snakemake.params, config=snakemake.config)
