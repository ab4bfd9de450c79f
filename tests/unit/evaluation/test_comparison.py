"""Comparison of methods: curves, drift at equal fidelity, the Pareto front, and pairing."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nullbooth.evaluation import comparison_page
from nullbooth.evaluation.comparison import (
    DRIFT,
    FIDELITY,
    Point,
    at_equal_fidelity,
    drift_at,
    lines_of,
    pareto_front,
    stacked,
)


def point(
    curve: str, fidelity: float, drift: float, noise: float = 0.01, seeds: int = 3, line: str = "", scale: float = 1.0
) -> Point:
    """A point whose values by prompt scatter around two means, in the same way for all points, like paired values."""
    rng = np.random.default_rng(0)
    f, d = rng.normal(size=(seeds, 8)), rng.normal(size=(seeds, 16))
    f, d = f - f.mean(), d - d.mean()
    values = {FIDELITY: fidelity + noise * f, DRIFT: drift * (1 + 0.1 * noise * d)}
    return Point(curve, f"{curve}-{fidelity}", values, 0.1, 10.0, line, scale)


@pytest.mark.parametrize(
    ("target", "drift", "gap"),
    [(0.2, 0.01, 0), (0.5, 0.02, 0), (0.6, 0.03, 0.2), (0.7, 0.04, 0), (0.71, np.inf, 0)],
)
def test_drift_at_a_fidelity_lies_on_the_line_between_points(target, drift, gap):
    found = drift_at(np.array([0.3, 0.5, 0.7]), np.array([0.01, 0.02, 0.04]), target)
    assert found == pytest.approx((drift, gap))


def test_a_better_point_beyond_the_fidelity_counts():
    """It has more fidelity with less drift, so that nobody would choose the earlier points."""
    assert drift_at(np.array([0.4, 0.8]), np.array([0.1, 0.02]), 0.5) == (0.02, 0.0)


def test_a_line_may_return_to_an_earlier_fidelity():
    """Beyond the best scale, fidelity falls again; points are joined in the order of the scales."""
    fidelity, drift = np.array([0.4, 0.5, 0.46]), np.array([0.01, 0.02, 0.2])
    assert drift_at(fidelity, drift, 0.48) == pytest.approx((0.018, 0.1))


def test_points_of_one_adapter_are_joined_by_scale_and_others_by_fidelity():
    scaled = [point("lora", 0.6, 0.3, line="fast", scale=1.0), point("lora", 0.7, 0.2, line="fast", scale=0.5)]
    slow = point("lora", 0.5, 0.1, line="slow", scale=1.0)
    assert [[p.scale for p in line] for line in lines_of([*scaled, slow])] == [[0.5, 1.0], [1.0]]
    plain = [point("lora", f, 0.1, line="lora") for f in (0.6, 0.4, 0.5)]
    [line] = lines_of(plain)
    assert [round(p.values[FIDELITY].mean(), 6) for p in line] == [0.4, 0.5, 0.6]


def test_no_drift_is_interpolated_between_two_adapters():
    """One reaches 0.6, the other does not, and their points are not joined."""
    points = [point("ref", 0.6, 0.06)]
    points += [point("lora", f, d, line="slow", scale=s) for f, d, s in ((0.4, 0.001, 0.5), (0.5, 0.002, 1.0))]
    points += [point("lora", f, d, line="fast", scale=s) for f, d, s in ((0.58, 0.1, 0.5), (0.64, 0.4, 1.0))]
    _, table = at_equal_fidelity(points, "ref", n=100)
    assert table["lora"]["value"] == pytest.approx(0.2)
    assert table["lora"]["gap"] == pytest.approx(0.06)


def test_equal_fidelity_is_the_highest_of_the_reference():
    points = [
        point("prior", 0.4, 0.02), point("prior", 0.6, 0.06),
        point("ours", 0.56, 0.005), point("ours", 0.64, 0.015),
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


def test_no_drift_is_interpolated_across_a_wide_gap():
    points = [point("prior", 0.6, 0.06), point("ours", 0.5, 0.005), point("ours", 0.7, 0.015)]
    _, table = at_equal_fidelity(points, "prior", n=100)
    found = table["ours"]
    assert found["gap"] == pytest.approx(0.2)
    assert all(np.isnan(found[key]) for key in ("value", "low", "high", "ratio", "ratio_low", "ratio_high"))
    assert found["reached"] == 1


def test_a_reference_without_drift_gives_no_ratio():
    _, table = at_equal_fidelity([point("still", 0.5, 0.0), point("ours", 0.55, 0.01)], "still", n=50)
    assert table["ours"]["ratio"] == np.inf
    assert np.isnan(table["still"]["ratio"])


def test_the_share_of_resamples_that_reach_the_fidelity_is_reported():
    points = [point("prior", 0.5, 0.05)]
    rng = np.random.default_rng(5)
    ours = point("ours", 0.5, 0.01)
    ours.values[FIDELITY][:] = 0.5 + 0.1 * rng.normal(size=(3, 8))
    _, table = at_equal_fidelity([*points, ours], "prior", n=300)
    assert 0 < table["ours"]["reached"] < 1
    assert table["ours"]["high"] == np.inf


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8, unique=True))
def test_no_point_beats_one_on_the_pareto_front(points):
    def beaten(i: int) -> bool:
        (d, f) = points[i]
        return any((e <= d and g >= f) and (e, g) != (d, f) for e, g in points)

    assert sorted(pareto_front(points)) == [i for i in range(len(points)) if not beaten(i)]


def run(prompts: list[str], values: list) -> dict:
    metrics = [{"model": "tuned", "group": "subject", "metric": "m", "values": values}]
    return {"prompts": {"subject": prompts}, "metrics": metrics}


def test_runs_are_stacked_by_seed_with_the_prompts_of_all_concepts():
    runs = [[run(["a", "b"], [i, None]), run(["c", "d"], [10 * i, 20 * i])] for i in (1, 2, 3)]
    found = stacked(runs)[("tuned", "subject", "m")]
    assert found.tolist() == [[1, 10, 20], [2, 20, 40], [3, 30, 60]]


def test_runs_on_different_prompts_are_not_paired():
    with pytest.raises(ValueError, match="different prompts"):
        stacked([[run(["a"], [1])], [run(["b"], [1])]])


def listed(folder, entries: list[tuple[str, str, int, int]]):
    """Write a folder of plain grey pictures from entries (group, prompt, seed, grey)."""
    folder.mkdir()
    for i, (*_, grey) in enumerate(entries):
        Image.new("RGB", (8, 8), (grey,) * 3).save(folder / f"{i}.png")
    keys = ("group", "prompt", "seed")
    images = [{**dict(zip(keys, entry, strict=False)), "file": f"{i}.png"} for i, entry in enumerate(entries)]
    (folder / "images.json").write_text(json.dumps({"identity": {}, "images": images}))
    return folder


def test_a_column_of_the_page_has_one_prompt_and_the_same_noise(tmp_path):
    """The base model's extra picture of each prompt is not shown."""
    tuned = listed(tmp_path / "tuned", [("subject", "a", 1, 10), ("subject", "b", 2, 20), ("unrelated", "c", 3, 30)])
    one = listed(tmp_path / "one", [("subject", "b", 2, 120), ("subject", "a", 9, 190), ("subject", "a", 1, 110)])
    rest = listed(tmp_path / "rest", [("unrelated", "c", 8, 180), ("unrelated", "c", 3, 130)])
    columns = comparison_page.columns_of(tuned)
    for folders, expected in (([tuned], [10, 20, 30]), ([one, rest], [110, 120, 130])):
        found = comparison_page.strip(folders, tmp_path / "page", folders[0].name, columns)
        assert [entry["prompt"] for entry in found] == ["a", "b", "c"]
        assert [Image.open(tmp_path / "page" / e["file"]).getpixel((0, 0))[0] for e in found] == expected


def test_every_order_of_points_gives_the_same_front():
    points = [(0.1, 0.5), (0.2, 0.7), (0.15, 0.4), (0.3, 0.7)]
    for order in itertools.permutations(points):
        assert [order[i] for i in pareto_front(list(order))] == [(0.1, 0.5), (0.2, 0.7)]
