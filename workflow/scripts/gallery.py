"""Rule gallery: copy the pictures to one folder and write the page that shows them."""

from pathlib import Path

from nullbooth.evaluation.gallery import write_samples
from nullbooth.storage.atomic import whole
from nullbooth.storage.progress import log_to
from nullbooth.workflow.shown import view

if __name__ == "__main__":
    log_to(snakemake.log[0])
    params = dict(snakemake.params)
    with view(params.pop("shown")) as results, whole(snakemake.output[0]) as page:
        write_samples(page, Path(results), **params)
