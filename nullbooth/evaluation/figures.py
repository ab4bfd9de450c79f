"""Plots in vector format, with colours for colour-blind readers (Okabe and Ito 2008; viridis for heat maps)."""

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nullbooth.storage.atomic import whole

matplotlib.use("Agg")
matplotlib.rcParams.update(
    {
        "svg.fonttype": "none",  # keep text as text: smaller files that can be searched
        "svg.hashsalt": "nullbooth",  # equal plots give equal files
        "font.family": "sans-serif",
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "figure.constrained_layout.use": True,
    }
)
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7a7a7a")
MARKERS = "osD^vP*X"


def save(figure: Figure, *paths: Path | str) -> None:
    """Write a figure in the format of each path's suffix, without a date, so that equal figures give equal files."""
    for path in paths:
        dated = {"Date": None} if Path(path).suffix == ".svg" else None
        with whole(path) as partial:
            figure.savefig(partial, metadata=dated, dpi=160)
    plt.close(figure)


def svg(figure: Figure) -> str:
    """Return a figure as the text of an <svg> element for a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def style(i: int) -> dict:
    """Return colour, marker and line style of the i-th series: 8 colours solid, then dashed, then dotted."""
    dashes = ("-", "--", ":")[i // len(COLORS) % 3]
    return {"color": COLORS[i % len(COLORS)], "marker": MARKERS[(i + i // 8) % 8], "linestyle": dashes}


def retention(
    fidelity: dict[str, dict[str, list[tuple[int, dict]]]], drift: dict[str, list[tuple[int, dict]]]
) -> Figure:
    """Plot each subject's fidelity (top) and the drift of other prompts (bottom) against the number of learned
    subjects, with a column per method.

    Points are (number of learned subjects, {value, low, high}).
    """
    figure, axes = plt.subplots(
        2, len(fidelity), figsize=(1.4 + 2.5 * len(fidelity), 5.4), sharex=True, sharey="row", squeeze=False
    )
    for column, (method, subjects) in enumerate(fidelity.items()):
        above, below = axes[:, column]
        for i, (subject, points) in enumerate(subjects.items()):
            with_bars(above, points, **style(i), label=subject)
        with_bars(below, drift[method], **style(6))
        above.set_title(method, fontsize=10)
        below.set_xlabel("subjects learned")
        below.set_xticks([count for count, _ in drift[method]])
    axes[0, 0].set_ylabel("fidelity (DINO)")
    axes[1, 0].set_ylabel("drift of other prompts")
    axes[1, 0].set_ylim(bottom=0)
    axes[0, 0].legend(fontsize=8, loc="best")
    return figure


def with_bars(axes: Axes, points: list[tuple[int, dict]], **options: Any) -> None:
    """Plot a line through points (x, {value, low, high}) with error bars."""
    x, y = [count for count, _ in points], [p["value"] for _, p in points]
    bars = np.clip([[p["value"] - p["low"] for _, p in points], [p["high"] - p["value"] for _, p in points]], 0, None)
    axes.errorbar(x, y, bars, capsize=2, markersize=5, linewidth=1.4, elinewidth=0.8, **options)


def rooms(free: dict[str, list[float]], label: str) -> Figure:
    """Plot shares of free directions by kind of layer against the number of subjects learned before."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for i, (kind, shares) in enumerate(free.items()):
        axes.plot(range(len(shares)), shares, label=kind, **style(i))
    axes.set_xlabel("subjects learned before")
    axes.set_ylabel(label)
    axes.set_ylim(0, 1)
    axes.set_xticks(range(max(map(len, free.values()))))
    axes.legend(fontsize=9)
    return figure


