"""95% intervals: by bootstrap over prompts and training seeds, or by half-samples for distances between sets."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

QUANTILES = (0.025, 0.975)


def _widening(n: int) -> float:
    """Return the factor that widens a percentile bootstrap over `n` items to Student's t interval. The bootstrap
    divides by n instead of n - 1 and has normal quantiles (Hesterberg, Am. Stat. 2015)."""
    if n < 2:
        return 0.0
    return (n / (n - 1)) ** 0.5 * float(stats.t.ppf(QUANTILES[1], n - 1) / stats.norm.ppf(QUANTILES[1]))


def resampled_means(values: ArrayLike, n: int = 2000, seed: int = 0) -> NDArray:
    """Return means `[n]` of `values: [seeds, prompts]` (or `[prompts]`) over `n` resamples of both axes, with
    replacement.

    The deviations of the seeds' means and of the prompts' means from the overall mean are resampled separately, each
    widened for its number. With one seed, the means vary over prompts only. Arrays of the same shape are resampled
    alike, so that the difference of two means is that of paired values. A mean may fall outside the range of the
    values, because a mean of three seeds is that uncertain.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    rng, mean = np.random.default_rng(seed), values.mean()
    means = np.full(n, mean)
    for axis in (1, 0):
        deviations = values.mean(axis) - mean
        drawn = rng.integers(len(deviations), size=(n, len(deviations)))
        means += _widening(len(deviations)) * deviations[drawn].mean(1)
    return means


def bootstrap_mean(
    values: ArrayLike, n: int = 2000, seed: int = 0, within: tuple[float, float] = (-np.inf, np.inf)
) -> dict[str, float]:
    """Return the mean of `values: [seeds, prompts]` or `[prompts]` and its 95% interval by `resampled_means`, clipped
    to `within`.

    For the difference of two methods, pass the differences of their paired values. Raises ValueError without values.
    """
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        raise ValueError("there is nothing to take the mean of")
    low, high = np.clip(np.quantile(resampled_means(values, n, seed), QUANTILES), *within)
    return {"value": float(values.mean()), "low": float(low), "high": float(high), "n": int(values.size)}


def half_samples(statistic: Callable[[NDArray], float], items: int, n: int = 200, seed: int = 0) -> dict[str, float]:
    """Return `statistic` of the indices `0 ... items - 1` and its 95% interval from random halves without replacement.

    A bootstrap repeats items, which distances between sets take for perfect matches. A half-sample repeats none, and
    deviates from the whole about as much as the whole from the truth (delete-d jackknife with d = items / 2: Shao and
    Wu, Ann. Statist. 1989). Raises ValueError for fewer than 4 items.
    """
    if items < 4:
        raise ValueError(f"{items} pictures are too few for the distance of two sets and its interval; use at least 4")
    rng = np.random.default_rng(seed)
    value = statistic(np.arange(items))
    halves = np.array([statistic(rng.permutation(items)[: items // 2]) for _ in range(n)])
    low, high = value + np.quantile(halves - halves.mean(), QUANTILES)
    return {"value": float(value), "low": float(low), "high": float(high), "n": items}
