"""Rule evaluate: measure subject fidelity, drift from the base model and, if the encoder has heads, attributes."""

from nullbooth.evaluation.run_metrics import measure_run
from nullbooth.storage.progress import log_to

if __name__ == "__main__":
    log_to(snakemake.log[0])
    given = snakemake.input
    measure_run(
        snakemake.output[0], given.tuned, given.base, given.embedded, **snakemake.params, config=snakemake.config
    )
