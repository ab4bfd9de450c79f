"""Training: exact resumption, targets, loss weights, timesteps, captions, and the loss table."""

import csv
from dataclasses import replace

import damage
import numpy as np
import pytest
import tiny
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file

from nullbooth.learning.objective import draw_timesteps, is_flow, min_snr_weights, noised
from nullbooth.learning.training import TrainData, TrainSettings, train
from nullbooth.models.timesteps import timestep_argument

SETTINGS = TrainSettings(steps=6, batch=4, learning_rate=0.02, checkpoint_every=2)
BETAS = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def scheduler(prediction_type: str = "epsilon", **changes) -> DDPMScheduler:
    return DDPMScheduler(prediction_type=prediction_type, **(BETAS | changes))


def alphas() -> np.ndarray:
    """Share of signal `[1000]` as defined in the latent diffusion paper."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def data(n: int = 5) -> TrainData:
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randn(n, 4, tiny.WIDTH, generator=generator)
    empty = torch.randn(1, 4, tiny.WIDTH, generator=generator)
    latents = torch.randn(n, 4, 4, 4, generator=generator)
    return TrainData(latents, {"encoder_hidden_states": prompts}, {"encoder_hidden_states": empty})


class Calls:
    """Record the arguments of a denoiser's calls."""

    def __init__(self, denoiser):
        self.timesteps: list[torch.Tensor] = []
        self.prompts: list[torch.Tensor] = []
        denoiser.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _module, args, kwargs) -> None:
        self.timesteps.append(timestep_argument(args, kwargs).clone())
        self.prompts.append(kwargs["encoder_hidden_states"].clone())


class Killed(BaseException):
    pass


def learn(
    folder, settings=SETTINGS, scope="timestep", rank=4, die_after=None, unet=None, noise=None, run="a", **options
):
    """Train a new adapter on a new denoiser, killed after step `die_after` if given. Return its weights."""
    unet = unet or tiny.unet()
    adapter = tiny.adapter(unet, tiny.protected_inputs(), scope, rank)

    def validate(step: int) -> torch.Tensor:
        if step == die_after:
            raise Killed
        return torch.zeros(1, 3, 4, 4)

    options |= dict(validate=validate, validate_every=1) if die_after else {}
    folder.mkdir(exist_ok=True)
    options = {"log": lambda line: None} | options
    try:
        train(unet, adapter, [data()], noise or scheduler(), settings, folder, run=run, **options)
    except Killed:
        return None
    return {name: value.clone() for name, value in adapter.state_dict().items()}


