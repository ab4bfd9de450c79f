"""Second moments are exact uncentred sums over every token of the inputs of linear layers."""

import gc
import weakref

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nullbooth.models.sites import find_sites
from nullbooth.statistics.moments import Moment, collecting
from nullbooth.statistics.projector import decompose, projector


def moment_of(*batches: torch.Tensor) -> Moment:
    moment = Moment.zero(batches[0].shape[-1])
    for x in batches:
        moment.add(x)
    return moment


def null_space(c: torch.Tensor) -> np.ndarray:
    return projector(*decompose(c.numpy()), "energy", 1e-6).dense()


def collect(layer: nn.Linear, *batches: torch.Tensor) -> Moment:
    with torch.no_grad(), collecting({"layer": layer}) as moments:
        for x in batches:
            layer(x)
    return moments["layer"]


# --- sums ------------------------------------------------------------------------------------------


@given(
    st.integers(1, 6),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(0, 1000),
)
def test_chunked_sums_are_exact(width, batches, seed):
    """Products of small integers are exact, so that all ways of splitting the rows give identical sums."""
    x = torch.randint(-50, 50, (sum(batches), width), generator=torch.Generator().manual_seed(seed))
    expected = x.T @ x
    chunks = x.float().split(batches)
    for moment in (moment_of(x.float()), moment_of(*chunks)):
        assert moment.total.dtype == torch.float64
        assert moment.total.equal(expected.double())
        assert moment.rows == len(x)


def test_batch_sizes_differ_by_rounding_only():
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    exact = x.double().T @ x.double()
    for size in (1, 7, 300):
        torch.testing.assert_close(moment_of(*x.split(size)).total, exact, rtol=1e-5, atol=1e-4)


def test_sums_are_float64_so_that_long_sums_stay_exact():
    x = torch.full((1, 1), 4097.0)
    moment = moment_of(*[x] * 5000)
    assert moment.total.item() == 5000 * float(np.float32(4097.0 * 4097.0))  # float32 sums stop being exact at 2^24


def test_the_mean_divides_by_the_rows_of_all_leading_dimensions():
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    moment = moment_of(x)
    assert moment.rows == 15
    torch.testing.assert_close(moment.mean(), torch.einsum("btn,btm->nm", x, x).double() / 15, rtol=1e-5, atol=1e-6)


def test_a_moment_without_rows_has_no_mean():
    with pytest.raises(ValueError, match="no feature was collected"):
        Moment.zero(3).mean()


# --- hooks -----------------------------------------------------------------------------------------


def test_hooks_read_exactly_the_inputs_of_the_linears(unet, protected):
    sites = find_sites(unet)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in sites}
    handles = [
        module.register_forward_hook(lambda _m, args, _out, name=name: seen[name].append(args[0].clone()))
        for name, module in sites.items()
    ]
    with torch.no_grad(), collecting(sites) as moments:
        for latents, t in zip(protected.latents, protected.timesteps, strict=True):
            unet(latents, t, encoder_hidden_states=protected.prompts)
    for handle in handles:
        handle.remove()
    assert set(moments) == set(sites)
    for name, inputs in seen.items():
        rows = [x.reshape(-1, x.shape[-1]) for x in inputs]
        assert moments[name].rows == sum(map(len, rows)) == 3 * 2 * 4, name
        assert moments[name].total.equal(sum((x.T @ x).double() for x in rows)), name
        x = torch.cat(rows).double()
        torch.testing.assert_close(moments[name].total, x.T @ x, rtol=1e-5, atol=1e-5)


def test_both_branches_of_guidance_count(unet, protected):
    """Prompt and empty prompt in one batch count like two calls, which protects the unconditional branch too."""
    sites = find_sites(unet)

    def rows_of(calls):
        with torch.no_grad(), collecting(sites) as moments:
            for x, prompts in calls:
                unet(x, 501.0, encoder_hidden_states=prompts)
        return moments

    x, prompts = protected.latents[0], protected.prompts
    together = rows_of([(x, prompts)])
    apart = rows_of([(x[:1], prompts[:1]), (x[1:], prompts[1:])])
    for name in sites:
        assert together[name].rows == apart[name].rows
        torch.testing.assert_close(together[name].total, apart[name].total, rtol=1e-4, atol=1e-4)


def test_a_batch_is_multiplied_in_float32_even_under_autocast():
    layer, x = nn.Linear(4, 4), torch.full((3, 4), 257.0)  # bfloat16 cannot represent 257
    with torch.autocast("cpu", torch.bfloat16):
        moment = collect(layer, x)
    assert moment.total.equal(torch.full((4, 4), 3 * 257.0**2, dtype=torch.float64))


