"""Spectra of second moments, and free directions under a rank rule, as table and figures."""

import numpy as np

from nullbooth.evaluation import figures
from nullbooth.evaluation.mechanism import short_name
from nullbooth.models.sites_by_name import Feature
from nullbooth.statistics.projector import free_share
from nullbooth.statistics.records import MomentStore
from nullbooth.storage.progress import reporter
from nullbooth.storage.tables import write_csv


def write_spectra(out: dict[str, str], covariances: list[str], rule: dict[str, float], identity: dict) -> None:
    """Write the `table` of free directions and the figures `spectra` and `free`, from the moments of all timesteps."""
    [(name, value)] = rule.items()
    stores = [MomentStore(path, identity) for path in covariances]
    features, timesteps = stores[0].features, stores[0].timesteps
    values: dict[str, np.ndarray] = {}
    report = reporter("features")
    for i, feature in enumerate(features, 1):
        moments = stores[:1] if feature.static else stores
        spectra = [np.linalg.eigvalsh(m.second_moment(feature.name)).clip(0) for m in moments]
        values[feature.name] = np.stack(spectra)
        report(i, len(features))
    free = {key: np.array([free_share(row, name, value) for row in w]) for key, w in values.items()}
    rows = []
    for key, shares in free.items():
        steps, width = timesteps if len(shares) > 1 else [None], values[key].shape[1]
        for i, (t, share) in enumerate(zip(steps, shares, strict=True)):
            rows.append({"feature": key, "step": i, "timestep": t, "width": width, "free": round(share * width)})
    write_csv(out["table"], rows)
    labels = {feature.name: label(feature) for feature in features}
    figures.save(figures.spectra({labels[key]: w for key, w in values.items()}, timesteps), out["spectra"])
    shares = np.array([np.broadcast_to(shares, len(timesteps)) for shares in free.values()])
    picture = figures.heat_map(shares, [labels[key] for key in free], timesteps, f"free directions ({name}: {value:g})")
    figures.save(picture, out["free"])


def label(feature: Feature) -> str:
    """Return the name of the first site that reads a feature, and the number of others."""
    more = len(feature.sites) - 1
    return short_name(feature.name) + (f" + {more}" if more else "")
