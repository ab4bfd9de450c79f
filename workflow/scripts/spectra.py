"""Rule spectra: eigenvalues of all second moments, and the directions that they leave free under the rank rule."""

import csv

import numpy as np

from nullbooth.evaluation import figures
from nullbooth.evaluation.mechanism import short_name
from nullbooth.statistics.projector import free_share
from nullbooth.storage import zarrstore
from nullbooth.storage.atomic import whole
from nullbooth.storage.progress import log_to, reporter


def main(out: dict, covariances: list[str], rule: dict, identity: dict) -> None:
    [(name, value)] = rule.items()
    groups = [zarrstore.read(path, identity) for path in covariances]
    features, timesteps = groups[0].attrs["features"], groups[0].attrs["timesteps"]
    values: dict[str, np.ndarray] = {}
    report = reporter("features")
    for i, feature in enumerate(features, 1):
        moments = groups[:1] if feature["static"] else groups
        spectra = [np.linalg.eigvalsh(zarrstore.unpack_symmetric(g[feature["name"]][:])).clip(0) for g in moments]
        rows = [g.attrs["rows"][feature["name"]] for g in moments]
        values[feature["name"]] = np.stack([w / n for w, n in zip(spectra, rows, strict=True)])
        report(i, len(features))
    free = {key: np.array([free_share(row, name, value) for row in w]) for key, w in values.items()}
    with whole(out["table"]) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("feature", "step", "timestep", "width", "free"))
        for key, shares in free.items():
            steps = timesteps if len(shares) > 1 else [None]
            width = values[key].shape[1]
            writer.writerows(
                (key, i, t, width, round(f * width)) for i, (t, f) in enumerate(zip(steps, shares, strict=True))
            )
    labels = {feature["name"]: label(feature) for feature in features}
    figures.save(figures.spectra({labels[key]: w for key, w in values.items()}, timesteps), out["spectra"])
    shares = np.array([np.broadcast_to(shares, len(timesteps)) for shares in free.values()])
    picture = figures.heat_map(shares, [labels[key] for key in free], timesteps, f"free directions ({name}: {value:g})")
    figures.save(picture, out["free"])


def label(feature: dict) -> str:
    """The name of the first site that reads a feature, and how many others do."""
    more = len(feature["sites"]) - 1
    return short_name(feature["name"]) + (f" + {more}" if more else "")


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(dict(snakemake.output.items()), snakemake.input.covariances, **snakemake.params)