def test_tf32_is_off_inside_the_context_and_restored_outside():
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        with pytest.raises(KeyError), collecting({"layer": nn.Linear(2, 2)}):
            inside = torch.backends.cuda.matmul.allow_tf32
            raise KeyError
        assert not inside
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_memory_does_not_grow_with_the_number_of_batches():
    layer = nn.Linear(8, 8)
    alive = []
    with torch.no_grad(), collecting({"layer": layer}) as moments:
        total = moments["layer"].total
        for _ in range(20):
            x = torch.randn(4, 8)
            layer(x)
            alive.append(weakref.ref(x))
            del x
    gc.collect()
    assert moments["layer"].total is total
    assert total.shape == (8, 8)
    assert [r for r in alive if r() is not None] == []


def test_gradient_mode_is_refused():
    layer = nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="no_grad"), collecting({"layer": layer}):
        layer(torch.ones(1, 3))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_hooks_are_removed_after_exceptions(error):
    layer = nn.Linear(3, 3)
    with pytest.raises(error), torch.no_grad(), collecting({"layer": layer}) as moments:
        layer(torch.ones(2, 3))
        raise error
    with torch.no_grad():
        layer(torch.ones(5, 3))
    assert moments["layer"].rows == 2
    layer(torch.ones(1, 3))  # outside the context, gradients are allowed


# --- mistakes of the earlier code --------------------------------------------------------------------


def low_rank(rows: int, width: int, rank: int, mean: float, seed: int = 0) -> torch.Tensor:
    """Features `[rows, width]` around a mean outside the span of their variation."""
    q, _ = torch.linalg.qr(torch.randn(width, rank + 1, generator=torch.Generator().manual_seed(seed)))
    x = torch.randn(rows, rank, generator=torch.Generator().manual_seed(seed + 1)) @ q[:, :rank].T
    return x - x.mean(0) + mean * q[:, rank]


def test_a_centred_covariance_leaves_the_mean_unprotected():
    layer = nn.Linear(12, 12)
    x = low_rank(40, 12, 5, mean=3.0)
    change = torch.randn(12, 12, generator=torch.Generator().manual_seed(9)).numpy()
    mean = x.mean(0).numpy()
    ours = null_space(collect(layer, x).mean())
    centred = null_space(torch.cov(x.T.double(), correction=0))
    assert np.linalg.norm(change @ centred @ mean) > 0.5 * np.linalg.norm(change @ mean)
    assert np.linalg.norm(change @ ours @ mean) < 1e-4 * np.linalg.norm(change @ mean)


def test_token_averages_leave_the_tokens_unprotected():
    layer = nn.Linear(32, 8)
    x = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(0))  # 24 rows in 32 dimensions
    moment = collect(layer, x)
    assert moment.rows == 24
    ours, averaged = null_space(moment.mean()), null_space(moment_of(x.mean(1)).mean())
    for token in x.reshape(-1, 32).numpy():
        assert np.linalg.norm(ours @ token) < 1e-4 * np.linalg.norm(token)
        assert np.linalg.norm(averaged @ token) > 0.3 * np.linalg.norm(token)


def test_moments_of_outputs_span_the_wrong_space():
    torch.manual_seed(0)
    layer = nn.Linear(12, 12, bias=False)
    x = low_rank(40, 12, 5, mean=1.0)
    with torch.no_grad():
        y = layer(x)
    moment = collect(layer, x)
    torch.testing.assert_close(moment.total, x.double().T @ x.double(), rtol=1e-5, atol=1e-5)
    ours, wrong = null_space(moment.mean()), null_space(moment_of(y).mean())
    assert np.linalg.norm(x.numpy() @ ours) < 1e-4 * np.linalg.norm(x)
    assert np.linalg.norm(x.numpy() @ wrong) > 0.3 * np.linalg.norm(x)


def test_moments_have_the_width_of_the_inputs(unet):
    torch.manual_seed(0)
    wide = tiny.unet(cross_attention_dim=24)
    sites = find_sites(wide)
    with collecting(sites) as moments:
        for name, module in sites.items():
            assert moments[name].total.shape == (module.in_features, module.in_features)
    assert {m.in_features for m in sites.values()} == {24, 32}


def test_only_features_of_the_prompt_are_masked():
    """Pictures may have as many tokens as prompts, so that the shape must not decide about the mask."""
    layers = {"prompt": nn.Linear(3, 2), "picture": nn.Linear(3, 2)}
    x, read = torch.randn(2, 4, 3), torch.tensor([[True, True, False, False], [True, False, False, False]])
    with torch.no_grad(), collecting(layers, lambda: read, ["prompt"]) as moments:
        for layer in layers.values():
            layer(x)
    assert moments["picture"].rows == 8
    assert moments["prompt"].rows == 3
    torch.testing.assert_close(moments["prompt"].mean(), x[read].double().T @ x[read].double() / 3, check_dtype=False)
