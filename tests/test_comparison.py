"""Methods side by side: curves, equal fidelity, the Pareto front, pairing."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth.comparison import DRIFT, FIDELITY, Point, at_equal_fidelity, drift_at, pareto_front, stacked


def point(curve: str, fidelity: float, drift: float, noise: float = 0.01, seeds: int = 3) -> Point:
    """A point whose values by prompt scatter around two means; all points scatter alike, as pairs do."""
    rng = np.random.default_rng(0)
    f, d = rng.normal(size=(seeds, 8)), rng.normal(size=(seeds, 16))
    f, d = f - f.mean(), d - d.mean()
    values = {FIDELITY: fidelity + noise * f, DRIFT: drift * (1 + 0.1 * noise * d)}
    return Point(curve, f"{curve}-{fidelity}", values, 0.1, 10.0)


@pytest.mark.parametrize(
    ("target", "drift"),
    [(0.2, 0.01), (0.5, 0.02), (0.6, 0.03), (0.7, 0.04), (0.71, np.inf)],
)
def test_drift_at_a_fidelity_lies_on_the_line_between_points(target, drift):
    fidelity, drifts = np.array([0.7, 0.3, 0.5]), np.array([0.04, 0.01, 0.02])
    assert drift_at(fidelity, drifts, target) == pytest.approx(drift)


def test_a_better_point_counts_although_it_lies_beyond():
    """More fidelity for less drift: nobody would stop before."""
    assert drift_at(np.array([0.4, 0.8]), np.array([0.1, 0.02]), 0.5) == 0.02


def test_equal_fidelity_is_the_best_of_the_reference():
    points = [
        point("prior", 0.4, 0.02), point("prior", 0.6, 0.06),
        point("ours", 0.5, 0.005), point("ours", 0.7, 0.015),
        point("weak", 0.3, 0.001),
    ]  # fmt: skip
    target, table = at_equal_fidelity(points, "prior", n=300)
    assert target == pytest.approx(0.6)
    assert table["prior"]["value"] == pytest.approx(0.06)
    assert table["prior"]["ratio"] == 1
    assert table["ours"]["value"] == pytest.approx(0.010)
    assert table["ours"]["ratio"] == pytest.approx(1 / 6)
    assert table["ours"]["ratio_low"] <= 1 / 6 <= table["ours"]["ratio_high"] < 0.2
    assert table["ours"]["reached"] == 1
    assert table["weak"]["value"] == np.inf
    assert table["weak"]["reached"] == 0


def test_a_method_that_gets_there_in_some_resamples_only_says_so():
    points = [point("prior", 0.5, 0.05)]
    rng = np.random.default_rng(5)
    ours = point("ours", 0.5, 0.01)
    ours.values[FIDELITY][:] = 0.5 + 0.1 * rng.normal(size=(3, 8))
    _, table = at_equal_fidelity([*points, ours], "prior", n=300)
    assert 0 < table["ours"]["reached"] < 1
    assert table["ours"]["high"] == np.inf


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8, unique=True))
def test_pareto_front_is_what_nothing_beats(points):
    def beaten(i: int) -> bool:
        (d, f) = points[i]
        return any((e <= d and g >= f) and (e, g) != (d, f) for e, g in points)

    assert sorted(pareto_front(points)) == [i for i in range(len(points)) if not beaten(i)]


def run(prompts: list[str], values: list) -> dict:
    metrics = [{"model": "tuned", "group": "subject", "metric": "m", "values": values}]
    return {"prompts": {"subject": prompts}, "metrics": metrics}


def test_runs_are_stacked_by_seed_with_the_prompts_of_all_concepts_in_a_row():
    runs = [[run(["a", "b"], [i, None]), run(["c", "d"], [10 * i, 20 * i])] for i in (1, 2, 3)]
    found = stacked(runs)[("tuned", "subject", "m")]
    assert found.tolist() == [[1, 10, 20], [2, 20, 40], [3, 30, 60]]


def test_runs_on_different_prompts_are_not_paired():
    with pytest.raises(ValueError, match="different prompts"):
        stacked([[run(["a"], [1])], [run(["b"], [1])]])


def test_every_order_of_points_gives_the_same_front():
    points = [(0.1, 0.5), (0.2, 0.7), (0.15, 0.4), (0.3, 0.7)]
    for order in itertools.permutations(points):
        assert [order[i] for i in pareto_front(list(order))] == [(0.1, 0.5), (0.2, 0.7)]
