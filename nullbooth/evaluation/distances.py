"""Distances between the pictures of base and tuned model as two sets of unit embeddings.

Pictures are pairs of twins, drawn from the same noise. KID and coverage exclude a picture's own twin. 1-NNA does not,
and falls below one half if little changed: it is 0 if every picture is nearest to its own twin.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class _Given(nn.Module):
    """Stand-in for an encoder, which passes precomputed features through."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        return x


def frechet_distance(base: Tensor, tuned: Tensor) -> float:
    """FID (arXiv 1706.08500) of features `[n, d]`, by torchmetrics. Biased upwards unless n is far above d."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(_Given(base.shape[1])).set_dtype(torch.float64)
    metric.update(base.double(), real=True)
    metric.update(tuned.double(), real=False)
    return max(0.0, metric.compute().item())


def kernel_distance(base: NDArray, tuned: NDArray) -> float:
    """KID (arXiv 1801.01401) of features `[n, d]` whose rows are twins, drawn from the same noise.

    A picture is compared with all others of both sets, but not with its own twin (U-statistic of pairs: Gretton et al.,
    JMLR 2012, lemma 6), because twins are alike whatever the distributions are. It is unbiased, and therefore the
    distance to use below 10,000 pictures: about 0, with either sign, for equal distributions.
    """
    n = len(base)
    x, y = np.asarray(base, np.float64), np.asarray(tuned, np.float64)
    xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    kernel = xx + yy - xy - xy.T
    return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))


def squared_distances(x: NDArray, y: NDArray) -> NDArray:
    """Return the squared Euclidean distances of rows, `[n, m]` float64, not negative."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0)


def mean_discrepancy(base: NDArray, tuned: NDArray, bandwidth: float = 1.0) -> float:
    """MMD (Gretton et al., JMLR 2012) with a Gaussian kernel, biased, not squared."""
    k = [np.exp(-squared_distances(*pair) / (2 * bandwidth**2)).mean() for pair in
         ((base, base), (tuned, tuned), (base, tuned))]  # fmt: skip
    return float(np.sqrt(max(0.0, k[0] + k[1] - 2 * k[2])))


def coverage(base: NDArray, tuned: NDArray, k: int = 5) -> float:
    """Share of base pictures that have a tuned picture other than their twin within the distance of their k-th base
    neighbour (arXiv 2002.09797). It is 1 if nothing changed; with twins, it would be 1 for sets without variety too."""
    k = min(k, len(base) - 1)
    radius = np.sort(squared_distances(base, base), 1)[:, k]
    others = squared_distances(base, tuned)
    np.fill_diagonal(others, np.inf)
    return float((others.min(1) <= radius).mean())


def nearest_neighbour_accuracy(base: NDArray, tuned: NDArray) -> float:
    """1-NNA (arXiv 1610.06545): share of pictures whose nearest neighbour is in their own set. Ties go to the base."""
    both = np.concatenate((base, tuned))
    distance = squared_distances(both, both)
    np.fill_diagonal(distance, np.inf)
    of_base = distance.argmin(1) < len(base)
    return float((of_base == (np.arange(len(both)) < len(base))).mean())


def jensen_shannon(base: NDArray, tuned: NDArray, bins: int = 10) -> float:
    """Jensen-Shannon divergence in bits of the histograms of each embedding dimension, averaged over dimensions."""
    found = []
    for x, y in zip(np.asarray(base, np.float64).T, np.asarray(tuned, np.float64).T, strict=True):
        edges = np.histogram_bin_edges(np.concatenate((x, y)), bins)
        p, q = (np.histogram(z, edges)[0] / len(z) for z in (x, y))
        m = (p + q) / 2
        found.append(sum((r[r > 0] * np.log2(r[r > 0] / m[r > 0])).sum() / 2 for r in (p, q)))
    return float(np.mean(found))


Distance = Callable[[NDArray, NDArray], float]
DISTANCES: dict[str, Distance] = {
    "fid": lambda x, y: frechet_distance(torch.as_tensor(x), torch.as_tensor(y)),
    "kid": kernel_distance,
    "mmd": mean_discrepancy,
    "coverage": coverage,
    "nearest_neighbour_accuracy": nearest_neighbour_accuracy,
    "jsd": jensen_shannon,
}


def of_rows(distance: Distance, base: NDArray, tuned: NDArray) -> Callable[[NDArray], float]:
    """Return the distance of two sets of embeddings `[n, d]` as a function of the indices of their rows."""
    return lambda i: distance(base[i], tuned[i])
