"""Rule measure_edits: does an edited prompt give the target (efficacy), in other contexts too (generality), and does
everything else stay (specificity)?"""

from nullbooth.evaluation.edit_metrics import measure_edits
from nullbooth.storage.progress import log_to

if __name__ == "__main__":
    log_to(snakemake.log[0])
    i = snakemake.input
    measure_edits(*snakemake.output, i.edited, i.base, **snakemake.params, config=snakemake.config)
