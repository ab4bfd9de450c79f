"""Options of training: optimisers, averages, noise, priors, shapes, processes, and trackers."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import families
import numpy as np
import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from running import ROOT
from safetensors.torch import load_file
from test_training import SETTINGS, alphas, assert_same, data, learn, losses, scheduler

from nullbooth.learning.adapter import Adapter
from nullbooth.learning.data import bucket_shape, bucket_step, training_data
from nullbooth.learning.optimizers import make_optimizer
from nullbooth.learning.training import TrainData, _draw, train
from nullbooth.models.calls import first_call
from nullbooth.models.loading import denoiser_of
from nullbooth.models.sites import find_sites
from nullbooth.statistics.projector import Projector

PRODIGY = replace(SETTINGS, optimizer="prodigy", learning_rate=1.0)


# --- optimisers and averages ---------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [PRODIGY, replace(SETTINGS, ema=0.9), replace(PRODIGY, ema=0.5)])
def test_a_resumed_run_ends_in_the_same_weights_bit_by_bit(tmp_path, settings):
    """Checkpoints include the numbers in which Prodigy finds its rate, and moving averages."""
    whole = learn(tmp_path / "whole", settings, "pooled")
    assert learn(tmp_path / "cut", settings, "pooled", die_after=5) is None
    assert_same(learn(tmp_path / "cut", settings, "pooled"), whole)
    plain = learn(tmp_path / "plain", SETTINGS, "pooled")
    assert not any(whole[key].equal(plain[key]) for key in whole)


def test_prodigy_finds_its_learning_rate():
    """It starts at 1e-6."""
    target = torch.randn(200, generator=torch.Generator().manual_seed(0))
    p = torch.nn.Parameter(torch.zeros(200))
    optimizer = make_optimizer("prodigy", [p], 1.0, 0.0)
    for _ in range(120):
        optimizer.zero_grad()
        ((p - target) ** 2).mean().backward()
        optimizer.step()
    assert (p - target).abs().mean() < 0.1
    assert optimizer.param_groups[0]["d"] > 1e-2


def parameters_by_step(folder, settings) -> list[dict[str, torch.Tensor]]:
    """Return the parameters that validation sees after every step, by name."""
    unet = tiny.unet()
    adapter = tiny.adapter(unet, tiny.protected_inputs(), "pooled")
    seen = []

    def validate(_step: int) -> torch.Tensor:
        seen.append({name: p.detach().clone() for name, p in adapter.named_parameters()})
        return torch.zeros(1, 3, 4, 4)

    folder.mkdir()
    options = dict(validate=validate, validate_every=1, log=str, trackers=())
    train(unet, adapter, [data()], scheduler(), settings, folder, **options)
    seen.append({name: p.detach().clone() for name, p in adapter.named_parameters()})
    return seen


def test_the_moving_average_is_the_result_and_used_in_validation(tmp_path):
    """The reference is the recurrence with diffusers' warm-up of the decay: (1 + k) / (10 + k), at most `ema`."""
    *plain, last = parameters_by_step(tmp_path / "plain", SETTINGS)
    *shown, result = parameters_by_step(tmp_path / "averaged", replace(SETTINGS, ema=0.15))
    assert_same(plain[-1], last)
    for name in plain[0]:
        average = plain[0][name]
        for k, (value, seen) in enumerate(zip(plain, shown, strict=True)):
            decay = min(0.15, (1 + k) / (10 + k)) if k else 0.0
            average = decay * average + (1 - decay) * value[name]
            torch.testing.assert_close(seen[name], average, rtol=1e-4, atol=1e-6)
    assert_same(shown[-1], result)
    assert not any(result[name].equal(last[name]) for name in result)


# --- noise -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_offset_noise_moves_the_mean_of_channels(strength):
    """The mean of 4x4 independent entries has the variance 1/16; the offset adds the square of its strength."""
    adapter = tiny.adapter(tiny.unet(), tiny.protected_inputs(), "pooled")
    settings = replace(SETTINGS, batch=64, offset_noise=strength)
    means, within = [], []
    for index in range(20):
        batch, _ = _draw([data()], scheduler(), adapter, settings, index)
        noise = batch["target"]  # the target of a model that predicts noise
        means.append(noise.mean((2, 3)))
        within.append((noise - noise.mean((2, 3), keepdim=True)).var())
        a = torch.from_numpy(alphas()[batch["timestep"].numpy()]).float().view(-1, 1, 1, 1)
        x = (batch["sample"] - (1 - a).sqrt() * noise) / a.sqrt()
        clean = a.flatten() > 0.5  # elsewhere, the division amplifies rounding
        distance = (x[clean, None] - data().latents[None]).flatten(2).norm(dim=2).amin(1)
        assert distance.max() < 1e-3, "samples are the photographs with that noise"
    assert torch.cat(means).var().item() == pytest.approx(1 / 16 + strength**2, rel=0.1)
    assert torch.stack(within).mean().item() == pytest.approx(15 / 16, rel=0.05)


