"""Adapters preserve protected outputs in real training, and act the same when trained, saved, loaded or exported."""

import json
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from saved_adapters import CHANGED, KEPT, info_of, saved

from nullbooth.adapters.export import export_lora
from nullbooth.adapters.file import read_adapter
from nullbooth.adapters.loaded import load_adapter
from nullbooth.learning.adapter import Adapter
from nullbooth.models.calls import denoiser_inputs
from nullbooth.models.sites import find_sites
from nullbooth.models.timesteps import nearest_index
from nullbooth.statistics.moments import collecting
from nullbooth.statistics.projector import Projector, decompose, projector
from nullbooth.statistics.trajectories import record

SCOPES = ("timestep", "pooled", "shared")
RANKS = (4, "full")


def unlike(given: tiny.Protected) -> tiny.Protected:
    """Return other latents and prompts at the same timesteps."""
    return tiny.protected_inputs(seed=77)


@contextmanager
def watching(denoiser, names: list[str], seen: dict[str, tuple]):
    """Record inputs and outputs of modules."""
    handles = [
        denoiser.get_submodule(name).register_forward_hook(lambda _m, x, y, name=name: seen.update({name: (x[0], y)}))
        for name in names
    ]
    yield
    for handle in handles:
        handle.remove()


# --- effects of training ----------------------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scope", ["timestep", "pooled"])
def test_training_keeps_protected_outputs_at_every_cached_timestep(unet, protected, scope, rank):
    adapter = tiny.adapter(unet, protected, scope, rank)
    kept, others = tiny.predictions(unet, protected), tiny.predictions(unet, unlike(protected))
    tiny.fit(unet, adapter)
    with adapter.attached(unet):
        for step, base in zip(tiny.predictions(unet, protected), kept, strict=True):
            assert tiny.change(step, base) < KEPT
        for step, base in zip(tiny.predictions(unet, unlike(protected)), others, strict=True):
            assert tiny.change(step, base) > CHANGED


@pytest.mark.parametrize("rank", RANKS)
def test_shared_weights_leak_into_other_timesteps(unet, protected, rank):
    """Mistake 5: one set of weights, with each update projected for one timestep only."""
    adapter = tiny.adapter(unet, protected, "shared", rank)
    kept = tiny.predictions(unet, protected)
    tiny.fit(unet, adapter)
    with adapter.attached(unet):
        leaks = [tiny.change(a, b) for a, b in zip(tiny.predictions(unet, protected), kept, strict=True)]
    assert max(leaks) > CHANGED


@pytest.mark.parametrize("rank", RANKS)
def test_shared_updates_are_projected_by_their_own_step(unet, protected, rank):
    adapter = tiny.randomise(tiny.adapter(unet, protected, "shared", rank))
    stacks = tiny.projectors(unet, protected)
    before = adapter.snapshot()
    moves = [torch.randn_like(x) for x in before]
    with torch.no_grad():
        for site, move in zip(adapter.site_adapters, moves, strict=True):
            site.projected.add_(move)
    adapter.project_updates(before, torch.tensor(1))
    for name, old, move, site in zip(adapter.names, before, moves, adapter.site_adapters, strict=True):
        p = stacks[name][1 if len(stacks[name]) > 1 else 0].dense()
        np.testing.assert_allclose((site.projected - old).detach().numpy(), move.numpy() @ p, atol=1e-5)


def test_single_prompts_of_a_protected_batch_are_protected(unet, protected):
    adapter = tiny.randomise(tiny.adapter(unet, protected, "timestep"))
    for i in range(len(protected.prompts)):
        one = tiny.Protected(protected.latents[:, i : i + 1], protected.timesteps, protected.prompts[i : i + 1])
        base = tiny.predictions(unet, one)
        with adapter.attached(unet):
            assert tiny.change(tiny.predictions(unet, one), base) < KEPT


def test_soft_rule_leaks_less_the_smaller_rho(unet, protected):
    base, leaks = tiny.predictions(unet, protected), []
    for rho in (1e-1, 1e-3, 1e-5):
        stacks = tiny.projectors(unet, protected, rule="soft", value=rho)
        adapter = tiny.randomise(Adapter(find_sites(unet), stacks, protected.timesteps, "timestep", 4))
        with adapter.attached(unet):
            leaks.append(tiny.change(tiny.predictions(unet, protected), base))
    assert leaks[0] > 5 * leaks[1] > 25 * leaks[2] > 0


