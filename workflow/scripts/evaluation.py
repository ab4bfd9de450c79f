"""Rule evaluation: write all measurements as a tidy table: by seed, over seeds, and as paired differences."""

from nullbooth.evaluation.results_table import write_results
from nullbooth.storage.progress import log_to
from nullbooth.workflow.shown import view

if __name__ == "__main__":
    log_to(snakemake.log[0])
    params = dict(snakemake.params)
    with view(params.pop("shown")) as results:
        write_results(*snakemake.output, results, **params)
