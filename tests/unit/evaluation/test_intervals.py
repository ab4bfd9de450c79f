"""Coverage of intervals over prompts and seeds, of differences, and of distances between sets."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from nullbooth.evaluation.intervals import bootstrap_mean, half_samples, resampled_means


def test_bootstrap_interval_covers_the_mean():
    rng = np.random.default_rng(1)
    found = [bootstrap_mean(rng.normal(3.0, 2.0, 40), n=500, seed=i) for i in range(200)]
    covered = np.mean([f["low"] <= 3.0 <= f["high"] for f in found])
    assert 0.89 <= covered <= 0.99
    width = np.mean([f["high"] - f["low"] for f in found])
    assert width == pytest.approx(2 * 1.96 * 2.0 / 40**0.5, rel=0.1)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_the_bootstrap_handles_few_values(values):
    found = bootstrap_mean(values, n=50)
    assert found["n"] == len(values)
    assert found["value"] == pytest.approx(np.mean(values), abs=1e-9)
    assert found["low"] <= found["value"] + 1e-9
    assert found["value"] <= found["high"] + 1e-9
    assert bootstrap_mean(np.array([values]), n=50) == found


@pytest.mark.parametrize("spread", [(0.0, 1.0, 0.5), (0.3, 1.0, 0.3), (1.0, 1.0, 0.5), (1.0, 0.0, 0.3)], ids=str)
@pytest.mark.parametrize(("seeds", "prompts"), [(1, 8), (3, 8), (3, 16)], ids=str)
def test_intervals_cover_the_mean_in_95_percent_of_trials(seeds, prompts, spread):
    """Values have effects of seeds and prompts, and a residual. With one seed, the interval is for that training."""
    rng = np.random.default_rng(3)
    of_seed, of_prompt, rest = spread
    covered = []
    for i in range(400):
        shared = of_seed * rng.normal(size=(seeds, 1))
        values = shared + of_prompt * rng.normal(size=prompts) + rest * rng.normal(size=(seeds, prompts))
        found = bootstrap_mean(values, n=500, seed=i)
        covered.append(found["low"] <= (shared[0, 0] if seeds == 1 else 0.0) <= found["high"])
    assert np.mean(covered) >= 0.915, "95% up to chance in 400 trials and the discreteness of a bootstrap"


def test_intervals_of_few_skewed_values_cover_the_mean_nearly_as_often():
    rng = np.random.default_rng(4)
    found = [bootstrap_mean(rng.gamma(1.0, size=(3, 16)), n=500, seed=i) for i in range(400)]
    assert np.mean([f["low"] <= 1.0 <= f["high"] for f in found]) > 0.9


def test_an_interval_is_clipped_to_possible_values():
    values = np.array([[0.0, 0.9], [0.1, 0.0], [0.0, 0.0]])
    assert bootstrap_mean(values)["low"] < 0
    assert bootstrap_mean(values, within=(0.0, np.inf))["low"] == 0
    assert bootstrap_mean(1 - values, within=(0.0, 1.0))["high"] == 1


def test_more_seeds_do_not_narrow_the_interval_of_prompts_and_vice_versa():
    """Values differ only by prompt or only by seed; each axis is resampled as a whole."""
    by_prompt = np.tile(np.random.default_rng(0).normal(size=12), (5, 1))
    by_seed = np.tile(np.random.default_rng(1).normal(size=(5, 1)), (1, 12))
    for values, one in ((by_prompt, by_prompt[0]), (by_seed, by_seed[:, 0])):
        low, high = np.quantile(resampled_means(values, 20000), (0.025, 0.975))
        width = 2 * scipy.stats.t.ppf(0.975, len(one) - 1) * scipy.stats.sem(one)
        assert high - low == pytest.approx(width, rel=0.15), "about as wide as Student's interval"


def test_arrays_of_one_shape_are_resampled_alike():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 10))
    np.testing.assert_allclose(resampled_means(a) - resampled_means(b), resampled_means(a - b), atol=1e-12)


def test_arrays_with_equally_many_seeds_are_resampled_with_the_same_seeds():
    seeds = np.random.default_rng(0).normal(size=(3, 1))
    few, many = resampled_means(np.tile(seeds, (1, 4))), resampled_means(np.tile(seeds, (1, 9)))
    np.testing.assert_allclose(few, many, atol=1e-12)


def test_a_paired_difference_is_more_certain_than_its_parts():
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=20)
    a, b = prompts + 0.1 * rng.normal(size=(3, 20)) + 0.5, prompts + 0.1 * rng.normal(size=(3, 20))
    difference, part = bootstrap_mean(a - b), bootstrap_mean(a)
    assert difference["high"] - difference["low"] < 0.3 * (part["high"] - part["low"])
    assert 0.3 < difference["low"] < difference["high"] < 0.7


def test_no_values_have_no_mean():
    with pytest.raises(ValueError, match="nothing to take the mean of"):
        bootstrap_mean([])


def test_half_samples_are_as_wide_as_the_standard_error_of_a_mean():
    rng = np.random.default_rng(2)
    widths = []
    for i in range(40):
        x = rng.normal(0.0, 3.0, 30)
        found = half_samples(lambda rows, x=x: x[rows].mean(), 30, n=400, seed=i)
        assert found["value"] == x.mean()
        widths.append(found["high"] - found["low"])
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 3.0 / 30**0.5, rel=0.1)


def test_half_samples_repeat_no_item():
    seen = []
    half_samples(lambda rows: seen.append(rows) or 0.0, 10, n=20)
    assert len(seen) == 21
    assert all(len(set(rows)) == len(rows) == 5 for rows in seen[1:])


def test_half_samples_of_too_few_items_are_refused():
    with pytest.raises(ValueError, match="3 pictures are too few"):
        half_samples(lambda rows: 0.0, 3)
