"""Rule spectra: plot the eigenvalues of all second moments and the free directions under the rank rule."""

from nullbooth.evaluation.spectra import write_spectra
from nullbooth.storage.progress import log_to

if __name__ == "__main__":
    log_to(snakemake.log[0])
    write_spectra(dict(snakemake.output.items()), snakemake.input.covariances, **snakemake.params)
