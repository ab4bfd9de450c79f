"""Rule measure_edits: measure how well edited prompts show the target (efficacy), also in other contexts (generality),
and how far everything else drifts (specificity)."""

from nullbooth.evaluation.edit_metrics import measure_edits
from nullbooth.storage.progress import log_to

if __name__ == "__main__":
    log_to(snakemake.log[0])
    i = snakemake.input
    measure_edits(*snakemake.output, i.edited, i.base, **snakemake.params, config=snakemake.config)