def losses(folder) -> list[tuple[int, float]]:
    with open(folder / "loss.csv", newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    assert all(a[key].equal(b[key]) for key in a)


# --- resuming ----------------------------------------------------------------------------------------


BUSY = replace(SETTINGS, schedule="cosine", warmup=2, weight_decay=0.01, caption_dropout=0.3)


@pytest.mark.parametrize(
    ("scope", "settings"),
    [("timestep", SETTINGS), ("pooled", replace(BUSY, accumulation=2)), ("shared", BUSY)],
)
def test_a_resumed_run_ends_in_the_same_weights_bit_by_bit(tmp_path, scope, settings):
    whole = learn(tmp_path / "whole", settings, scope)
    assert learn(tmp_path / "cut", settings, scope, die_after=5) is None
    lines = []
    resumed = learn(tmp_path / "cut", settings, scope, log=lines.append)
    assert lines[0] == "resumed at step 4 of 6"
    assert_same(resumed, whole)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_training_depends_on_its_seed_only(tmp_path):
    first = learn(tmp_path / "a")
    torch.rand(17)  # the global generator has no effect
    assert_same(learn(tmp_path / "b"), first)
    other = learn(tmp_path / "c", replace(SETTINGS, seed=1))
    assert not any(other[key].equal(first[key]) for key in first)


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
    whole = learn(tmp_path / "whole")
    learn(tmp_path / "cut", die_after=1)
    assert_same(learn(tmp_path / "cut"), whole)
    assert [step for step, _ in losses(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_of_another_run_is_ignored(tmp_path):
    expected = learn(tmp_path / "clean", run="b")
    learn(tmp_path / "used", replace(SETTINGS, learning_rate=0.5), die_after=5, run="a")
    lines = []
    found = learn(tmp_path / "used", run="b", log=lines.append)
    assert_same(found, expected)
    assert not any("resumed" in line for line in lines)
    assert losses(tmp_path / "used") == losses(tmp_path / "clean")


def test_a_run_resumes_even_if_another_one_got_further(tmp_path):
    expected = learn(tmp_path / "clean", run="b")
    learn(tmp_path / "used", die_after=5, run="a")  # leaves a checkpoint of step 4
    learn(tmp_path / "used", die_after=3, run="b")  # leaves a checkpoint of step 2
    lines = []
    found = learn(tmp_path / "used", run="b", log=lines.append)
    assert lines[0] == "resumed at step 2 of 6"
    assert_same(found, expected)


def test_resuming_does_not_need_the_loss_table(tmp_path):
    """loss.csv is an output of the rule and written at the end. Losses so far are in the checkpoint."""
    whole = learn(tmp_path / "whole")
    learn(tmp_path / "cut", die_after=5)
    assert not (tmp_path / "cut" / "loss.csv").exists()
    lines = []
    assert_same(learn(tmp_path / "cut", log=lines.append), whole)
    assert lines[0] == "resumed at step 4 of 6"
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_only_the_last_checkpoint_stays_and_none_is_incomplete(tmp_path):
    learn(tmp_path / "run", die_after=5)
    assert [p.name for p in (tmp_path / "run" / "checkpoints" / "a").iterdir()] == ["000004.safetensors"]


def half_a_file(tensors, path, metadata) -> None:
    """Stand-in for `save_file` that writes half of the second checkpoint and ends the process."""
    save_file(tensors, path, metadata)
    if "000004" in path.name:
        damage.truncate(path)
        damage.die()


def test_a_kill_while_a_checkpoint_is_written_resumes_from_the_one_before(tmp_path, monkeypatch):
    whole = learn(tmp_path / "whole")

    def work() -> None:
        monkeypatch.setattr("nullbooth.storage.tensorfile.save_file", half_a_file)
        learn(tmp_path / "cut")

    assert damage.killed(work)
    left = sorted(p.name[:14] for p in (tmp_path / "cut" / "checkpoints" / "a").iterdir())
    assert left == ["000002.safeten", "000004.partial"]
    lines = []
    assert_same(learn(tmp_path / "cut", log=lines.append), whole)
    assert lines[0] == "resumed at step 2 of 6"
    assert [p.name for p in (tmp_path / "cut" / "checkpoints" / "a").iterdir()] == ["000004.safetensors"]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.parametrize("harm", [damage.truncate, damage.flip_bit])
def test_a_damaged_checkpoint_is_refused_with_its_name(tmp_path, harm):
    whole = learn(tmp_path / "whole")
    learn(tmp_path / "cut", die_after=5)
    harm(tmp_path / "cut" / "checkpoints" / "a" / "000004.safetensors")
    with pytest.raises(ValueError, match=r"checkpoints/a/000004\.safetensors: broken.*delete it, and training starts"):
        learn(tmp_path / "cut")
    (tmp_path / "cut" / "checkpoints" / "a" / "000004.safetensors").unlink()
    assert_same(learn(tmp_path / "cut"), whole)


def test_another_file_with_the_name_of_a_checkpoint_is_refused(tmp_path):
    learn(tmp_path / "cut", die_after=3)
    save_file({"done": torch.zeros(2, 2)}, tmp_path / "cut" / "checkpoints" / "a" / "000004.safetensors")
    with pytest.raises(ValueError, match=r"000004\.safetensors: not a checkpoint"):
        learn(tmp_path / "cut")


# --- objective ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_targets_follow_their_formulas(prediction_type):
    x, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 500, 999])
    a = torch.from_numpy(alphas()[t.numpy()]).float().view(3, 1, 1, 1)
    noisy, target = noised(scheduler(prediction_type), x, noise, t)
    torch.testing.assert_close(noisy, a.sqrt() * x + (1 - a).sqrt() * noise, rtol=1e-4, atol=1e-4)
    expected = {"epsilon": noise, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x, "sample": x}[prediction_type]
    torch.testing.assert_close(target, expected, rtol=1e-4, atol=1e-4)


def test_the_flow_matching_target_is_a_velocity():
    flow = FlowMatchEulerDiscreteScheduler()
    x, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 250.5, 1000.0], dtype=torch.float64)
    noisy, target = noised(flow, x, noise, t)
    assert is_flow(flow)
    assert not is_flow(scheduler())
    torch.testing.assert_close(noisy[0], x[0])
    torch.testing.assert_close(noisy[1], 0.7495 * x[1] + 0.2505 * noise[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(noisy[2], noise[2])
    torch.testing.assert_close(target, noise - x)
    assert noisy.dtype == torch.float32


def test_flow_matching_agrees_with_the_noise_of_the_scheduler():
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    x, noise = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    t = flow.timesteps[[100, 900]]
    torch.testing.assert_close(noised(flow, x, noise, t)[0], flow.scale_noise(x, t, noise), rtol=1e-4, atol=1e-5)


def test_an_unknown_prediction_type_is_refused():
    odd = scheduler()
    odd.register_to_config(prediction_type="score")
    x = torch.zeros(1, 4, 4, 4)
    with pytest.raises(ValueError, match="unknown prediction_type 'score'"):
        noised(odd, x, x, torch.tensor([5]))


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_follows_its_formula(gamma):
    t = torch.tensor([0, 100, 400, 700, 999])
    a = alphas()[t.numpy()]
    snr = a / (1 - a)
    expected = {
        "epsilon": np.minimum(snr, gamma) / snr,
        "v_prediction": np.minimum(snr, gamma) / (snr + 1),
        "sample": np.minimum(snr, gamma),
    }
    assert snr.min() < gamma < snr.max()
    for prediction_type, weights in expected.items():
        found = min_snr_weights(scheduler(prediction_type), t, gamma)
        np.testing.assert_allclose(found.numpy(), weights, rtol=2e-3)


def test_min_snr_at_zero_terminal_signal_is_finite():
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        zero = scheduler(prediction_type, rescale_betas_zero_snr=True)
        assert min_snr_weights(zero, torch.tensor([0, 999]), 5.0).isfinite().all()


def test_min_snr_is_refused_for_flow_matching(tmp_path):
    flow = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match=r"train\.min_snr.*flow-matching"):
        min_snr_weights(flow, torch.tensor([5]), 5.0)
    with pytest.raises(ValueError, match=r"train\.min_snr"):
        learn(tmp_path / "run", replace(SETTINGS, min_snr=5.0), noise=flow)


def test_the_first_loss_is_the_weighted_error_of_the_base_model(tmp_path):
    """An untrained adapter has no effect, so that the loss of step 1 can be computed from the base model."""
    unet, fresh = tiny.unet(), tiny.unet()
    seen = []
    unet.register_forward_pre_hook(
        lambda _m, _args, kw: seen.append(tuple(map(kw.get, ("sample", "timestep", "encoder_hidden_states")))),
        with_kwargs=True,
    )
    settings, noise = replace(SETTINGS, steps=1, min_snr=2.0), scheduler("v_prediction")
    learn(tmp_path / "run", settings, unet=unet, noise=noise)
    noisy, t, prompts = seen[-1]
    rows = [(data().conditions["encoder_hidden_states"] - p).flatten(1).norm(dim=1).argmin().item() for p in prompts]
    x = data().latents[rows]
    a = torch.from_numpy(alphas()[t.numpy()]).float().view(-1, 1, 1, 1)
    eps = (noisy - a.sqrt() * x) / (1 - a).sqrt()
    error = (tiny.predict(fresh, noisy, t, prompts) - (a.sqrt() * eps - (1 - a).sqrt() * x)).square().mean((1, 2, 3))
    snr = (a / (1 - a)).flatten()
    assert losses(tmp_path / "run")[0][1] == pytest.approx(
        (error * snr.clamp(max=2.0) / (snr + 1)).mean().item(), rel=1e-3
    )


def test_training_lowers_the_loss(tmp_path):
    settings = replace(SETTINGS, steps=40, learning_rate=0.03, checkpoint_every=100, batch=8)
    learn(tmp_path / "run", settings, rank="full", noise=scheduler("sample"))
    values = [loss for _, loss in losses(tmp_path / "run")]
    assert np.mean(values[-10:]) < 0.9 * np.mean(values[:10])


@pytest.mark.parametrize("noise", [None, FlowMatchEulerDiscreteScheduler()], ids=["ddpm", "flow"])
@pytest.mark.parametrize("scope", ["timestep", "pooled", "shared"])
def test_training_learns_within_the_free_directions(tmp_path, scope, noise):
    unet, given = tiny.unet(), tiny.protected_inputs()
    base, others = tiny.predictions(unet, given), tiny.predictions(unet, tiny.protected_inputs(77))
    adapter = tiny.adapter(unet, given, scope)
    train(unet, adapter, [data()], noise or scheduler(), SETTINGS, tmp_path, log=lambda line: None)
    with adapter.attached(unet):
        kept = tiny.change(tiny.predictions(unet, given), base)
        changed = tiny.change(tiny.predictions(unet, tiny.protected_inputs(77)), others)
    assert changed > 1e-3
    assert kept > 1e-4 if scope == "shared" else kept < 1e-5


# --- timesteps ---------------------------------------------------------------------------------------

CACHED = torch.tensor([901.0, 500.4, 3.0], dtype=torch.float64)


def test_mode_cached_draws_only_cached_timesteps():
    drawn = draw_timesteps(scheduler(), CACHED, 200, "cached", torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64
    assert set(drawn.tolist()) == {901, 500, 3}
    flow = draw_timesteps(FlowMatchEulerDiscreteScheduler(), CACHED, 200, "cached", torch.Generator().manual_seed(0))
    assert set(flow.tolist()) == set(CACHED.tolist())


def test_mode_all_draws_from_the_whole_schedule():
    drawn = draw_timesteps(scheduler(), CACHED, 20_000, "all", torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == set(range(1000))


def test_training_on_cached_timesteps_uses_no_others(tmp_path):
    unet = tiny.unet()
    calls = Calls(unet)
    adapter_calls = len(tiny.protected_inputs().timesteps) + 2  # calls for the projectors, before training
    learn(tmp_path / "run", replace(SETTINGS, timesteps="cached", batch=8), unet=unet)
    drawn = torch.stack(calls.timesteps[adapter_calls:])
    assert drawn.shape == (6, 8)
    assert set(drawn.flatten().tolist()) == {901, 501, 101}
    assert (drawn.unique(dim=1).shape[1]) > 1
    assert any(len(row.unique()) > 1 for row in drawn)  # a batch mixes timesteps


def test_the_timesteps_in_a_batch_can_be_limited(tmp_path):
    unet = tiny.unet()
    calls = Calls(unet)
    learn(tmp_path / "run", replace(SETTINGS, distinct_timesteps=2, batch=8), unet=unet)
    drawn = torch.stack(calls.timesteps[5:])
    assert [len(row.unique()) for row in drawn] == [2] * 6
    assert len(drawn.unique()) > 2


def test_scope_shared_draws_one_timestep_per_update(tmp_path):
    """An update can be projected for one timestep only."""
    unet = tiny.unet()
    calls = Calls(unet)
    learn(tmp_path / "run", scope="shared", unet=unet)
    drawn = torch.stack(calls.timesteps[5:])
    assert drawn.shape == (6, 4)
    assert all(len(row.unique()) == 1 for row in drawn)
    assert len(drawn.unique()) > 1


def test_scope_shared_refuses_updates_from_several_batches(tmp_path):
    with pytest.raises(ValueError, match=r"train\.accumulation"):
        learn(tmp_path / "run", replace(SETTINGS, accumulation=2), "shared")


# --- the rest ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_caption_dropout_uses_the_unconditional_rows(tmp_path, share):
    unet, given = tiny.unet(), data()
    calls = Calls(unet)
    learn(tmp_path / "run", replace(SETTINGS, caption_dropout=share, batch=8), unet=unet)
    rows = torch.cat(calls.prompts[5:])
    empty = given.unconditional["encoder_hidden_states"][0]
    dropped = [row.equal(empty) for row in rows]
    for row, is_empty in zip(rows, dropped, strict=True):
        assert is_empty or any(row.equal(prompt) for prompt in given.conditions["encoder_hidden_states"])
    assert len(rows) == 48
    assert {0.0: dropped.count(True) == 0, 0.5: 10 < dropped.count(True) < 38, 1.0: all(dropped)}[share]


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (4, 2), (1, 1)])
def test_the_loss_table_has_one_row_per_step(tmp_path, batch, accumulation):
    unet = tiny.unet()
    calls = Calls(unet)
    learn(tmp_path / "run", replace(SETTINGS, batch=batch, accumulation=accumulation), unet=unet)
    rows = losses(tmp_path / "run")
    assert [step for step, _ in rows] == [1, 2, 3, 4, 5, 6]
    assert all(0 < loss < 100 for _, loss in rows)
    assert len(calls.timesteps[5:]) == 6 * accumulation


def test_accumulated_batches_are_all_different(tmp_path):
    unet = tiny.unet()
    calls = Calls(unet)
    learn(tmp_path / "run", replace(SETTINGS, accumulation=2), unet=unet)
    drawn = [tuple(t.tolist()) for t in calls.timesteps[5:]]
    assert len(set(drawn)) == 12


def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path):
    plain = learn(tmp_path / "plain")
    saving = learn(tmp_path / "saving", replace(SETTINGS, gradient_checkpointing=True))
    for key, value in plain.items():
        torch.testing.assert_close(saving[key], value, rtol=1e-3, atol=1e-5)


