"""Changes of layers by an adapter, compared with passing the features through the layers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth.evaluation.mechanism import largest_share, output_change, relative_norm, short_name, summary
from nullbooth.statistics.projector import RULES, decompose, free_share, projector


@given(st.integers(0, 10**6))
def test_output_change_equals_that_of_the_features_themselves(seed):
    rng = np.random.default_rng(seed)
    x, weight, change = rng.normal(size=(50, 7)) + 1, rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    expected = np.sqrt(((x @ change.T) ** 2).sum() / ((x @ weight.T) ** 2).sum())
    assert output_change(weight, change, x.T @ x / len(x)) == pytest.approx(expected)


def test_a_change_in_the_null_space_changes_no_output():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 9))
    moment = x.T @ x / 4
    p = projector(*decompose(moment), "energy", 1e-9).dense()
    weight, change = rng.normal(size=(3, 9)), rng.normal(size=(3, 9)) @ p
    assert output_change(weight, change, moment) < 1e-6
    assert relative_norm(weight, change) > 0.1
    assert output_change(weight, change, np.eye(9)) == pytest.approx(relative_norm(weight, change))


@pytest.mark.parametrize(
    ("site", "short"),
    [
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_q", "down 0.1 to_q"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0", "mid 0 to_out.0"),
        ("up_blocks.3.attentions.0.transformer_blocks.1.attn2.to_k", "up 3.0.1 to_k"),
        ("transformer_blocks.12.attn2.to_v", "transformer 12 to_v"),
    ],
)
def test_short_names_omit_shared_parts(site, short):
    assert short_name(site) == short


@pytest.mark.parametrize("rule", RULES)
def test_free_share_is_the_relative_trace_of_the_projector(rule):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 12)) * np.logspace(0, -3, 12)
    w, u = decompose(x.T @ x / 40)
    value = 0.4 if rule == "fraction" else 1e-2
    assert free_share(w, rule, value) == pytest.approx(projector(w, u, rule, value).free / 12)


@pytest.mark.parametrize("top", [1.0, 8.0, 1000.0])
def test_largest_share_is_that_of_the_largest_eigenvalue(top):
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))
    w = np.array([top, *np.linspace(0.9, 0.01, 11)])
    assert largest_share((q * w) @ q.T) == pytest.approx(top / w.sum(), rel=0.02)


def row(site: str, protected: float, largest: float | None = 0.2) -> dict:
    found = {"site": f"down_blocks.0.attentions.0.transformer_blocks.0.attn2.{site}", "step": 0, "timestep": "981.0"}
    return (
        found
        | {"protected": str(protected), "heldout": "0.2", "norm": "1.5"}
        | ({"largest": largest} if largest else {})
    )


def test_the_summary_reports_changes_and_warns_of_leaks():
    [said] = summary([row("to_q", 0.02), row("to_k", 0.04), row("to_v", 0.06)])
    assert "change by 4.0% in the median" in said
    assert "6.0% at most (down 0.0 to_v, timestep 981)" in said
    assert "1.5 times their own norm" in said
    _, warning = summary([row("to_q", 0.02), row("to_k", 0.11), row("to_k", 0.3)])
    assert warning.startswith("Warning: 1 of 2 layers change protected outputs by more than 10%")
    assert "down 0.0 to_k" in warning
    _, warning = summary([row("to_q", 0.02, 0.95), row("to_k", 0.02)])
    assert warning.startswith("Warning: one direction holds more than 90% of the input energy of 1 of 2 layers")
    assert "(down 0.0 to_q)" in warning
    assert len(summary([row("to_q", 0.02, None)])) == 1, "older tables lack the column"
