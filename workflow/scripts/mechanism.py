"""Rule mechanism: what an adapter changes in the output of each protected layer, at each timestep, and how much of it
protected and other prompts see."""

import csv

import numpy as np

from nullbooth.adapters.file import read_adapter
from nullbooth.adapters.loaded import LoadedAdapter
from nullbooth.evaluation import figures
from nullbooth.evaluation.mechanism import largest_share, output_change, relative_norm, short_name, summary
from nullbooth.models import loading
from nullbooth.models.precision import pick_device
from nullbooth.storage import zarrstore
from nullbooth.storage.atomic import whole
from nullbooth.storage.progress import log_to, reporter

COLUMNS = ("site", "step", "timestep", "protected", "heldout", "norm", "largest")


def moment(group, name: str) -> np.ndarray:
    """A stored second moment `[n, n]`, the mean over its rows."""
    return zarrstore.unpack_symmetric(group[name][:]) / group.attrs["rows"][name]


def measure(adapter: LoadedAdapter, covariances: list, heldout, weights: dict[str, np.ndarray]) -> list[dict]:
    """A row per site and cached timestep."""
    features, timesteps = heldout.attrs["features"], heldout.attrs["timesteps"]
    rows, report = [], reporter("timesteps")
    for step, timestep in enumerate(timesteps):
        at = adapter.nearest(timestep)
        for feature in features:
            name, known = feature["name"], 0 if feature["static"] else step
            seen = moment(covariances[known], name), moment(heldout, f"{known:02d}:{name}")
            largest = largest_share(seen[0])
            for site in (s for s in feature["sites"] if s in weights):
                change = adapter.change(site, at).numpy()
                protected, other = (output_change(weights[site], change, c) for c in seen)
                norm = relative_norm(weights[site], change)
                row = (site, step, timestep, protected, other, norm, largest)
                rows.append(dict(zip(COLUMNS, row, strict=True)))
        report(step + 1, len(timesteps))
    return rows


def main(
    out: dict, adapter: str, covariances: list[str], heldout: str, identity: dict, others: dict, config: dict
) -> None:
    device = pick_device("cpu")
    denoiser = loading.load_denoiser(config["model"], device, **{key: config[key] for key in loading.OF_DENOISER})
    loaded = LoadedAdapter(denoiser, *read_adapter(adapter, identity["model"]), scale=1.0)
    weights = {name: p.float().numpy() for name, p in loaded.original.items() if p.ndim == 2}
    groups, other = [zarrstore.read(path, identity) for path in covariances], zarrstore.read(heldout, others)
    rows = measure(loaded, groups, other, weights)
    with whole(out["table"]) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    for sentence in summary(rows):
        print(sentence)
    sites = [site for site in weights if any(row["site"] == site for row in rows)]
    timesteps = other.attrs["timesteps"]
    for key in ("protected", "heldout"):
        values = np.array([[row[key] for row in rows if row["site"] == site] for site in sites])
        label = f"relative change of the output, {'protected' if key == 'protected' else 'other'} prompts"
        largest = max(max(row["protected"], row["heldout"]) for row in rows)
        picture = figures.heat_map(values, [short_name(s) for s in sites], timesteps, label, True, (1e-4, largest))
        figures.save(picture, out[key])


if __name__ == "__main__":
    log_to(snakemake.log[0])
    i = snakemake.input
    main(
        dict(snakemake.output.items()), i.adapter, i.covariances, i.heldout, **snakemake.params, config=snakemake.config
    )
