"""Rules projector and joined_projector: eigenvalues and eigenvectors of every second moment; a rank rule is applied by
their readers. Those of earlier subjects are added, where there are any."""

import numpy as np

from nullbooth.statistics.projector import decompose
from nullbooth.storage import zarrstore
from nullbooth.storage.progress import log_to, reporter


def subject_moment(group, name: str, steps: list[int]) -> np.ndarray:
    """Second moment `[n, n]` of what a subject's prompts give a feature, the mean over these timesteps."""
    keys = [f"{step:02d}:{name}" for step in steps]
    return sum(zarrstore.unpack_symmetric(group[key][:]) / group.attrs["rows"][key] for key in keys) / len(keys)


def main(
    out: str,
    covariance: str,
    identity: dict,
    alone: str | None = None,
    earlier: tuple[str, ...] = (),
    step: str = "",
    weight: float = 0.0,
    of_statistics: dict | None = None,
    of_earlier: tuple[dict, ...] = (),
) -> None:
    """`earlier`: moments of subjects, made from `of_earlier`, for timestep number `step` or "pooled", of which each
    counts `weight`; then the covariance and the projectors of it `alone` are made `of_statistics`, and `identity` names
    both. Shares of rank rules stay those of the protected prompts alone, whose eigenvalues are kept for that: no
    subject loosens what protects others.
    """
    group = zarrstore.read(covariance, of_statistics or identity)
    protected = zarrstore.read(alone, of_statistics) if alone else {}
    subjects = [zarrstore.read(path, made_from) for path, made_from in zip(earlier, of_earlier, strict=True)]
    every = list(range(len(group.attrs["timesteps"])))
    arrays, report = {}, reporter("features")
    for i, feature in enumerate(group.attrs["features"], 1):
        name = feature["name"]
        c = zarrstore.unpack_symmetric(group[name][:]) / group.attrs["rows"][name]
        if subjects:
            arrays[f"{name}:protected"] = protected[f"{name}:values"][:]
            steps = [0] if feature["static"] else every if step == "pooled" else [int(step)]
            c += weight * sum(subject_moment(subject, name, steps) for subject in subjects)
        w, u = decompose(c, f"{name} in {covariance}" + (f", with {len(subjects)} subjects" if subjects else ""))
        arrays |= {f"{name}:values": w, f"{name}:vectors": u}
        report(i, len(group.attrs["features"]))
    kept = {key: group.attrs[key] for key in ("rows", "features", "timestep", "timesteps", "denoiser")}
    zarrstore.write(out, arrays, identity, **kept)


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(snakemake.output[0], **dict(snakemake.input.items()), **snakemake.params)
