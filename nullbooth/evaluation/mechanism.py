"""Change of the output of each protected layer by an adapter, at each timestep."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nullbooth.storage.progress import reporter
from nullbooth.storage.tables import write_csv

if TYPE_CHECKING:  # the gallery reads the table without importing torch and zarr
    from nullbooth.adapters.loaded import LoadedAdapter
    from nullbooth.statistics.records import MomentStore

COLUMNS = ("site", "step", "timestep", "protected", "heldout", "norm", "largest")


def output_change(weight: NDArray, change: NDArray, moment: NDArray) -> float:
    """Relative change of a layer's output, root mean square over the features behind a second moment.

    sqrt(tr(D C D^T) / tr(W C W^T)) for weight `W: [out, in]`, its change `D: [out, in]` and the uncentred second
    moment `C: [in, in]`. Since E|D x|^2 = tr(D C D^T), no feature needs to pass the layer again.
    """
    changed, before = (((m @ moment) * m).sum() for m in (change, weight))
    return float(np.sqrt(max(0.0, changed) / before))


def relative_norm(weight: NDArray, change: NDArray) -> float:
    """Frobenius norm of a change relative to that of the weight."""
    return float(np.linalg.norm(change) / np.linalg.norm(weight))


LEAK = 0.1  # relative change of a protected output that causes a warning
CONCENTRATED = 0.9  # share of energy in one direction above which the rule `energy` barely protects the others


def largest_share(moment: NDArray, iterations: int = 30) -> float:
    """Share of the largest eigenvalue in the trace of `moment: [n, n]`, by power iteration."""
    x = np.ones(len(moment))
    for _ in range(iterations):
        x = moment @ x
        x /= np.linalg.norm(x) or 1.0
    return float(x @ moment @ x / np.trace(moment))


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return sentences about rows of mechanism.csv: the change of protected outputs and weights, and warnings if a
    layer leaks more than LEAK, or if one direction holds more than CONCENTRATED of the energy of its inputs."""
    changes = np.array([float(row["protected"]) for row in rows])
    norms = np.array([float(row["norm"]) for row in rows])
    worst = rows[int(changes.argmax())]
    where = f"{short_name(worst['site'])}, timestep {float(worst['timestep']):.0f}"
    said = [
        f"For protected prompts, outputs of the layers change by {np.median(changes):.1%} in the median over layers "
        f"and timesteps and by {changes.max():.1%} at most ({where}). Weights change by {np.median(norms):.2g} times "
        f"their own norm in the median, {norms.max():.2g} times at most."
    ]
    leaking = sorted({row["site"] for row in rows if float(row["protected"]) > LEAK})
    every = {row["site"] for row in rows}
    if leaking:
        said.append(
            f"Warning: {len(leaking)} of {len(every)} layers change protected outputs by more than {LEAK:.0%} at some "
            f"timestep ({', '.join(map(short_name, leaking[:3]))}{', ...' if leaking[3:] else ''}). A smaller "
            "protect.rule, fewer training steps or a smaller scale reduces this."
        )
    if narrow := sorted({row["site"] for row in rows if float(row.get("largest") or 0) > CONCENTRATED}):
        named = f"{', '.join(map(short_name, narrow[:3]))}{', ...' if narrow[3:] else ''}"
        said.append(
            f"Warning: one direction holds more than {CONCENTRATED:.0%} of the input energy of {len(narrow)} of "
            f"{len(every)} layers ({named}). The leak that protect.rule energy allows is a share of the total, and may "
            "be a large share of the other directions: use a smaller value."
        )
    return said


def short_name(site: str) -> str:
    """Return a site's name without the parts that all sites share: `down 0.1 to_q` for
    `down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_q`. Numbers of further transformer blocks are kept."""
    name = site.replace("attentions.", "")
    name = re.sub(r"(?<=\d)\.transformer_blocks(\.0)?(?=\.)|\.attn\d*(?=\.)", "", name)
    return re.sub(r"_blocks?\.|\.(?=to_)", " ", name)


def measure(
    adapter: "LoadedAdapter", covariances: list["MomentStore"], heldout: "MomentStore", weights: dict[str, NDArray]
) -> list[dict[str, Any]]:
    """Return a row (`COLUMNS`) per site and cached timestep.

    covariances: second moments of the protected prompts, one store per timestep; heldout: those of other prompts;
    weights: `[out, in]` by site.
    """
    rows, report = [], reporter("timesteps")
    for step, timestep in enumerate(heldout.timesteps):
        at = adapter.nearest(timestep)
        for feature in heldout.features:
            known = 0 if feature.static else step
            seen = covariances[known].second_moment(feature.name), heldout.second_moment(feature.name, known)
            largest = largest_share(seen[0])
            for site in (s for s in feature.sites if s in weights):
                change = adapter.change(site, at).numpy()
                protected, other = (output_change(weights[site], change, c) for c in seen)
                norm = relative_norm(weights[site], change)
                row = (site, step, timestep, protected, other, norm, largest)
                rows.append(dict(zip(COLUMNS, row, strict=True)))
        report(step + 1, len(heldout.timesteps))
    return rows


def write_mechanism(
    out: dict[str, str], adapter: "LoadedAdapter", covariances: list["MomentStore"], heldout: "MomentStore"
) -> None:
    """Write the `table` of `measure` and its figures, `protected` and `heldout`, and print its `summary`."""
    from nullbooth.evaluation import figures

    weights = {name: p.float().numpy() for name, p in adapter.original.items() if p.ndim == 2}
    rows = measure(adapter, covariances, heldout, weights)
    write_csv(out["table"], rows, COLUMNS)
    for sentence in summary(rows):
        print(sentence)
    sites = [site for site in weights if any(row["site"] == site for row in rows)]
    largest = max(max(row["protected"], row["heldout"]) for row in rows)
    for key in ("protected", "heldout"):
        values = np.array([[row[key] for row in rows if row["site"] == site] for site in sites])
        label = f"relative change of the output, {'protected' if key == 'protected' else 'other'} prompts"
        names = [short_name(s) for s in sites]
        figures.save(figures.heat_map(values, names, heldout.timesteps, label, True, (1e-4, largest)), out[key])
