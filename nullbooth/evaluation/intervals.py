"""95% intervals: from a bootstrap over prompts and training seeds, or from half-samples for distances of sets."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

QUANTILES = (0.025, 0.975)


def _widening(n: int) -> float:
    """What makes a percentile bootstrap over `n` items as wide as Student's t interval: it divides by n in place of
    n - 1, and its quantiles are those of the normal distribution (Hesterberg, Am. Stat. 2015)."""
    if n < 2:
        return 0.0
    return (n / (n - 1)) ** 0.5 * float(stats.t.ppf(QUANTILES[1], n - 1) / stats.norm.ppf(QUANTILES[1]))


def resampled_means(values: NDArray, n: int = 2000, seed: int = 0) -> NDArray:
    """Means `[n]` of `values: [seeds, prompts]` (or `[prompts]`) over `n` resamples of both axes, with replacement.

    The deviations of the seeds' means and of the prompts' means from the mean of all are resampled on their own, each
    widened for how few there are. One seed says nothing of other trainings: the means then vary over prompts alone.
    Arrays of one shape are resampled alike, so that a difference of two means is that of paired values. A mean may
    fall outside the range of the values, as a mean of three seeds is that uncertain.
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
    values: NDArray, n: int = 2000, seed: int = 0, within: tuple[float, float] = (-np.inf, np.inf)
) -> dict[str, float]:
    """Mean of `values: [seeds, prompts]` or `[prompts]` with a 95% interval by `resampled_means`, cut to `within`.

    For the difference of two methods give the differences of their paired values. Raises ValueError without values.
    """
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        raise ValueError("there is nothing to take the mean of")
    low, high = np.clip(np.quantile(resampled_means(values, n, seed), QUANTILES), *within)
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