def test_an_untrained_adapter_has_no_effect(unet, protected):
    for scope in SCOPES:
        for rank in RANKS:
            adapter, given = tiny.adapter(unet, protected, scope, rank), unlike(protected)
            base = tiny.predictions(unet, given)
            with adapter.attached(unet):
                assert tiny.predictions(unet, given).equal(base)


def test_a_mixed_batch_uses_each_sample_s_own_timestep(unet, protected):
    for scope in SCOPES:
        for rank in RANKS:
            adapter = tiny.randomise(tiny.adapter(unet, protected, scope, rank))
            given = unlike(protected)
            x, t = given.latents[:, 0], torch.tensor([101.0, 901.0, 101.0])
            prompts = given.prompts[:1].expand(3, -1, -1)
            with adapter.attached(unet):
                mixed = tiny.predict(unet, x, t, prompts)
                single = [tiny.predict(unet, x[i : i + 1], t[i], prompts[:1]) for i in range(3)]
                other = tiny.predict(unet, x[:1], t[1], prompts[:1])
            torch.testing.assert_close(mixed, torch.cat(single), rtol=1e-4, atol=1e-5)
            assert tiny.change(other, mixed[:1]) > 1e-3


def test_gradients_in_a_mixed_batch_reach_each_timestep_alone(unet, protected):
    """The gradient of a batch of mixed timesteps is the mean of the gradients of its samples."""
    adapter = tiny.randomise(tiny.adapter(unet, protected, "timestep"))
    given, t = unlike(protected), torch.tensor([901.0, 501.0, 101.0])
    prompts = given.prompts[:1].expand(3, -1, -1)

    def gradients(rows: slice) -> list[torch.Tensor]:
        adapter.zero_grad()
        with adapter.attached(unet):
            unet(given.latents[rows, 0], t[rows], encoder_hidden_states=prompts[rows]).sample.square().sum().backward()
        return [p.grad.clone() for p in adapter.parameters()]

    together, apart = gradients(slice(0, 3)), [gradients(slice(i, i + 1)) for i in range(3)]
    for whole, *parts in zip(together, *apart, strict=True):
        torch.testing.assert_close(whole, sum(parts), rtol=1e-3, atol=1e-4)


def test_the_change_of_weights_follows_the_formula(unet, protected):
    """W + scale * B (A P[s]) and W + D P[s], at every site, with the site's own projectors."""
    stacks, given = tiny.projectors(unet, protected), unlike(protected)
    for rank, alpha, scale in ((4, None, 1.0), (4, 2.0, 0.5), ("full", None, 1.0)):
        adapter = tiny.randomise(tiny.adapter(unet, protected, "timestep", rank, alpha=alpha))
        for s, t in enumerate(protected.timesteps):
            seen: dict[str, tuple] = {}
            with adapter.attached(unet), watching(unet, adapter.names, seen):
                tiny.predict(unet, given.latents[s], t, given.prompts)
            for name, site in zip(adapter.names, adapter.site_adapters, strict=True):
                p = torch.from_numpy(stacks[name][s if len(stacks[name]) > 1 else 0].dense())
                delta = site.delta @ p if rank == "full" else scale * site.up @ (site.down @ p)
                x, y = seen[name]
                expected = x @ delta.mT
                torch.testing.assert_close(y - unet.get_submodule(name)(x), expected, rtol=1e-3, atol=1e-4)
                assert expected.norm() > 0.1


def test_training_leaves_base_weights_and_biases_unchanged(unet, protected):
    before = {name: p.detach().clone() for name, p in unet.named_parameters()}
    adapter = tiny.adapter(unet, protected, "pooled", "full")
    tiny.fit(unet, adapter, steps=3)
    for name, p in unet.named_parameters():
        assert p.equal(before[name]), name
        assert p.grad is None, name
    learned = {p.shape for p in adapter.parameters()}
    assert learned == {(tiny.WIDTH, tiny.WIDTH)}  # no vectors, and so no bias, are trained
    assert sum(p.numel() for p in adapter.parameters()) == len(find_sites(unet)) * tiny.WIDTH**2


