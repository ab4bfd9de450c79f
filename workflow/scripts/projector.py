"""Rule projector: eigenvalues and eigenvectors of every second moment; a rank rule is applied by their readers."""

from nullbooth import store
from nullbooth.progress import log_to, reporter
from nullbooth.projector import decompose


def main(out: str, covariance: str, identity: dict) -> None:
    group = store.read(covariance, identity)
    arrays, report = {}, reporter("features")
    for i, feature in enumerate(group.attrs["features"], 1):
        name = feature["name"]
        c = store.unpack_symmetric(group[name][:]) / group.attrs["rows"][name]
        w, u = decompose(c, f"{name} in {covariance}")
        arrays |= {f"{name}:values": w, f"{name}:vectors": u}
        report(i, len(group.attrs["features"]))
    kept = {key: group.attrs[key] for key in ("rows", "features", "timestep", "timesteps", "denoiser")}
    store.write(out, arrays, identity, **kept)


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(snakemake.output[0], snakemake.input.covariance, snakemake.params.identity)
