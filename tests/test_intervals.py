"""Intervals: do they cover what they should, over prompts, over seeds, for differences and for distances of sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth.intervals import bootstrap_mean, half_samples, resampled_means


def test_bootstrap_interval_covers_the_mean():
    rng = np.random.default_rng(1)
    found = [bootstrap_mean(rng.normal(3.0, 2.0, 40), n=500, seed=i) for i in range(200)]
    covered = np.mean([f["low"] <= 3.0 <= f["high"] for f in found])
    assert 0.89 <= covered <= 0.99
    width = np.mean([f["high"] - f["low"] for f in found])
    assert width == pytest.approx(2 * 1.96 * 2.0 / 40**0.5, rel=0.1)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_bootstrap_of_a_few_values(values):
    found = bootstrap_mean(values, n=50)
    assert found["n"] == len(values)
    assert found["value"] == pytest.approx(np.mean(values), abs=1e-9)
    assert min(values) - 1e-9 <= found["low"] <= found["high"] <= max(values) + 1e-9
    assert bootstrap_mean(np.array([values]), n=50) == found


def test_what_seeds_share_is_no_more_certain_for_more_seeds_and_the_other_way_round():
    """Values that differ by prompt alone, or by seed alone: each axis is resampled as a whole."""
    by_prompt = np.tile(np.random.default_rng(0).normal(size=12), (5, 1))
    by_seed = np.tile(np.random.default_rng(1).normal(size=(5, 1)), (1, 12))
    assert resampled_means(by_prompt, 4000).std() == pytest.approx(by_prompt[0].std() / 12**0.5, rel=0.05)
    assert resampled_means(by_seed, 4000).std() == pytest.approx(by_seed[:, 0].std() / 5**0.5, rel=0.05)


def test_arrays_of_one_shape_are_resampled_alike():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 10))
    np.testing.assert_allclose(resampled_means(a) - resampled_means(b), resampled_means(a - b), atol=1e-12)


def test_arrays_of_as_many_seeds_are_resampled_with_the_same_seeds():
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


def test_nothing_has_no_mean():
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


def test_half_samples_repeat_nothing():
    seen = []
    half_samples(lambda rows: seen.append(rows) or 0.0, 10, n=20)
    assert len(seen) == 21
    assert all(len(set(rows)) == len(rows) == 5 for rows in seen[1:])


def test_half_samples_of_too_few_are_refused():
    with pytest.raises(ValueError, match="3 pictures are too few"):
        half_samples(lambda rows: 0.0, 3)