def test_offset_noise_is_refused_for_flow_matching(tmp_path):
    with pytest.raises(ValueError, match=r"train\.offset_noise: flow matching"):
        learn(tmp_path / "run", replace(SETTINGS, offset_noise=0.1), noise=FlowMatchEulerDiscreteScheduler())


# --- priors with protection ------------------------------------------------------------------------------


def as_class(found: TrainData) -> TrainData:
    return replace(found, class_conditions={k: v.flip(0) for k, v in found.conditions.items()})


def first_loss(folder, given: TrainData, weight: float) -> float:
    unet = tiny.unet()
    adapter = tiny.adapter(unet, tiny.protected_inputs(), "timestep")
    settings = replace(SETTINGS, steps=1, prior_weight=weight)
    folder.mkdir(exist_ok=True)
    train(unet, adapter, [given], scheduler(), settings, folder, run=str(weight), log=str, trackers=())
    return losses(folder)[0][1]


def test_pictures_of_the_class_add_their_loss(tmp_path):
    prior = replace(data(), prior=TrainData(data().latents.flip(0), data().conditions))
    found = {weight: first_loss(tmp_path / "run", prior, weight) for weight in (0.0, 1.0, 3.0)}
    assert found[0.0] == pytest.approx(first_loss(tmp_path / "plain", data(), 1.0), rel=1e-4)
    assert found[3.0] - found[0.0] == pytest.approx(3 * (found[1.0] - found[0.0]), rel=1e-4)


def test_prior_prediction_keeps_outputs_near_the_base_model_and_protection_exact(tmp_path):
    """The first loss does not depend on the weight, because the untrained adapter equals the base model. Later, a
    larger weight keeps outputs for captions of the class nearer to the base model. Protected outputs never change."""
    given, found = as_class(data()), {}
    assert first_loss(tmp_path / "run", given, 50.0) == pytest.approx(
        first_loss(tmp_path / "run", given, 0.0), rel=1e-5
    )
    for weight in (0.0, 50.0):
        unet, protected = tiny.unet(), tiny.protected_inputs()
        prompts = given.class_conditions["encoder_hidden_states"]

        def of_class(unet=unet, prompts=prompts) -> torch.Tensor:
            return torch.cat([tiny.predict(unet, given.latents, t, prompts) for t in (900.0, 500.0, 100.0)])

        base, kept = of_class(), tiny.predictions(unet, protected)
        adapter = tiny.adapter(unet, protected, "timestep")
        settings = replace(SETTINGS, steps=40, batch=5, prior_weight=weight, checkpoint_every=100)
        train(unet, adapter, [given], scheduler(), settings, tmp_path, run=f"long{weight}", log=str, trackers=())
        with adapter.attached(unet):
            found[weight] = tiny.change(of_class(), base)
            assert tiny.change(tiny.predictions(unet, protected), kept) < 1e-5
            with adapter.disabled(unet):
                assert of_class().equal(base)
            assert tiny.change(of_class(), base) == found[weight]
    assert found[50.0] < 0.5 * found[0.0]


# --- photographs that keep their shape -------------------------------------------------------------------


