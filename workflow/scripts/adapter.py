"""Rule adapter: train a concept on its photographs, in the free directions or by a rival method."""

from nullbooth.learning.job import learn_concept
from nullbooth.storage.progress import log_to

if __name__ == "__main__":
    log_to(snakemake.log[0])
    learn_concept(
        dict(snakemake.output.items()),
        snakemake.input.get("projectors", []),
        snakemake.input.get("trajectories", []),
        snakemake.input.get("class_images"),
        snakemake.input.get("earlier", []),
        **snakemake.params,
        config=snakemake.config,
    )
