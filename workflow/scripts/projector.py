"""Rules projector and joined_projector: decompose second moments, after adding those of earlier subjects, if any."""

from nullbooth.statistics.eigenvectors import Earlier, decompose_store
from nullbooth.storage.progress import log_to

if __name__ == "__main__":
    log_to(snakemake.log[0])
    given, params = snakemake.input, snakemake.params
    earlier = None
    if "of_earlier" in params.keys():  # noqa: SIM118 (params is a list with names)
        subjects = tuple(given.earlier), tuple(params.of_earlier)
        earlier = Earlier(*subjects, params.weight, params.step, given.alone, params.of_statistics)
    decompose_store(snakemake.output[0], given.covariance, params.identity, earlier)
