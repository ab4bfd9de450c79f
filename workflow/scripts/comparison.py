"""Rule comparison: compare all methods on a page with a plot and a table."""

from nullbooth.evaluation.comparison_page import write_comparison
from nullbooth.storage.atomic import whole
from nullbooth.storage.progress import log_to
from nullbooth.workflow.shown import view

if __name__ == "__main__":
    log_to(snakemake.log[0])
    params = dict(snakemake.params)
    with view(params.pop("shown")) as results, whole(snakemake.output.page) as page:
        write_comparison(page, results, **params)
