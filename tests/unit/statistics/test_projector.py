"""Projectors agree with their definition and with an independent SVD of the features."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth.errors import ProjectorError
from nullbooth.statistics.projector import RULES, decompose, free_directions, projector

HARD_RULES = {"energy": 0.05, "absolute": 0.4, "relative": 0.1, "fraction": 0.7}


def features(rows: int, width: int, rank: int, seed: int) -> np.ndarray:
    """`[rows, width]` of exactly `rank`, with very unequal directions and a strong mean."""
    rng = np.random.default_rng(seed)
    scales = np.logspace(0, -2, rank)
    x = (rng.normal(size=(rows, rank)) + 2) * scales @ rng.normal(size=(rank, width))
    return x / np.sqrt((x**2).sum() / rows / width)


def second_moment(x: np.ndarray) -> np.ndarray:
    return x.T @ x / len(x)


def directions(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean energies `[n]`, descending, and unit directions `[n, n]` in rows, from the features alone."""
    _, s, vt = np.linalg.svd(x, full_matrices=True)
    energy = np.zeros(x.shape[1])
    energy[: len(s)] = s**2 / len(x)
    return energy, vt


def free_by_definition(energy: np.ndarray, rule: str, value: float) -> np.ndarray:
    """Directions that are free by the definitions of the design."""
    if rule == "absolute":
        return energy < value
    if rule == "relative":
        return energy < value * energy.max()
    order = np.argsort(energy, kind="stable")
    free = np.zeros(len(energy), bool)
    if rule == "fraction":
        free[order[: int(value * len(energy))]] = True
        return free
    spent = 0.0
    for i in order:
        spent += energy[i]
        if spent > value * energy.sum():
            break
        free[i] = True
    return free


low_rank = st.tuples(st.integers(3, 24), st.integers(1, 1000)).flatmap(
    lambda t: st.tuples(st.just(t[0]), st.integers(1, t[0] - 1), st.just(t[1]))
)


@given(low_rank)
def test_projectors_of_low_rank_features_span_their_null_space(case):
    width, rank, seed = case
    x = features(3 * width, width, rank, seed)
    c = second_moment(x)
    p = projector(*decompose(c), "relative", 1e-9)
    dense = p.dense()
    assert p.free == width - rank
    np.testing.assert_allclose(dense, dense.T, atol=1e-6)
    np.testing.assert_allclose(dense @ dense, dense, atol=2e-6)
    np.testing.assert_allclose(dense @ c, 0, atol=2e-6 * np.abs(c).max())
    np.testing.assert_allclose(np.trace(dense), width - rank, atol=1e-4)
    assert np.abs(p.apply(x.astype(np.float32))).max() < 1e-4 * np.abs(x).max()


@pytest.mark.parametrize(("rule", "value"), HARD_RULES.items())
@pytest.mark.parametrize("rank", [6, 16])
@pytest.mark.parametrize("seed", range(3))
def test_hard_rules_agree_with_an_svd_of_the_features(rule, value, rank, seed):
    x = features(60, 16, rank, seed)
    energy, vt = directions(x)
    free = free_by_definition(energy, rule, value)
    expected = vt[free].T @ vt[free]
    found = projector(*decompose(second_moment(x)), rule, value)
    assert 0 < free.sum() < 16
    assert found.free == free.sum()
    np.testing.assert_allclose(found.dense(), expected, atol=1e-4)


@pytest.mark.parametrize("rank", [6, 16])
def test_the_soft_rule_agrees_with_an_svd_of_the_features(rank):
    x, rho = features(60, 16, rank, 0), 0.3
    energy, vt = directions(x)
    expected = vt.T @ np.diag(rho / (energy + rho)) @ vt
    found = projector(*decompose(second_moment(x)), "soft", rho)
    np.testing.assert_allclose(found.dense(), expected, atol=1e-5)
    np.testing.assert_allclose(found.dense(), rho * np.linalg.inv(second_moment(x) + rho * np.eye(16)), atol=1e-5)
    assert found.free == pytest.approx((rho / (energy + rho)).sum(), rel=1e-5)


def test_every_rule_is_tested():
    assert set(RULES) == {*HARD_RULES, "soft"}


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=30), st.floats(1e-6, 0.999))
def test_the_energy_rule_uses_its_allowance_and_no_more(values, share):
    w = np.sort(np.array(values))
    k = free_directions(w, "energy", share)
    allowance = share * w.sum()
    assert w[:k].sum() <= allowance * (1 + 1e-12)
    if k < len(w):
        assert w[: k + 1].sum() > allowance * (1 - 1e-12)


def test_the_energy_rule_bounds_the_expected_leak():
    """E|D P x|^2 <= |D|_2^2 e trace(C), which is why it is the default."""
    x = features(200, 12, 12, 3)
    c = second_moment(x)
    delta = np.random.default_rng(0).normal(size=(5, 12))
    for share in (0.001, 0.01, 0.1, 0.5):
        p = projector(*decompose(c), "energy", share).dense()
        leak = ((x @ p.T @ delta.T) ** 2).sum(1).mean()
        assert leak <= np.linalg.norm(delta, 2) ** 2 * share * np.trace(c) * (1 + 1e-5)
    assert leak > 0