def test_the_frozen_denoiser_does_not_change(tmp_path):
    unet = tiny.unet()
    before = {name: p.clone() for name, p in unet.state_dict().items()}
    learn(tmp_path / "run", unet=unet)
    assert_same(unet.state_dict(), before)
    assert not any(module._forward_hooks for module in unet.modules())


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    broken = data()
    broken.latents[:] = torch.nan
    unet = tiny.unet()
    adapter = tiny.adapter(unet, tiny.protected_inputs(), "pooled")
    with pytest.raises(FloatingPointError, match=r"at step 1: lower train\.learning_rate"):
        train(unet, adapter, [broken], scheduler(), SETTINGS, tmp_path, log=lambda line: None)


def test_progress_and_validation_are_reported(tmp_path):
    lines, seen = [], []
    unet = tiny.unet()
    adapter = tiny.adapter(unet, tiny.protected_inputs(), "pooled")

    def validate(step: int) -> torch.Tensor:
        seen.append(step)
        return torch.rand(2, 3, 8, 8)

    train(
        unet, adapter, [data()], scheduler(), SETTINGS, tmp_path, log=lines.append, validate=validate, validate_every=3
    )
    assert seen == [3, 6]
    assert lines[-1].startswith("step 6/6  loss ")
    assert list(tmp_path.rglob("events.out.tfevents.*"))
