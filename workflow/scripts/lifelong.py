"""Rule lifelong: write the results of subjects learned in sequence as table, figures and JSON."""

from nullbooth.evaluation.lifelong_page import write_lifelong
from nullbooth.storage.atomic import whole
from nullbooth.storage.progress import log_to

if __name__ == "__main__":
    log_to(snakemake.log[0])
    i = snakemake.input
    with whole(snakemake.output.folder) as folder:
        write_lifelong(folder, list(i.metrics), list(i.images), list(i.rooms), list(i.together), **snakemake.params)