@pytest.mark.parametrize("side", [64, 512, 1024])
def test_buckets_are_near_the_shape_and_area_of_photographs(side):
    step = min(64, side // 8)
    for width, height in [(640, 480), (480, 640), (1920, 1080), (500, 500), (3000, 100), (37, 51)]:
        h, w = bucket_shape(width, height, side, step)
        assert h % step == w % step == 0
        assert 0.75 < h * w / side**2 < 1.3
        stretch = min(2.0, max(0.5, width / height))
        assert w / h == pytest.approx(stretch, rel=0.3)
        assert bucket_shape(height, width, side, step) == (w, h)
    assert bucket_shape(10, 10, side, step) == (side, side)


def test_batches_have_one_shape_each_drawn_by_the_number_of_photographs():
    adapter = tiny.adapter(tiny.unet(), tiny.protected_inputs(), "pooled")
    wide = data(1)
    wide = replace(wide, latents=torch.randn(1, 4, 2, 8))
    drawn = [_draw([data(3), wide], scheduler(), adapter, SETTINGS, index) for index in range(400)]
    shapes = [tuple(batch["sample"].shape) for batch, _ in drawn]
    assert set(shapes) == {(4, 4, 4, 4), (4, 4, 2, 8)}
    assert 60 < shapes.count((4, 4, 2, 8)) < 140
    assert all((given is wide) == (batch["sample"].shape[2] == 2) for batch, given in drawn)


@pytest.mark.parametrize("family", ["Stable Diffusion 1", "Stable Diffusion XL", "Stable Diffusion 3", "FLUX.1"])
def test_photographs_can_be_trained_on_in_buckets(family, tmp_path):
    """Each shape has its own latents and its own further inputs of the denoiser."""
    pipeline, small = families.FAMILIES[family](), families.SMALL.get(family, {})
    pipeline.set_progress_bar_config(disable=True)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    sizes = [(300, 200), (200, 300), (300, 200)]
    for i, size in enumerate(sizes):
        Image.new("RGB", size, (80 * i, 90, 10)).save(photographs / f"{i}.png")
    concept = {"identifier": "sks", "class": "star", "prompt": "a {subject}"}
    how = dict(arguments=small.get("arguments", {}), buckets=True, as_class=True)
    side = 24 if family == "Stable Diffusion 3" else 32  # its position embeddings allow no more
    found = training_data(pipeline, photographs, concept, side, **how)
    step = bucket_step(pipeline, side)
    assert [len(bucket.latents) for bucket in found] == [2, 1]  # flat ones first
    [flat, upright] = found
    h, w = bucket_shape(300, 200, side, step)
    assert h < w
    if family == "FLUX.1":
        assert flat.constants["img_ids"].amax(0).tolist()[1:] == [h // 8 - 1, w // 8 - 1]
        assert upright.constants["img_ids"].amax(0).tolist()[1:] == [w // 8 - 1, h // 8 - 1]
    else:
        assert flat.latents.shape[2:] == (h // 4, w // 4)
        assert upright.latents.shape[2:] == (w // 4, h // 4)
    if family == "Stable Diffusion XL":
        told = (
            flat.conditions["added_cond_kwargs.time_ids"][0].tolist(),
            upright.conditions["added_cond_kwargs.time_ids"],
        )
        assert told[0] == [h, w, 0, 0, h, w]
        assert told[1][0].tolist() == [w, h, 0, 0, w, h]
    denoiser = denoiser_of(pipeline).requires_grad_(False)
    sites = find_sites(denoiser)
    whole = {name: [Projector(np.eye(m.in_features, dtype=np.float32), np.ones(m.in_features, np.float32), False, 1.0)]
             for name, m in sites.items()}  # fmt: skip
    adapter = Adapter(sites, whole, [500.0], "pooled", 2)
    before = [p.clone() for p in adapter.parameters()]
    settings = replace(SETTINGS, steps=4, batch=2)
    train(denoiser, adapter, found, pipeline.scheduler if family in ("Stable Diffusion 3", "FLUX.1") else scheduler(),
          settings, tmp_path, log=str, trackers=())  # fmt: skip
    assert all(0 < loss < 100 for _, loss in losses(tmp_path))
    assert any(not p.equal(b) for p, b in zip(adapter.parameters(), before, strict=True))


# --- several processes -----------------------------------------------------------------------------------

TOGETHER = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from functools import partial
from accelerate import PartialState
from safetensors.torch import save_file
from test_training import SETTINGS, learn
from nullbooth.models.devices import side_by_side

def work(folder, settings):
    weights = learn(folder, settings, "timestep", die_after=None)
    if PartialState().is_main_process:
        save_file({{k: v.contiguous() for k, v in weights.items()}}, folder / "weights.safetensors")

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir()
    settings = replace(SETTINGS, checkpoint_every=3)
    side_by_side(partial(work, settings=settings), (folder,), 2, "cpu")
"""


def test_two_processes_equal_two_accumulated_batches(tmp_path):
    """The second process takes the batches that accumulation would take next. Results are written once."""
    script = tmp_path / "together.py"
    script.write_text(
        TOGETHER.format(paths=[str(ROOT / part) for part in ("", "tests", "tests/support", "tests/unit/learning")])
    )
    done = subprocess.run([sys.executable, script, tmp_path / "both"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = learn(tmp_path / "one", replace(SETTINGS, accumulation=2))
    found = load_file(tmp_path / "both" / "weights.safetensors")
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-5)
    for (_, mine), (_, theirs) in zip(losses(tmp_path / "both"), losses(tmp_path / "one"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert [p.name for p in (tmp_path / "both/checkpoints/a").iterdir()] == ["000003.safetensors"]


# --- trackers --------------------------------------------------------------------------------------------


def test_tensorboard_has_the_losses_and_the_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    unet = tiny.unet()
    adapter = tiny.adapter(unet, tiny.protected_inputs(), "pooled")
    picture = torch.zeros(2, 3, 8, 8)
    picture[:, 0] = 1.5  # red beyond the valid range
    options = dict(validate=lambda step: picture, validate_every=6, log=str)
    train(unet, adapter, [data()], scheduler(), SETTINGS, tmp_path, **options)
    events = EventAccumulator(str(tmp_path / "tensorboard/nullbooth")).Reload()
    assert [round(event.value, 5) for event in events.Scalars("loss")] == [round(v, 5) for _, v in losses(tmp_path)]
    [tag] = events.Tags()["images"]
    [event] = events.Images(tag)
    assert event.step == 6
    image = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"))
    assert (image[..., 0] == 255).all()
    assert (image[..., 1:] == 0).all()


def test_without_trackers_nothing_is_written(tmp_path):
    learn(tmp_path / "run", trackers=())
    assert not list((tmp_path / "run").rglob("*tfevents*"))


# --- all of it -------------------------------------------------------------------------------------------


# --- inputs of the denoiser in guidance ----------------------------------------------------------------------


def one_photograph(folder: Path) -> Path:
    folder.mkdir()
    Image.new("RGB", (32, 32), (200, 90, 10)).save(folder / "0.png")
    return folder


@pytest.mark.parametrize("family", ["Stable Diffusion 1", "Stable Diffusion XL", "Stable Diffusion 3"])
def test_dropped_captions_use_the_branch_of_guidance_without_the_prompt(family, tmp_path):
    """Zeros for Stable Diffusion XL, the empty prompt for others."""
    pipeline, side = families.FAMILIES[family](), 24 if family.endswith("3") else 32
    small = families.SMALL.get(family, {})
    concept = {"identifier": "sks", "class": "star", "prompt": "a {subject}"}
    how = {"arguments": small.get("arguments", {})}
    folder = one_photograph(tmp_path / "photographs")
    [given] = training_data(pipeline, folder, concept, side, guidance=5.0, **how)
    [plain] = training_data(pipeline, folder, concept, side, guidance=1.0, **how)
    sampled = first_call(pipeline, ["a star"], guidance=5.0, seed=0, resolution=(side, side), **how).conditions
    for key, value in given.unconditional.items():
        torch.testing.assert_close(value, sampled[key][0])
    same = all(torch.allclose(value, plain.unconditional[key], atol=1e-4) for key, value in given.unconditional.items())
    assert same == (family != "Stable Diffusion XL")
    assert (given.unconditional["encoder_hidden_states"].abs().sum() == 0) == (family == "Stable Diffusion XL")


def test_a_consistency_model_is_trained_at_the_guidance_of_its_sampler(tmp_path):
    pipeline = families.FAMILIES["LCM"]()
    concept = {"identifier": "sks", "class": "star", "prompt": "a {subject}"}
    [given] = training_data(
        pipeline, one_photograph(tmp_path / "p"), concept, 16, arguments={}, guidance=8.5, as_class=True
    )
    sampled = first_call(pipeline, ["a star"], guidance=8.5, seed=0, resolution=(16, 16)).conditions["timestep_cond"]
    other = first_call(pipeline, ["a star"], guidance=1.0, seed=0, resolution=(16, 16)).conditions["timestep_cond"]
    for found in (given.conditions, given.class_conditions):
        torch.testing.assert_close(found["timestep_cond"], sampled[0])
    assert not sampled.equal(other)
