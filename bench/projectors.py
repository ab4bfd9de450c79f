"""Cost of projectors: eigh of a symmetric matrix (nullbooth.statistics.projector.decompose) against torch.linalg.svd.

Uses one random positive definite matrix per distinct width. Totals are not measured, but computed as time per width
times the number of features of that width: for one timestep, and for 50 with the static feature counted once. The last
row is the time of one SVD per site and timestep, without sharing features between sites.
"""

from collections import Counter

import numpy as np
import torch
from common import TIMESTEPS, build_unet, named_features, parser, report, side_by_side

from nullbooth.models.sites import find_sites
from nullbooth.statistics.projector import decompose


def spectrum_matrix(n: int, seed: int = 0) -> np.ndarray:
    """Return a matrix `[n, n]` float64 with eigenvalues that fall from 1 to 1e-6, like those of features."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    c = (q * np.geomspace(1, 1e-6, n)) @ q.T
    return (c + c.T) / 2


def time_width(n: int, repeats: int) -> dict[str, dict[str, float]]:
    c = spectrum_matrix(n)
    return side_by_side(
        {
            "eigh": lambda: decompose(c),
            "svd float64": lambda: torch.linalg.svd(torch.from_numpy(c)),
            "svd float32": lambda: torch.linalg.svd(torch.from_numpy(c).float()),
        },
        repeats,
    )


def total_rows(times: dict[int, dict], static: Counter, moving: Counter, layers: Counter) -> list[dict]:
    """Return the seconds for one timestep other than the first, and for all."""

    def total(variant: str, counts: Counter) -> float:
        return sum(times[n][variant]["seconds"] * count for n, count in counts.items())

    rows = []
    for variant in next(iter(times.values())):
        step = total(variant, moving)
        rows.append((f"{variant}, distinct features", step, total(variant, static) + step * len(TIMESTEPS)))
    step = total("svd float32", layers)
    rows.append(("svd float32, every layer", step, step * len(TIMESTEPS)))
    first = rows[0][2]
    return [
        {"variant": name, "seconds per timestep": step, "seconds for 50": whole, "ratio": whole / first}
        for name, step, whole in rows
    ]


def main(args) -> None:
    sites = find_sites(build_unet(args.size, "meta"))
    features = named_features(sites)
    static, moving = (Counter(f.width for f in features if f.static is kind) for kind in (True, False))
    times = {n: time_width(n, args.repeats) for n in sorted(static | moving)}
    rows = [
        {"width": n, "features": static[n] + moving[n], "variant": variant, **row}
        for n, found in times.items()
        for variant, row in found.items()
    ]
    report("projectors", rows, args)
    layers = Counter(module.in_features for module in sites.values())
    report("projectors: totals", total_rows(times, static, moving, layers), args)


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