def test_a_detached_adapter_leaves_no_hooks_or_effects(unet, protected):
    given = unlike(protected)
    base = tiny.predictions(unet, given)
    adapter = tiny.randomise(tiny.adapter(unet, protected, "pooled"))
    with pytest.raises(KeyboardInterrupt), adapter.attached(unet):
        assert tiny.change(tiny.predictions(unet, given), base) > CHANGED
        raise KeyboardInterrupt
    assert tiny.predictions(unet, given).equal(base)


# --- mistakes of the earlier code, and of simpler ideas ------------------------------------------------


def as_projector(p: np.ndarray) -> Projector:
    """Any symmetric matrix instead of a projector."""
    gain, basis = np.linalg.eigh(p.astype(np.float64))
    return Projector(basis.astype(np.float32), gain.astype(np.float32), False, float(gain.sum()))


def test_interpolated_projectors_are_no_projectors_and_leak(unet, protected):
    """Mistake 8: (P1 + P2) / 2 between two cached timesteps. NullBooth takes the nearest one."""
    stacks = tiny.projectors(unet, protected)
    mixed = {
        name: ps if len(ps) == 1 else [as_projector((ps[s].dense() + ps[s - 1].dense()) / 2) for s in range(3)]
        for name, ps in stacks.items()
    }
    worst = 0.0
    for name, ps in mixed.items():
        if len(ps) > 1:
            half, whole = ps[1].dense(), stacks[name][1].dense()
            worst = max(worst, np.abs(half @ half - half).max())
            assert np.abs(whole @ whole - whole).max() < 1e-5
    assert worst > 0.1
    base, changes = tiny.predictions(unet, protected), {}
    for kind, given in (("ours", stacks), ("mixed", mixed)):
        adapter = tiny.randomise(Adapter(find_sites(unet), given, protected.timesteps, "timestep", 4))
        with adapter.attached(unet):
            changes[kind] = tiny.change(tiny.predictions(unet, protected), base)
    assert changes["ours"] < KEPT
    assert changes["mixed"] > CHANGED


def test_projecting_gradients_is_not_enough(unet, protected):
    """Adam rescales each entry, so that the step of a projected gradient leaves the null space; SGD does not."""
    stacks = tiny.projectors(unet, protected, pooled=True)
    free = {name: [as_projector(np.eye(tiny.WIDTH))] for name in stacks}
    base, changes = tiny.predictions(unet, protected), {}
    for optimizer, lr in ((torch.optim.SGD, 3.0), (torch.optim.Adam, 0.05)):
        torch.manual_seed(3)
        adapter = Adapter(find_sites(unet), free, protected.timesteps, "pooled", "full")
        for name, site in zip(adapter.names, adapter.site_adapters, strict=True):
            p = torch.from_numpy(stacks[name][0].dense())
            site.delta.register_hook(lambda grad, p=p: grad @ p)
        others = tiny.predictions(unet, unlike(protected))
        tiny.fit(unet, adapter, lr=lr, optimizer=optimizer)
        with adapter.attached(unet):
            changes[optimizer] = tiny.change(tiny.predictions(unet, protected), base)
            assert tiny.change(tiny.predictions(unet, unlike(protected)), others) > CHANGED
    assert changes[torch.optim.SGD] < KEPT
    assert changes[torch.optim.Adam] > CHANGED


def test_training_other_weights_too_voids_the_guarantee(unet, protected):
    """Mistake 10: with the rest of the denoiser free, the inputs of protected layers drift."""
    adapter = tiny.randomise(tiny.adapter(unet, protected, "timestep"))
    base = tiny.predictions(unet, protected)
    with torch.no_grad():
        for name, p in unet.named_parameters():
            if ".attn1." in name:
                p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    without = tiny.predictions(unet, protected)
    with adapter.attached(unet):
        drifted = tiny.predictions(unet, protected)
    assert tiny.change(without, base) > 1e-4
    assert tiny.change(drifted, without) > 100 * KEPT


