"""95% intervals: from a bootstrap over prompts and training seeds, or from half-samples for distances of sets."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.025, 0.975)


def _indices(seeds: int, prompts: int, n: int, seed: int) -> tuple[NDArray, NDArray]:
    """`n` resamples of seeds `[n, seeds, 1]` and of prompts `[n, 1, prompts]`; the same for the same sizes."""
    rng = np.random.default_rng(seed)
    return rng.integers(seeds, size=(n, seeds, 1)), rng.integers(prompts, size=(n, 1, prompts))


def resampled_means(values: NDArray, n: int = 2000, seed: int = 0) -> NDArray:
    """Means `[n]` of `values: [seeds, prompts]` (or `[prompts]`) over `n` resamples of both axes, with replacement.

    Arrays of one shape are resampled alike, so that a difference of two means is that of paired values.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    rows, columns = _indices(*values.shape, n, seed)
    return values[rows, columns].mean((1, 2))


def bootstrap_mean(values: NDArray, n: int = 2000, seed: int = 0) -> dict[str, float]:
    """Mean of `values: [seeds, prompts]` or `[prompts]` with a 95% percentile-bootstrap interval (Efron 1979).

    For the difference of two methods give the differences of their paired values.
    """
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        raise ValueError("there is nothing to take the mean of")
    low, high = np.quantile(resampled_means(values, n, seed), QUANTILES)
    return {"value": float(values.mean()), "low": float(low), "high": float(high), "n": int(values.size)}


def half_samples(statistic: Callable[[NDArray], float], items: int, n: int = 200, seed: int = 0) -> dict[str, float]:
    """`statistic` of all indices `0 ... items - 1`, with a 95% interval from random halves without replacement.

    A bootstrap repeats items, which distances of sets take for perfect matches. A half-sample has none twice, and
    deviates from the whole about as much as the whole from the truth (delete-d jackknife with d = items / 2: Shao and
    Wu, Ann. Statist. 1989).
    """
    if items < 4:
        raise ValueError(f"{items} pictures are too few for the distance of two sets and its interval; 4 is the least")
    rng = np.random.default_rng(seed)
    value = statistic(np.arange(items))
    halves = np.array([statistic(rng.permutation(items)[: items // 2]) for _ in range(n)])
    low, high = value + np.quantile(halves - halves.mean(), QUANTILES)
    return {"value": float(value), "low": float(low), "high": float(high), "n": items}
