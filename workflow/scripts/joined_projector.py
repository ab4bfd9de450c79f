"""Rule joined_projector: eigenvectors of the protected prompts' second moments with those of earlier subjects added."""

import numpy as np

from nullbooth import store
from nullbooth.progress import log_to, reporter
from nullbooth.projector import decompose


def subject_moment(group, name: str, steps: list[int]) -> np.ndarray:
    """Second moment `[n, n]` of what a subject's prompts give a feature, the mean over these timesteps."""
    keys = [f"{step:02d}:{name}" for step in steps]
    return sum(store.unpack_symmetric(group[key][:]) / group.attrs["rows"][key] for key in keys) / len(keys)


def main(out: str, covariance: str, earlier: list[str], step: str, weight: float, of_statistics, of_earlier, identity):
    group = store.read(covariance, of_statistics)
    subjects = [store.read(path, made_from) for path, made_from in zip(earlier, of_earlier, strict=True)]
    arrays, report = {}, reporter("features")
    for i, feature in enumerate(group.attrs["features"], 1):
        name = feature["name"]
        every = [0] if feature["static"] else list(range(len(group.attrs["timesteps"])))
        steps = every if step == "pooled" or feature["static"] else [int(step)]
        c = store.unpack_symmetric(group[name][:]) / group.attrs["rows"][name]
        c += weight * sum(subject_moment(subject, name, steps) for subject in subjects)
        w, u = decompose(c, f"{name} in {covariance}, with {len(subjects)} subjects")
        arrays |= {f"{name}:values": w, f"{name}:vectors": u}
        report(i, len(group.attrs["features"]))
    kept = {key: group.attrs[key] for key in ("rows", "features", "timestep", "timesteps", "denoiser")}
    store.write(out, arrays, identity, **kept)


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(snakemake.output[0], snakemake.input.covariance, snakemake.input.earlier, **snakemake.params)