# --- saving and loading ------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_loaded_adapter_acts_like_the_attached_one(pipeline, protected, tmp_path, scope, rank):
    unet, given = pipeline.unet, unlike(protected)
    adapter = tiny.randomise(tiny.adapter(unet, protected, scope, rank, alpha=None if rank == "full" else 3.0))
    base = tiny.predictions(unet, given)
    with adapter.attached(unet):
        expected = tiny.predictions(unet, given)
    load_adapter(pipeline, saved(adapter, tmp_path))
    torch.testing.assert_close(tiny.predictions(unet, given), expected, rtol=1e-4, atol=1e-5)
    assert tiny.change(expected, base) > CHANGED


@pytest.mark.parametrize("scope", ["timestep", "pooled"])
def test_a_tuned_pipeline_draws_protected_prompts_as_before(pipeline, tmp_path, scope):
    """Record, collect, decompose, train, save, load, sample: only unprotected prompts change."""
    unet, prompts = pipeline.unet, ["a red star"]
    seen = record(pipeline, prompts, steps=3, guidance=3.0, seed=0, batch=1)
    sites = find_sites(unet)
    moments = []
    for latents, t in zip(seen.latents, seen.timesteps, strict=True):
        with torch.no_grad(), collecting(sites) as part:
            unet(**denoiser_inputs(unet, latents, t, seen.conditions, slice(None)))
        moments.append(part)

    def stack(name: str) -> list[Projector]:
        cs = [m[name].mean().numpy() for m in moments]
        cs = [sum(cs) / len(cs)] if scope == "pooled" else cs
        return [projector(*decompose(c, name), "energy", 1e-9, name) for c in cs]

    torch.manual_seed(3)
    adapter = Adapter(sites, {name: stack(name) for name in sites}, seen.timesteps, scope, 4)
    tiny.fit(unet, adapter)

    def draw(prompt: str) -> torch.Tensor:
        noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
        options = dict(num_inference_steps=3, guidance_scale=3.0, output_type="latent")
        return pipeline(prompt, latents=seen.latents[:1, 0] if prompt in prompts else noise, **options).images

    kept, other = draw("a red star"), draw("a photo of a blue ring")
    loaded = load_adapter(pipeline, saved(adapter, tmp_path))
    assert tiny.change(draw("a red star"), kept) < 50 * KEPT  # sampling amplifies rounding
    assert tiny.change(draw("a photo of a blue ring"), other) > CHANGED
    loaded.unload()
    assert draw("a photo of a blue ring").equal(other)


# --- weights in half precision ---------------------------------------------------------------------------


HALF = 2.0**-8  # relative rounding of bfloat16


def halved(unet):
    return unet.to(torch.bfloat16)


def half_predictions(unet, given) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return tiny.predictions(unet, given).float()


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scope", ["timestep", "pooled"])
def test_training_on_half_precision_weights_keeps_protected_outputs(unet, protected, tmp_path, scope, rank):
    """All passes of statistics, training and prediction are bfloat16 with bfloat16 weights. The remaining change is
    rounding, which depends on the processor (AVX-512 BF16 or not): at most 4.04 of 2^-8 so far."""
    halved(unet)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(3)
        stacks = tiny.projectors(unet, protected, scope == "pooled", "energy", 1e-5)
        adapter = Adapter(find_sites(unet), stacks, protected.timesteps, scope, rank)
        kept, others = half_predictions(unet, protected), half_predictions(unet, unlike(protected))
        tiny.fit(unet, adapter)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    with adapter.attached(unet):
        assert tiny.change(half_predictions(unet, protected), kept) < 8 * HALF
        assert tiny.change(half_predictions(unet, unlike(protected)), others) > 20 * HALF


@pytest.mark.parametrize("scope", SCOPES)
def test_steps_of_half_precision_weights_are_rounded_once_and_unloading_is_exact(pipeline, protected, tmp_path, scope):
    path = saved(tiny.randomise(tiny.adapter(pipeline.unet, protected, scope)), tmp_path)
    unet = halved(pipeline.unet)
    before = {name: p.detach().clone() for name, p in unet.named_parameters()}
    loaded = load_adapter(pipeline, path, 0.5)
    for step in (0, 2, 1, 0):
        loaded.set_step(step)
        for name, module in find_sites(unet).items():
            expected = before[f"{name}.weight"].float() + 0.5 * loaded.change(name, step)
            assert module.weight.dtype == torch.bfloat16
            assert module.weight.equal(expected.bfloat16()), f"{name} at {step}"
    loaded.unload()
    assert all(p.equal(before[name]) for name, p in unet.named_parameters())


