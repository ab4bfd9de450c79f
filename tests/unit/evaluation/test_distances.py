"""Distances between sets agree with scikit-learn, SciPy and their formulas, on random features."""

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.spatial.distance import jensenshannon
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from nullbooth.evaluation.distances import (
    DISTANCES,
    coverage,
    frechet_distance,
    jensen_shannon,
    kernel_distance,
    mean_discrepancy,
    nearest_neighbour_accuracy,
    squared_distances,
)


def features(n: int = 24, d: int = 6, shift: float = 0.4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of unit rows `[n, d]` float32 with different means."""
    rng = np.random.default_rng(seed)
    sets = rng.normal(size=(n, d)), rng.normal(size=(n, d)) + shift
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in sets)


def test_fid_is_the_distance_between_two_gaussians():
    x, y = (z.astype(np.float64) for z in features())
    (m, s), (n, t) = ((z.mean(0), np.cov(z, rowvar=False)) for z in (x, y))
    expected = (m - n) @ (m - n) + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    assert frechet_distance(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(torch.tensor(x), torch.tensor(x)) == pytest.approx(0, abs=1e-8)


def test_kid_compares_every_picture_with_all_but_its_twin():
    x, y = (z.astype(np.float64) for z in features())
    n = len(x)
    xx, yy, xy = (polynomial_kernel(*pair, degree=3, coef0=1) for pair in ((x, x), (y, y), (x, y)))
    expected = sum(xx[i, j] + yy[i, j] - 2 * xy[i, j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert kernel_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_kid_of_twins_from_one_distribution_is_zero_on_average():
    """Twins from the same noise are alike. With them, the sets would seem nearer than two independent sets."""
    found = []
    for seed in range(200):
        x, _ = features(shift=0.0, seed=seed)
        rng = np.random.default_rng(1000 + seed)
        y = x + 0.2 * rng.normal(size=x.shape)
        y /= np.linalg.norm(y, axis=1, keepdims=True)
        found.append(kernel_distance(x, y))
    assert abs(np.mean(found)) < 4 * np.std(found) / len(found) ** 0.5


def test_kid_of_two_halves_of_one_set_is_zero_on_average():
    found = []
    for seed in range(60):
        x, y = features(shift=0.0, seed=seed)
        found.append(kernel_distance(x, y))
    assert abs(np.mean(found)) < 3 * np.std(found) / len(found) ** 0.5
    assert min(found) < 0, "an unbiased estimate is sometimes negative"


@pytest.mark.parametrize("bandwidth", [0.5, 1.0])
def test_mmd_uses_a_gaussian_kernel(bandwidth):
    x, y = features()
    xx, yy, xy = (rbf_kernel(*pair, gamma=1 / (2 * bandwidth**2)).mean() for pair in ((x, x), (y, y), (x, y)))
    assert mean_discrepancy(x, y, bandwidth) == pytest.approx(np.sqrt(xx + yy - 2 * xy), rel=1e-4)
    assert mean_discrepancy(x, x) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("k", [1, 5])
def test_coverage_counts_neighbourhoods_with_a_tuned_picture_other_than_the_twin(k):
    x, noise = features()
    y = x + 0.5 * noise
    own = ((x - y) ** 2).sum(1)
    radius = NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, k]
    order = NearestNeighbors(n_neighbors=2).fit(y).kneighbors(x)
    nearest = [next(d for d, j in zip(*row, strict=True) if j != i) for i, row in enumerate(zip(*order, strict=True))]
    expected = (np.array(nearest) <= radius).mean()
    assert (own < np.sort(squared_distances(x, y), 1)[:, 1]).mean() > 0.5, "twins are near"
    assert 0 < expected <= (1 if k == 5 else 0.99)
    assert coverage(x, y, k) == expected
    assert coverage(x, x, k) == 1
    assert coverage(x, x + 10, k) == 0


def test_1nna_is_the_leave_one_out_accuracy_of_a_classifier():
    x, y = features(shift=1.0)
    both, label = np.concatenate((x, y)), np.repeat((0, 1), len(x))
    guessed = cross_val_predict(KNeighborsClassifier(1), both, label, cv=LeaveOneOut())
    expected = (guessed == label).mean()
    assert 0.5 < expected < 1
    assert nearest_neighbour_accuracy(x, y) == expected
    assert nearest_neighbour_accuracy(x, y + 10) == 1
    assert nearest_neighbour_accuracy(x, x + 1e-4) == 0, "each picture lies nearest to its own twin"


def test_jsd_is_that_of_histograms():
    x, y = (z.astype(np.float64) for z in features())
    expected = []
    for i in range(x.shape[1]):
        edges = np.linspace(min(x[:, i].min(), y[:, i].min()), max(x[:, i].max(), y[:, i].max()), 11)
        p, q = (np.histogram(z[:, i], edges)[0] / len(z) for z in (x, y))
        expected.append(jensenshannon(p, q, base=2) ** 2)
    assert jensen_shannon(x, y) == pytest.approx(np.mean(expected), rel=1e-6)
    assert jensen_shannon(x, x) == 0
    assert jensen_shannon(x, x + 10) == 1


def test_squared_distances_agree_with_scipy():
    x, y = features()
    expected = ((x[:, None] - y) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(x, y), expected, atol=1e-6)


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_grow_with_the_shift_between_sets(name):
    near, far = (DISTANCES[name](*features(40, 4, shift)) for shift in (0.1, 2.0))
    assert far < near if name == "coverage" else far > near
