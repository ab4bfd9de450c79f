"""Rule mechanism: compute how much an adapter changes the output of each protected layer at each timestep, for
protected and for other prompts."""

from nullbooth.adapters.file import read_adapter
from nullbooth.adapters.loaded import LoadedAdapter
from nullbooth.evaluation.mechanism import write_mechanism
from nullbooth.models.loading import ModelSource, load_denoiser
from nullbooth.models.precision import pick_device
from nullbooth.statistics.records import MomentStore
from nullbooth.storage.progress import log_to


def main(out: dict, given: dict, identity: dict, others: dict, config: dict) -> None:
    denoiser = load_denoiser(ModelSource.of(config), pick_device("cpu"))
    adapter = LoadedAdapter(denoiser, *read_adapter(given["adapter"], identity["model"]), scale=1.0)
    covariances = [MomentStore(path, identity) for path in given["covariances"]]
    write_mechanism(out, adapter, covariances, MomentStore(given["heldout"], others))


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(dict(snakemake.output.items()), dict(snakemake.input.items()), **snakemake.params, config=snakemake.config)