@pytest.mark.parametrize("rank", RANKS)
def test_saved_description_and_tensors_are_read_back(unet, protected, tmp_path, rank):
    adapter = tiny.randomise(tiny.adapter(unet, protected, "timestep", rank))
    info = info_of(adapter)
    adapter.save(tmp_path / "a.safetensors", info)
    tensors, found = read_adapter(str(tmp_path / "a.safetensors"))
    assert found == info
    assert set(tensors) == set(adapter.tensors())
    assert all(tensors[key].equal(value) for key, value in adapter.tensors().items())


def test_saving_leaves_the_adapter_trainable(unet, protected, tmp_path):
    adapter = tiny.randomise(tiny.adapter(unet, protected, "pooled"))
    before = [p.detach().clone() for p in adapter.parameters()]
    path = saved(adapter, tmp_path)
    content = path.read_bytes()
    assert all(a.equal(b) for a, b in zip(adapter.parameters(), before, strict=True))
    tiny.fit(unet, adapter, steps=1)
    assert not any(a.equal(b) for a, b in zip(adapter.parameters(), before, strict=True))
    assert path.read_bytes() == content


@pytest.mark.parametrize("scope", ["timestep", "pooled"])
def test_saved_weights_are_projected_already(unet, protected, tmp_path, scope):
    """The `down` of the file maps protected inputs to zero, so that readers need no projectors."""
    adapter = tiny.randomise(tiny.adapter(unet, protected, scope))
    tensors, _ = read_adapter(saved(adapter, tmp_path))
    moments = tiny.moments(unet, protected, pooled=scope == "pooled")
    for name in adapter.names:
        down = tensors[f"{name}.down"].double()
        assert len(down) == len(moments[name])
        for rows, moment in zip(down, moments[name], strict=True):
            leak = torch.einsum("ri,ij,rj->r", rows, moment.mean(), rows).clamp(min=0).sqrt()
            assert leak.max() < 1e-3 * rows.norm() * moment.mean().trace().sqrt()


def weight_changes(pipeline, path, scale: float, timestep: float) -> dict[str, torch.Tensor]:
    """Return the changes of the sites' weights by a loaded adapter at a timestep."""
    sites = find_sites(pipeline.unet)
    before = {name: module.weight.clone() for name, module in sites.items()}
    loaded = load_adapter(pipeline, path, scale)
    given = tiny.protected_inputs()
    tiny.predict(pipeline.unet, given.latents[0], timestep, given.prompts)
    changes = {name: module.weight - before[name] for name, module in sites.items()}
    loaded.unload()
    return changes


