"""Closed-form edits agree with the formula of the paper, its reference implementation, and minimisers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nullbooth.editing.closed_form import edit_map, factors, free_factor, solve
from nullbooth.errors import ProjectorError

WIDTH = 12
RULES = {"energy": 1e-9, "absolute": 1e-9, "relative": 1e-9, "fraction": 0.5}  # all leave the same free, given:
KEPT = 6  # directions that protected features span
EYE = torch.eye(WIDTH, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def protected(seed: int = 0, kept: int = KEPT) -> Tensor:
    """Features `[n, in]` that span `kept` directions, one of them much stronger than the others."""
    return (normal(40, kept, seed=seed) + 2) @ normal(kept, WIDTH, seed=seed + 1)


def moment(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def edits(count: int, rows: int = 2, seed: int = 7) -> list[tuple[Tensor, Tensor]]:
    numbers = [1000 + 10 * seed + i for i in range(count)]  # other seeds than those of protected features
    return [(normal(rows, WIDTH, seed=i), normal(rows, WIDTH, seed=i + 5000)) for i in numbers]


def dense(free: Tensor) -> Tensor:
    return free @ free.T


def relative(l2: float, k1: Tensor) -> float:
    return l2 * float((k1 * k1).sum())


# --- parity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("l2", [1e-4, 1.0])
def test_one_edit_equals_equation_14(rule, l2):
    """dW = R K1^T P (K1 K1^T P + Kp Kp^T P + l2 I)^-1; its columns are rows here."""
    free = free_factor(moment(protected()), rule, RULES[rule])
    p = dense(free)
    k1, v1, kp, w = normal(3, WIDTH, seed=3).T, normal(5, 3, seed=4), normal(4, WIDTH, seed=5).T, normal(5, WIDTH)
    r = v1 - w @ k1
    printed = r @ k1.T @ p @ torch.linalg.inv(k1 @ k1.T @ p + kp @ kp.T @ p + l2 * EYE)
    torch.testing.assert_close(r @ solve(k1.T, k1 @ k1.T + kp @ kp.T, free, l2), printed, rtol=1e-9, atol=1e-10)
    assert printed.abs().max() > 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_one_map_equals_the_reference_for_every_layer_edit_by_edit(rule):
    """Layers have several widths, and residuals of their current weights (AlphaEdit_main.py)."""
    l2, free = 1e-2, free_factor(moment(protected()), rule, RULES[rule])
    p, pairs = dense(free), edits(3)
    m = edit_map(pairs, free, l2)
    for seed, out in enumerate((4, 12, 20)):
        original = w = normal(out, WIDTH, seed=seed)
        cache = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
        for k, t in pairs:
            k1 = k.T
            r = original @ t.T - w @ k1  # targets are outputs of the model itself
            ridge = relative(l2, k) * EYE
            w = w + torch.linalg.solve(p @ (k1 @ k1.T + cache) + ridge, p @ k1 @ r.T).T
            cache += k1 @ k1.T
        torch.testing.assert_close(original @ m, w - original, rtol=1e-9, atol=1e-10)
    assert m.abs().max() > 1e-2


@pytest.mark.parametrize("rho", [1e-2, 1.0, 30.0])
def test_the_soft_rule_is_a_ridge_on_retained_features(rho):
    """The reference solves the normal equations of |D K1 - R|^2 + l2 (|D|^2 + tr(D C D^T) / rho) over all D."""
    c, [(k, t)], l2 = moment(protected()), edits(1, rows=5), 1e-2
    m = edit_map([(k, t)], free_factor(c, "soft", rho), l2)
    a = relative(l2, k)
    expected = torch.linalg.solve(k.T @ k + a * EYE + a / rho * c, k.T @ (t - k)).T
    torch.testing.assert_close(m, expected, rtol=1e-4, atol=1e-6)  # eigenvectors are kept in float32


@pytest.mark.parametrize("rule", RULES)
def test_no_change_within_the_free_directions_is_better(rule):
    """The sum that the module docstring minimises is compared at the solution and near it."""
    free, l2 = free_factor(moment(protected()), rule, RULES[rule]), 0.3
    k1, kp, r = normal(3, WIDTH, seed=3), normal(4, WIDTH, seed=5), normal(3, 5, seed=6)
    found = r.T @ solve(k1, k1.T @ k1 + kp.T @ kp, free, l2)

    def cost(d: Tensor) -> float:
        return float((d @ k1.T - r.T).square().sum() + (d @ kp.T).square().sum() + l2 * d.square().sum())

    for seed in range(20):
        step = normal(5, WIDTH, seed=seed) @ dense(free)
        assert cost(found) < min(cost(found + 1e-2 * step), cost(found - 1e-2 * step))


def test_retained_features_count_like_earlier_edits():
    free, [first, second] = EYE, edits(2)
    unchanged = (first[0], first[0])  # an edit to itself: no change, but it counts as edited
    after = edit_map([unchanged, second], free, 1e-3)
    retained = first[0].T @ first[0]
    torch.testing.assert_close(edit_map([second], free, 1e-3, retained), after)
    assert not torch.allclose(edit_map([second], free, 1e-3), after)
    torch.testing.assert_close(retained, first[0].T @ first[0], rtol=0, atol=0)  # the argument is not modified


# --- rules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_hard_rules_give_a_projector_onto_directions_without_protected_features(rule):
    x = protected()
    p = dense(free_factor(moment(x), rule, RULES[rule]))
    u, _, _ = torch.linalg.svd(x.T, full_matrices=True)
    torch.testing.assert_close(p, dense(u[:, KEPT:]), rtol=0, atol=1e-5)


@given(st.floats(1e-3, 1e3), st.integers(0, 99))
def test_the_soft_rule_weakens_directions_by_their_eigenvalues(rho, seed):
    c = moment(protected(seed))
    p = dense(free_factor(c, "soft", rho))
    torch.testing.assert_close(p, rho * torch.linalg.inv(c + rho * EYE), rtol=1e-4, atol=1e-5)


def test_the_error_without_free_directions_names_the_site():
    with pytest.raises(ProjectorError, match=r"attn2\.to_k: no free direction under the rule absolute: 1e-30"):
        free_factor(moment(normal(40, WIDTH)), "absolute", 1e-30, "attn2.to_k")
    broken = torch.full((3, 3), float("nan"))
    with pytest.raises(ProjectorError, match="NaN"):
        free_factor(broken, "energy", 0.1)


# --- properties --------------------------------------------------------------------------------------------


@given(st.integers(0, 99), st.integers(1, 4), st.sampled_from(list(RULES)), st.sampled_from([1e-6, 1e-2, 10.0]))
def test_protected_features_do_not_change(seed, count, rule, l2):
    x = protected(seed)
    m = edit_map(edits(count, seed=seed), free_factor(moment(x), rule, RULES[rule]), l2)
    assert (x @ m.T).norm() < 1e-5 * x.norm() * m.norm()
    assert m.norm() > 1e-3


@given(st.integers(0, 99), st.integers(1, 3))
def test_edits_without_conflict_reach_their_targets(seed, count):
    """There are free directions for all rows, so that every edit holds in the end."""
    pairs = edits(count, rows=2, seed=seed)
    m = edit_map(pairs, free_factor(moment(protected(seed)), "fraction", 0.5), 1e-12)
    for k, t in pairs:
        assert (k + k @ m.T - t).norm() < 1e-3 * (t - k).norm()


@given(st.integers(0, 99))
def test_a_larger_ridge_changes_less(seed):
    free = free_factor(moment(protected(seed)), "fraction", 0.5)
    sizes = [float(edit_map(edits(1, seed=seed), free, l2).norm()) for l2 in (1e-4, 1e-2, 1.0, 100.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.1 * sizes[0]


@given(st.floats(1e-3, 1e3), st.integers(0, 99))
def test_the_ridge_does_not_depend_on_scale_or_number_of_rows(scale, seed):
    [(k, t)], free = edits(1, seed=seed), free_factor(moment(protected(seed)), "fraction", 0.5)
    m = edit_map([(k, t)], free, 0.1)
    torch.testing.assert_close(edit_map([(scale * k, scale * t)], free, 0.1), m)
    torch.testing.assert_close(edit_map([(k.repeat(5, 1), t.repeat(5, 1))], free, 0.1), m)


@pytest.mark.parametrize("seed", range(5))
def test_a_later_edit_preserves_earlier_ones(seed):
    """It disturbs them less than an edit without memory, if free directions do not suffice for both."""
    first, second = edits(2, rows=4, seed=seed)
    free, l2 = free_factor(moment(protected(seed)), "fraction", 0.5), 1e-3
    one, both = edit_map([first], free, l2), edit_map([first, second], free, l2)
    k, t = second
    missing = t - k - k @ one.T
    forgetful = one + missing.T @ solve(k, k.T @ k, free, relative(l2, k))
    disturbed = [float((first[0] @ (m - one).T).norm()) for m in (both, forgetful)]
    assert disturbed[0] < 0.8 * disturbed[1]
    assert (t - k - k @ both.T).norm() < (t - k - k @ one.T).norm(), "the later edit has an effect itself"


def test_edits_in_lower_precision_are_solved_in_float64():
    pairs, free = edits(2), free_factor(moment(protected()), "fraction", 0.5)
    m = edit_map([(k.float(), t.float()) for k, t in pairs], free, 1e-3)
    assert m.dtype == torch.float64
    torch.testing.assert_close(m, edit_map(pairs, free, 1e-3), rtol=1e-4, atol=1e-5)


# --- factors -----------------------------------------------------------------------------------------------


def root(c: Tensor) -> Tensor:
    w, v = torch.linalg.eigh(c)
    return v * w.clamp(min=0).sqrt()


@given(st.integers(0, 99), st.sampled_from([0.5, 0.1, 1e-2, 1e-6]))
def test_factors_have_the_smallest_rank_within_the_tolerance(seed, tolerance):
    m = normal(WIDTH, WIDTH, seed=seed) * torch.logspace(0, -4, WIDTH, dtype=torch.float64)
    x = normal(50, WIDTH, seed=seed + 1) * torch.logspace(0, 1, WIDTH, dtype=torch.float64)
    left, right = factors(m, moment(x), tolerance)
    added = x @ m.T
    assert (added - x @ (left @ right).T).norm() <= (tolerance + 1e-9) * added.norm()
    best = np.linalg.svd((m @ root(moment(x))).numpy(), compute_uv=False)  # Eckart and Young: no smaller rank suffices
    rank = left.shape[1]
    assert right.shape == (rank, WIDTH)
    assert rank == 1 or np.sqrt((best[rank - 1 :] ** 2).sum()) > tolerance * np.sqrt((best**2).sum())


def test_factors_keep_protected_features_protected():
    x = protected()
    m = edit_map(edits(2), free_factor(moment(x), "energy", 1e-9), 1e-3)
    _, right = factors(m, moment(normal(50, WIDTH)), 0.3)
    assert len(right) < torch.linalg.matrix_rank(m)
    assert (x @ right.T).norm() < 1e-5 * x.norm() * right.norm()
    rows = torch.linalg.lstsq(m.T, right.T, driver="gelsd").solution
    torch.testing.assert_close(m.T @ rows, right.T, rtol=0, atol=1e-6)


def test_directions_without_features_are_not_stored():
    m = torch.diag(torch.tensor([1.0, 1.0, 100.0], dtype=torch.float64))
    left, right = factors(m, torch.diag(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)))
    assert len(right) == 2
    torch.testing.assert_close((left @ right)[:2, :2], m[:2, :2])
