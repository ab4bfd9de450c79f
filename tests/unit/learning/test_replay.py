"""Replay of protected prompts from stored trajectories: sampling, targets, and effect on drift."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from test_training import SETTINGS, Calls, assert_same, data, scheduler
from test_training import losses as read_losses

from nullbooth.errors import StoreError
from nullbooth.inputs.methods import is_lora, prior_of, reads_trajectories
from nullbooth.learning import replay
from nullbooth.learning.replay import TURN, Replay
from nullbooth.learning.rivals import Options, build
from nullbooth.learning.training import train
from nullbooth.models.sites import find_sites
from nullbooth.storage import zarrstore

IDENTITY = {"model": "tiny", "prompts": "all of them"}
TIMESTEPS = [901.0, 501.0, 101.5]
BRIEF = replace(SETTINGS, steps=4, batch=2, learning_rate=0.01)


def write_shard(path, n: int, seed: int, shape: tuple = (4, 4, 4)) -> str:
    """Write a trajectory of `n` prompts, whose latents and conditions encode their positions."""
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=(len(TIMESTEPS), n, *shape)).astype(np.float32)
    prompts = rng.normal(size=(2, n, 4, tiny.WIDTH)).astype(np.float32)
    latents[:, :, 0, 0, 0] = np.arange(3)[:, None] + 10 * np.arange(n) + 1000 * seed
    prompts[:, :, 0, 0] = np.arange(2)[:, None] + 10 * np.arange(n) + 1000 * seed
    arrays = {"latents": latents, "timesteps": TIMESTEPS, "cached": TIMESTEPS}
    arrays["condition:encoder_hidden_states"] = prompts
    zarrstore.write(path, arrays, {**IDENTITY, "prompts": str(seed)}, chunk_rows={"latents": 1})
    return str(path)


@pytest.fixture
def shards(tmp_path) -> list[str]:
    return [write_shard(tmp_path / "one.zarr", 3, 1), write_shard(tmp_path / "two.zarr", 9, 2)]


def places(batch: dict) -> list[tuple[int, int, int, int]]:
    """Return shard, prompt, call and branch of each sample."""
    x, c = batch["sample"][:, 0, 0, 0].int(), batch["conditions"]["encoder_hidden_states"][:, 0, 0].int()
    assert (x // 10).equal(c // 10), "latents and conditions belong to the same prompt"
    return [(a // 1000, a % 1000 // 10, a % 10, b % 10) for a, b in zip(x.tolist(), c.tolist(), strict=True)]


def test_every_prompt_call_and_branch_is_drawn_with_its_own_timestep(shards):
    found = Replay(shards, IDENTITY)
    seen = []
    for number in range(40 * TURN):
        batch = found.draw(4, number)
        drawn = places(batch)
        assert batch["timestep"].tolist() == [TIMESTEPS[call] for _, _, call, _ in drawn]
        assert len({shard for shard, *_ in drawn}) == 1
        seen += drawn
    assert set(seen) == {
        (shard, prompt, call, branch)
        for shard, prompts in ((1, 3), (2, 9))
        for prompt in range(prompts)
        for call in range(3)
        for branch in range(2)
    }
    share = sum(shard == 2 for shard, *_ in seen) / len(seen)
    assert share == pytest.approx(0.75, abs=0.2), "shards are drawn in proportion to their prompts"


def test_a_batch_depends_on_its_number_only(shards, monkeypatch):
    first, second = Replay(shards, IDENTITY), Replay(shards, IDENTITY)
    monkeypatch.setattr(replay, "CACHED_BYTES", 0)
    uncached = Replay(shards, IDENTITY)
    for number in (70, 3, 70):
        expected = first.draw(3, number)
        for other in (second, uncached):
            found = other.draw(3, number)
            assert found["sample"].equal(expected["sample"])
            assert_same(found["conditions"], expected["conditions"])
    assert not first.draw(3, 4)["sample"].equal(first.draw(3, 5)["sample"])


def test_a_batch_has_no_more_timesteps_than_wanted(shards):
    found = Replay(shards, IDENTITY)
    assert all(len(found.draw(6, number, distinct=1)["timestep"].unique()) == 1 for number in range(20))


def test_only_one_shard_and_a_bounded_number_of_latents_are_in_memory(shards, monkeypatch):
    monkeypatch.setattr(replay, "CACHED_BYTES", 2 * 4 * 9 * 64)
    found = Replay(shards, IDENTITY)
    for number in range(4 * TURN):
        found.draw(8, number)
    assert found._latents.cache_info().currsize == 2
    assert found._opened.cache_info().currsize == 1


def test_trajectories_of_another_model_are_refused(shards):
    with pytest.raises(StoreError, match="another"):
        Replay(shards, {**IDENTITY, "model": "another"})


# --- training ----------------------------------------------------------------------------------------


def learn(folder, shards, method="replay", settings=BRIEF, die_after=None, **options):
    """Train on photographs and, for `replay`, on the shards. Return the denoiser and the tensors to save."""
    torch.manual_seed(0)
    unet = tiny.unet()
    made = build(method, unet, find_sites(unet), Options(8))
    given = replace(data(), replay=Replay(shards, IDENTITY) if method == "replay" else None)

    def validate(step: int) -> torch.Tensor:
        if step == die_after:
            raise KeyboardInterrupt
        return torch.zeros(1, 3, 4, 4)

    options |= dict(validate=validate, validate_every=1) if die_after else {}
    folder.mkdir(exist_ok=True)
    train(unet, made, [given], scheduler(), settings, folder, log=lambda line: None, **options)
    return unet, made


def test_a_resumed_replay_ends_in_the_same_weights(tmp_path, shards):
    _, whole = learn(tmp_path / "whole", shards)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", shards, die_after=3)
    _, resumed = learn(tmp_path / "cut", shards)
    assert_same(resumed.tensors(), whole.tensors())
    assert read_losses(tmp_path / "cut") == read_losses(tmp_path / "whole")


def test_the_target_is_what_the_base_model_predicts_for_the_stored_inputs(tmp_path, shards):
    """The loss of each step is that of the photographs plus the weighted distance to the base model's prediction, which
    is zero only at the first step."""
    settings = replace(BRIEF, steps=2, schedule="constant", prior_weight=3.0)
    plain = {}
    for method in ("lora", "replay"):
        learn(tmp_path / method, shards, method, settings)
        plain[method] = [loss for _, loss in read_losses(tmp_path / method)]
    assert plain["replay"][0] == pytest.approx(plain["lora"][0], rel=1e-5)

    unet, _ = learn(tmp_path / "once", shards, "replay", replace(settings, steps=1))
    given = Replay(shards, IDENTITY).draw(2, BRIEF.seed * 1_000_003 + 1)
    inputs = given["sample"], given["timestep"], given["conditions"]["encoder_hidden_states"]
    distance = F.mse_loss(tiny.predict(unet, *inputs), tiny.predict(tiny.unet(), *inputs)).item()
    assert distance > 0
    assert plain["replay"][1] - plain["lora"][1] == pytest.approx(3 * distance, rel=1e-2)


def test_both_passes_get_the_stored_conditions_and_timesteps(tmp_path, shards):
    torch.manual_seed(0)
    unet = tiny.unet()
    made, calls = build("replay", unet, find_sites(unet), Options(8)), Calls(unet)
    found = Replay(shards, IDENTITY)
    train(
        unet,
        made,
        [replace(data(), replay=found)],
        scheduler(),
        replace(BRIEF, steps=1),
        tmp_path,
        log=lambda line: None,
    )
    assert len(calls.prompts) == 3, "the photographs, the base model, and the trained model"
    expected = found.draw(2, 0)
    for k in (1, 2):
        assert calls.timesteps[k].equal(expected["timestep"])
        assert calls.prompts[k].equal(expected["conditions"]["encoder_hidden_states"])


def test_stored_latents_may_have_another_shape_than_the_photographs(tmp_path):
    wide = write_shard(tmp_path / "wide.zarr", 2, 1, shape=(4, 4, 8))
    learn(tmp_path / "run", [wide])
    assert len(read_losses(tmp_path / "run")) == BRIEF.steps


def test_replayed_prompts_drift_less_than_with_plain_lora(tmp_path, shards):
    found = Replay(shards, IDENTITY)
    batches = [found.draw(8, number) for number in range(1000, 1010)]

    def outputs(unet) -> torch.Tensor:
        return torch.cat(
            [tiny.predict(unet, b["sample"], b["timestep"], b["conditions"]["encoder_hidden_states"]) for b in batches]
        )

    base, drift = outputs(tiny.unet()), {}
    for method in ("lora", "replay"):
        settings = replace(BRIEF, steps=40, batch=5, prior_weight=10.0)
        unet, _ = learn(tmp_path / method, shards, method, settings)
        drift[method] = tiny.change(outputs(unet), base)
    assert drift["replay"] < 0.5 * drift["lora"]


# --- settings ----------------------------------------------------------------------------------------


def test_replay_is_a_lora_with_a_prior_that_needs_trajectories():
    method = {"method": "replay", "prior": None}
    assert prior_of(method) == "protected"
    assert is_lora(method)
    assert reads_trajectories(method)