@given(st.integers(2, 200), st.data())
def test_the_fraction_rule_counts_exactly(n, data):
    k = data.draw(st.integers(1, n - 1))
    assert free_directions(np.arange(1.0, n + 1), "fraction", k / n) == k


@pytest.mark.parametrize("kept", [1, 5, 8, 11, 15])
def test_the_thinner_basis_gives_the_dense_projector(kept):
    n = 16
    w, u = decompose(second_moment(features(60, n, n, 1)))
    value = np.sqrt(w[n - kept - 1] * w[n - kept])
    p = projector(w, u, "absolute", value)
    assert p.free == n - kept
    assert p.basis.shape == (n, min(kept, n - kept))
    a = np.random.default_rng(1).normal(size=(3, 7, n)).astype(np.float32)
    free = u[:, : n - kept].astype(np.float64)
    np.testing.assert_allclose(p.dense(), free @ free.T, atol=2e-6)
    np.testing.assert_allclose(p.apply(a), a @ free @ free.T, atol=1e-5)


@pytest.mark.parametrize("n", [5, 12])
def test_the_decomposition_rebuilds_the_moment(n):
    c = second_moment(features(40, n, n, 2))
    w, u = decompose(c)
    assert (np.diff(w) >= 0).all()
    assert w.dtype == np.float64
    np.testing.assert_allclose(u * w @ u.T, c, atol=1e-5 * w.max())


def test_rounding_does_not_make_negative_eigenvalues():
    c = second_moment(features(40, 20, 3, 2).astype(np.float32)).astype(np.float64)
    assert np.linalg.eigvalsh(c).min() < 0
    assert decompose(c)[0].min() == 0


@pytest.mark.parametrize(("rule", "value"), [("absolute", 1e-3), ("relative", 1e-3), ("energy", 1e-4), ("soft", 1e-9)])
def test_the_error_without_free_directions_names_site_rule_and_spectrum(rule, value):
    w, u = np.linspace(1, 2, 10), np.eye(10, dtype=np.float32)
    with pytest.raises(ProjectorError, match=r"mid_block\.attn2\.to_q") as error:
        projector(w, u, rule, value, "mid_block.attn2.to_q")
    assert f"{rule}: {value}" in str(error.value)
    assert "1, 1.25, 1.5, 1.75, 2" in str(error.value)


def test_all_directions_free_warns_and_gives_the_identity():
    with pytest.warns(UserWarning, match=r"some\.site.*absolute.*nothing is protected"):
        p = projector(np.linspace(1, 2, 10), np.eye(10, dtype=np.float32), "absolute", 3.0, "some.site")
    np.testing.assert_array_equal(p.dense(), np.eye(10))


def test_a_usual_spectrum_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert projector(*decompose(second_moment(features(40, 8, 4, 0))), "energy", 1e-3).free >= 4


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match=r"enrgy.*energy, absolute, relative, fraction, soft"):
        projector(np.ones(3), np.eye(3), "enrgy", 0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_entries_that_are_not_finite_are_refused(bad):
    c = np.eye(4)
    c[1, 2] = c[2, 1] = bad
    with pytest.raises(ProjectorError, match=r"some\.site.*NaN"):
        decompose(c, "some.site")


def test_asymmetric_moments_are_refused():
    c = np.eye(4)
    c[1, 2] = 1e-3
    with pytest.raises(ProjectorError, match=r"some\.site.*not symmetric"):
        decompose(c, "some.site")


@pytest.mark.parametrize("spectrum", [[1.0, 0.5, -0.1], [-1.0, -1.0, -1.0], [0.0, 0.0, -1e-3]])
def test_negative_eigenvalues_are_refused(spectrum):
    with pytest.raises(ProjectorError, match=r"some\.site.*negative eigenvalue"):
        decompose(np.diag(spectrum), "some.site")


@pytest.mark.parametrize(("rule", "value"), [("energy", 0.05), ("relative", 0.1), ("absolute", 0.4)])
@given(st.integers(0, 10**6), st.floats(0.01, 100.0))
def test_adding_moments_never_adds_free_directions(rule, value, seed, weight):
    """By Weyl, adding a second moment lowers no eigenvalue, and shares refer to the eigenvalues before."""
    c, more = (second_moment(features(40, 12, rank, seed + rank)) for rank in (9, 3))
    w, _ = decompose(c)
    both, u = decompose(c + weight * more)
    assert free_directions(both, rule, value, w) <= free_directions(w, rule, value)
    if rule == "energy" and free_directions(both, rule, value, w):
        p = projector(both, u, rule, value, of=w).dense()
        for part in (c, weight * more, c + weight * more):
            assert np.trace(p @ part) <= value * w.sum() + 1e-5 * both.sum()