@pytest.mark.parametrize("scope", SCOPES)
def test_the_change_of_weights_is_linear_in_the_scale(pipeline, protected, tmp_path, scope):
    path = saved(tiny.randomise(tiny.adapter(pipeline.unet, protected, scope)), tmp_path)
    one, half, minus, zero = (weight_changes(pipeline, path, scale, 501.0) for scale in (1.0, 0.5, -2.0, 0.0))
    for name, delta in one.items():
        assert delta.norm() > 0.1
        torch.testing.assert_close(half[name], delta / 2, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(minus[name], -2 * delta, rtol=1e-3, atol=1e-6)
        assert zero[name].count_nonzero() == 0


def test_scale_zero_draws_like_the_base_model(pipeline, protected, tmp_path):
    given = unlike(protected)
    base = tiny.predictions(pipeline.unet, given)
    load_adapter(pipeline, saved(tiny.randomise(tiny.adapter(pipeline.unet, protected, "timestep")), tmp_path), 0.0)
    assert tiny.predictions(pipeline.unet, given).equal(base)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scope", ["timestep", "pooled"])
def test_loading_touches_weights_of_the_sites_only_and_unloading_restores_all(
    pipeline, protected, tmp_path, scope, rank
):
    unet, given = pipeline.unet, unlike(protected)
    before = {name: p.detach().clone() for name, p in unet.named_parameters()}
    base = tiny.predictions(unet, given)
    loaded = load_adapter(pipeline, saved(tiny.randomise(tiny.adapter(unet, protected, scope, rank)), tmp_path))
    tiny.predictions(unet, given)
    changed = {name for name, p in unet.named_parameters() if not p.equal(before[name])}
    assert changed == {f"{name}.weight" for name in find_sites(unet)}  # no bias changes
    loaded.unload()
    assert all(p.equal(before[name]) for name, p in unet.named_parameters())
    assert tiny.predictions(unet, given).equal(base)
    assert not unet._forward_pre_hooks


def test_returning_to_a_timestep_restores_its_weights(pipeline, protected, tmp_path):
    unet, given = pipeline.unet, unlike(protected)
    load_adapter(pipeline, saved(tiny.randomise(tiny.adapter(unet, protected, "timestep")), tmp_path))
    first = [tiny.predict(unet, given.latents[0], t, given.prompts) for t in given.timesteps]
    again = [tiny.predict(unet, given.latents[0], t, given.prompts) for t in reversed(given.timesteps)]
    assert all(a.equal(b) for a, b in zip(first, reversed(again), strict=True))


def test_low_precision_copies_are_not_reused_at_the_next_timestep(pipeline, protected, tmp_path):
    """Autocast caches cast weights while its context lasts."""
    unet, given = pipeline.unet, unlike(protected)
    load_adapter(pipeline, saved(tiny.randomise(tiny.adapter(unet, protected, "timestep")), tmp_path))

    def predict(t: float) -> torch.Tensor:
        return tiny.predict(unet, given.latents[0], t, given.prompts).float()

    apart = []
    for t in given.timesteps:
        with torch.autocast("cpu", torch.bfloat16):
            apart.append(predict(t))
    with torch.autocast("cpu", torch.bfloat16):
        together = [predict(t) for t in given.timesteps]
    for a, b, exact in zip(together, apart, (predict(t) for t in given.timesteps), strict=True):
        assert a.equal(b)
        assert 0 < tiny.change(a, exact) < 0.05


def test_other_timesteps_use_the_nearest_cached_one(pipeline, protected, tmp_path):
    """The cached timesteps are 901, 501 and 101; there are no ties."""
    path = saved(tiny.randomise(tiny.adapter(pipeline.unet, protected, "timestep")), tmp_path)
    cached = {t: weight_changes(pipeline, path, 1.0, t) for t in protected.timesteps}
    for asked, nearest in ((999.0, 901.0), (702.0, 901.0), (700.0, 501.0), (302.5, 501.0), (300, 101.0), (0, 101.0)):
        found = weight_changes(pipeline, path, 1.0, asked)
        assert all(found[name].equal(cached[nearest][name]) for name in found), asked
    moving = [name for name in cached[901.0] if not cached[901.0][name].equal(cached[501.0][name])]
    assert len(moving) == 8  # to_q and to_out.0 of four blocks


def test_any_number_of_steps_can_be_sampled(pipeline, protected, tmp_path):
    load_adapter(pipeline, saved(tiny.randomise(tiny.adapter(pipeline.unet, protected, "timestep")), tmp_path))
    images = pipeline("a red star", num_inference_steps=5, output_type="pt").images
    assert images.shape == (1, 3, 16, 16)
    assert images.isfinite().all()


def test_nearest_index_finds_the_nearest_timestep():
    cached = torch.tensor([900.5, 500.25, 3.0], dtype=torch.float64)
    assert nearest_index(cached, torch.tensor([999, 701, 700, 3, 0])).tolist() == [0, 0, 1, 2, 2]
    assert nearest_index(cached, torch.tensor(500)).tolist() == [1]


def test_a_loaded_adapter_refuses_a_batch_of_several_timesteps(pipeline, protected, tmp_path):
    given = unlike(protected)
    load_adapter(pipeline, saved(tiny.randomise(tiny.adapter(pipeline.unet, protected, "timestep")), tmp_path))
    with pytest.raises(ValueError, match="one timestep per call"):
        tiny.predict(pipeline.unet, given.latents[0], torch.tensor([901, 101]), given.prompts)


@pytest.mark.parametrize(
    ("guided", "guidance", "warned"), [(False, 3.0, 1), (False, 1.0, 0), (True, 3.0, 0), (None, 3.0, 0)]
)
def test_guidance_causes_a_warning_if_statistics_had_none(pipeline, protected, tmp_path, guided, guidance, warned):
    adapter = tiny.randomise(tiny.adapter(pipeline.unet, protected, "timestep"))
    path = tmp_path / "adapter.safetensors"
    adapter.save(path, info_of(adapter, guided=guided))
    load_adapter(pipeline, path)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(2):
            pipeline("a star", num_inference_steps=2, guidance_scale=guidance, output_type="latent")
    said = [str(w.message) for w in found if "sampled without guidance" in str(w.message)]
    assert len(said) == warned, "once per adapter, not once per pass"


@pytest.mark.parametrize(
    "other",
    [{"cross_attention_dim": 24}, {"block_out_channels": (16, 48)}, {"down_block_types": ("DownBlock2D",) * 2}],
)
def test_an_adapter_of_another_model_is_refused(pipeline, protected, tmp_path, other):
    path = saved(tiny.randomise(tiny.adapter(pipeline.unet, protected, "timestep")), tmp_path)
    pipeline.unet = tiny.unet(**other)
    before = {name: p.detach().clone() for name, p in pipeline.unet.named_parameters()}
    with pytest.raises(ValueError, match=r"attn2\.to_.*does not have.*made for UNet2DConditionModel abc"):
        load_adapter(pipeline, path)
    assert all(p.equal(before[name]) for name, p in pipeline.unet.named_parameters())
    assert not pipeline.unet._forward_pre_hooks


def test_a_file_that_is_no_adapter_is_refused(pipeline, tmp_path):
    path = tmp_path / "lora.safetensors"
    for metadata in (None, {"format": "pt"}, {"format": "nullbooth-adapter-0", "info": json.dumps({})}):
        save_file({"unet.a.lora_A.weight": torch.zeros(2, 2)}, path, metadata)
        for reader in (read_adapter, lambda p: load_adapter(pipeline, p), lambda p: export_lora(p, tmp_path / "out")):
            with pytest.raises(ValueError, match=r"lora\.safetensors: not a NullBooth adapter"):
                reader(path)
    assert not (tmp_path / "out").exists()


def test_a_wrong_number_of_projectors_is_refused(unet, protected):
    stacks = {name: ps[:2] for name, ps in tiny.projectors(unet, protected).items()}
    with pytest.raises(ValueError, match=r"attn2\.to_.*2 projectors for 3 timesteps"):
        Adapter(find_sites(unet), stacks, protected.timesteps)


def test_an_unknown_scope_is_refused(unet, protected):
    with pytest.raises(ValueError, match=r"'pool'.*timestep, pooled, shared"):
        tiny.adapter(unet, protected, "pool")


# --- plain LoRA --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["pooled", "shared"])
def test_an_exported_lora_draws_the_same_pictures_in_plain_diffusers(pipeline, protected, tmp_path, scope):
    adapter = tiny.randomise(tiny.adapter(pipeline.unet, protected, scope, 4, alpha=2.0))
    path, lora = saved(adapter, tmp_path), tmp_path / "pytorch_lora_weights.safetensors"
    export_lora(path, lora)

    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipeline("a red star", num_inference_steps=3, generator=generator, output_type="pt").images

    base = draw()
    loaded = load_adapter(pipeline, path)
    ours = draw()
    loaded.unload()
    pipeline.load_lora_weights(tmp_path, weight_name=lora.name)
    torch.testing.assert_close(draw(), ours, rtol=0, atol=1e-4)
    assert (ours - base).abs().max() > 1e-2
    assert len(load_file(lora)) == 2 * len(find_sites(tiny.unet()))


def test_export_refuses_adapters_that_no_lora_equals(unet, protected, tmp_path):
    for scope, rank, reason in (
        ("timestep", 4, "each timestep"),
        ("timestep", "full", "full-rank"),
        ("pooled", "full", "full-rank"),
    ):
        path = saved(tiny.randomise(tiny.adapter(unet, protected, scope, rank)), tmp_path)
        with pytest.raises(ValueError, match=reason):
            export_lora(path, tmp_path / "lora.safetensors")
        assert not (tmp_path / "lora.safetensors").exists()