def trade_off(
    curves: dict[str, list[list[dict]]], front: list[tuple[float, float]], landmarks: dict[str, float]
) -> Figure:
    """Plot subject fidelity against drift. curves: lines by name, each a list of {drift, fidelity} in drawing order,
    with {value, low, high} each; front: Pareto-optimal points (drift, fidelity); landmarks: fidelities by name."""
    figure, axes = plt.subplots(figsize=(8, 6.4))
    for i, (name, lines) in enumerate(curves.items()):
        for k, points in enumerate(lines):
            x, y = ([p[key]["value"] for p in points] for key in ("drift", "fidelity"))
            errors = [
                np.abs([[p[key]["value"] - p[key]["low"], p[key]["high"] - p[key]["value"]] for p in points]).T
                for key in ("drift", "fidelity")
            ]
            axes.errorbar(x, y, errors[1], errors[0], fmt="none", ecolor=style(i)["color"], alpha=0.35, linewidth=1)
            axes.plot(x, y, label=None if k else name, markersize=7, linewidth=1.6, **style(i))
    axes.step(
        *np.array(front).T, where="post", color="#999999", linewidth=5, alpha=0.35, label="Pareto front", zorder=0
    )
    for name, value in landmarks.items():
        axes.axhline(value, color="#555555", linewidth=1, linestyle=(0, (2, 3)))
        axes.annotate(
            name, (0.005, value), xycoords=("axes fraction", "data"), va="bottom", fontsize=9, color="#555555"
        )
    axes.set_xscale("log")
    axes.set_xlabel("drift of unrelated prompts, (1 - cos) / 2, DINO (left is better)")
    axes.set_ylabel("subject fidelity, cosine, DINO (up is better)")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9.5)
    return figure


def spectra(values: dict[str, NDArray], timesteps: list[float]) -> Figure:
    """Plot the eigenvalues of second moments as shares of their sum, largest first: a panel per layer, a line per
    timestep.

    values: by layer `[timesteps or 1, width]`, ascending.
    """
    columns = min(4, len(values))
    rows = -(-len(values) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(2.3 * columns, 1.8 * rows), squeeze=False, sharey=True)
    color = plt.get_cmap("viridis")
    for axes, (name, w) in zip(grid.flat, values.items(), strict=False):
        for i, row in enumerate(w):
            share = np.maximum(row[::-1] / row.sum(), 1e-12)
            axes.semilogy(np.arange(1, len(row) + 1), share, color=color(i / max(1, len(w) - 1)), linewidth=0.7)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=8)
    for axes in grid.flat[len(values) :]:
        axes.set_axis_off()
    figure.supxlabel("eigenvalue, largest first", fontsize=10)
    figure.supylabel("share of the trace", fontsize=10)
    limits = Normalize(0, max(1, len(timesteps) - 1))
    bar = figure.colorbar(plt.cm.ScalarMappable(limits, "viridis"), ax=grid, shrink=0.6, aspect=30)
    ends = [0, len(timesteps) - 1]
    bar.set_ticks(ends, labels=[f"{timesteps[i]:g}" for i in ends])
    bar.set_label("timestep")
    return figure


def leaks(prompts: list[int], mean: list[float], features: list[list[float]]) -> Figure:
    """Plot the leak of held-out prompts against the number of protected prompts: its mean, and faintly each feature."""
    figure, axes = plt.subplots(figsize=(6.6, 3.8))
    for curve in features:
        axes.semilogy(prompts, np.maximum(curve, 1e-12), color="#999999", linewidth=0.7, alpha=0.5)
    axes.semilogy(prompts, np.maximum(mean, 1e-12), label="mean over layers", markersize=7, linewidth=1.8, **style(0))
    axes.set_xlabel("protected prompts")
    axes.set_ylabel("leak of other prompts")
    axes.legend(frameon=False)
    return figure


def heat_map(
    values: NDArray,
    rows: list[str],
    timesteps: list[float],
    label: str,
    log: bool = False,
    limits: tuple[float | None, float | None] = (None, None),
) -> Figure:
    """Plot `values: [rows, timesteps]`, from noise (left) to picture; log: use a logarithmic scale."""
    figure, axes = plt.subplots(figsize=(6.6, 1.1 + 0.2 * len(rows)))
    positive = values[values > 0]
    norm = LogNorm(limits[0] or positive.min(), limits[1] or positive.max()) if log else Normalize(*limits)
    picture = axes.imshow(values, aspect="auto", cmap="viridis", norm=norm, interpolation="nearest")
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    shown = np.unique(np.linspace(0, len(timesteps) - 1, min(8, len(timesteps))).astype(int))
    axes.set_xticks(shown, [f"{timesteps[i]:g}" for i in shown])
    axes.set_xlabel("timestep, from noise to picture")
    axes.grid(False)
    figure.colorbar(picture, ax=axes, label=label, aspect=30, pad=0.01)
    return figure
