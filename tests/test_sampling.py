"""Pictures: the same noise for the same seed, whatever the batch, the method and the device."""

import pytest
import tiny
import torch

from nullbooth.models import set_sampler
from nullbooth.sampling import sample

PROMPTS = ["a red star", "a small blue ring", "a heart on a green background", "a red star"]
SEEDS = [1, 2, 3, 4]


def draw(pipeline, prompts=PROMPTS, seeds=SEEDS, batch=4, steps=3, **options):
    return sample(pipeline, prompts, seeds, steps=steps, guidance=4.0, batch=batch, **options)


def test_a_picture_does_not_depend_on_the_batch(pipeline):
    together = draw(pipeline)
    assert together.shape == (4, 3, 16, 16)
    assert together.dtype == torch.float32
    assert together.min() >= -1
    assert together.max() <= 1
    for batch in (1, 3):
        torch.testing.assert_close(draw(pipeline, batch=batch), together, rtol=0, atol=1e-4)
    torch.testing.assert_close(draw(pipeline, PROMPTS[2:], SEEDS[2:]), together[2:], rtol=0, atol=1e-4)


def test_the_seed_makes_the_picture(pipeline):
    first = draw(pipeline)
    assert draw(pipeline).equal(first)
    assert (first[0] - first[3]).abs().max() > 1e-2  # one prompt, two seeds


@pytest.mark.parametrize("name", ["EulerAncestralDiscreteScheduler", "LCMScheduler"])
def test_samplers_with_noise_of_their_own_belong_to_the_seed_too(pipeline, name):
    """Base and every method are compared picture by picture: all their noise must be the same."""
    set_sampler(pipeline, name)
    torch.manual_seed(0)
    first = draw(pipeline)
    torch.manual_seed(1)
    torch.testing.assert_close(draw(pipeline, batch=3), first, rtol=0, atol=1e-4)


def test_noise_is_drawn_on_the_cpu_and_not_from_the_global_generator(pipeline):
    given = []
    pipeline.unet.register_forward_pre_hook(lambda _m, args: given.append(args[0].clone()))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    draw(pipeline, steps=1)
    expected = torch.stack([torch.randn(4, 4, 4, generator=torch.Generator("cpu").manual_seed(s)) for s in SEEDS])
    assert given[0].equal(expected.repeat(2, 1, 1, 1))
    assert torch.get_rng_state().equal(state)


def test_pictures_are_those_of_the_pipeline(pipeline):
    noise = torch.stack([torch.randn(4, 4, 4, generator=torch.Generator("cpu").manual_seed(s)) for s in SEEDS])
    images = pipeline(PROMPTS, num_inference_steps=3, guidance_scale=4.0, latents=noise, output_type="pt").images
    torch.testing.assert_close(draw(pipeline), images * 2 - 1, rtol=0, atol=1e-6)


def test_precision(monkeypatch, pipeline):
    monkeypatch.setattr("nullbooth.models.half_is_fast", lambda device: True)  # whatever processor this is
    full, half = draw(pipeline), draw(pipeline, precision="bf16")
    assert half.dtype == torch.float32
    assert 0 < tiny.change(half, full) < 0.2
    with pytest.raises(ValueError, match=r"fp8.*fp32, bf16, fp16"):
        draw(pipeline, precision="fp8")


def test_unknown_sampler(pipeline):
    for name in ("DDIMSchedular", "UNet2DConditionModel"):
        with pytest.raises(ValueError, match=rf"sampler\.scheduler: '{name}'"):
            set_sampler(pipeline, name)


def test_sampler_options(pipeline):
    set_sampler(pipeline, None, {"timestep_spacing": "leading"})
    assert pipeline.scheduler.config.timestep_spacing == "leading"
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    assert pipeline.scheduler.config.beta_end == tiny.NOISE["beta_end"]


def test_progress_counts_pictures(pipeline):
    told = []
    draw(pipeline, batch=3, steps=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 4), (4, 4)]
