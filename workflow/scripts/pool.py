"""Rule pool: the mean of all timesteps' second moments, for projectors that hold at every timestep at once."""

import torch

from nullbooth.statistics.moments import Moment, pool
from nullbooth.storage import zarrstore
from nullbooth.storage.progress import log_to, reporter


def main(out: str, covariances: list[str], identity: dict) -> None:
    groups = [zarrstore.read(path, identity) for path in covariances]
    features = groups[0].attrs["features"]
    arrays, report = {}, reporter("features")
    for i, feature in enumerate(features, 1):
        name = feature["name"]
        steps = groups[:1] if feature["static"] else groups
        moments = (Moment(torch.from_numpy(group[name][:]), group.attrs["rows"][name]) for group in steps)
        arrays[name] = pool(moments).total.numpy()
        report(i, len(features))
    kept = {key: groups[0].attrs[key] for key in ("timesteps", "denoiser")} | {"weights": groups[0].attrs["rows"]}
    zarrstore.write(out, arrays, identity, rows=dict.fromkeys(arrays, 1), features=features, timestep=None, **kept)


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(snakemake.output[0], snakemake.input.covariances, **snakemake.params)
