"""Sampling: the noise depends on the seed alone, not on batch, method or device."""

import families
import pytest
import tiny
import torch

from nullbooth.errors import InputError
from nullbooth.models.sampling import sample, sample_halves, without_halves
from nullbooth.models.schedulers import set_sampler

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


def test_pictures_differ_by_seed(pipeline):
    first = draw(pipeline)
    assert draw(pipeline).equal(first)
    assert (first[0] - first[3]).abs().max() > 1e-2  # one prompt, two seeds


@pytest.mark.parametrize("name", ["EulerAncestralDiscreteScheduler", "LCMScheduler"])
def test_samplers_with_noise_of_their_own_belong_to_the_seed_too(pipeline, name):
    """Pictures of base model and methods are compared in pairs, so that all of their noise must be the same."""
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
    monkeypatch.setattr("nullbooth.models.precision.half_is_fast", lambda device: True)  # on any processor
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


# --- two prompts in one picture ------------------------------------------------------------------------


def halves(pipeline, left: str, right: str, steps: int = 3):
    return sample_halves(pipeline, left, right, 1, steps=steps, guidance=4.0)


def test_halves_of_one_prompt_are_its_picture(pipeline):
    torch.testing.assert_close(halves(pipeline, PROMPTS[0], PROMPTS[0]), draw(pipeline, PROMPTS[:1], [1])[0])


def test_each_half_follows_its_prompt_and_sees_the_other(pipeline):
    """The latents are joined after each step; here this is done by hand with the scheduler's steps."""
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator("cpu").manual_seed(1))
    scheduler, unet = pipeline.scheduler, pipeline.unet
    scheduler.set_timesteps(3)
    latents, encoded = noise * scheduler.init_noise_sigma, []
    for prompt in PROMPTS[:2]:
        encoded.append(pipeline.encode_prompt(prompt, torch.device("cpu"), 1, True)[:2])
    with torch.no_grad():
        for t in scheduler.timesteps:
            found = []
            for condition, empty in encoded:
                a, b = unet(latents.repeat(2, 1, 1, 1), t, encoder_hidden_states=torch.cat([condition, empty])).sample
                found.append(scheduler.step((b + 4.0 * (a - b))[None], t, latents).prev_sample)
            latents = torch.cat([found[0][..., :2], found[1][..., 2:]], -1)
        expected = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample[0].clamp(-1, 1)
    torch.testing.assert_close(halves(pipeline, *PROMPTS[:2]), expected, rtol=0, atol=1e-4)
    assert (halves(pipeline, *PROMPTS[:2]) - halves(pipeline, *PROMPTS[1::-1])).abs().max() > 1e-2


def test_pipelines_that_cannot_draw_halves_give_a_reason(pipeline):
    class Closed:
        unet = pipeline.unet

        def __call__(self, prompt): ...

    assert without_halves(pipeline) is None
    flux = families.FAMILIES["FLUX.1"]()
    assert without_halves(flux) == "FluxPipeline packs its latents, which have no left and right"
    with pytest.raises(InputError, match=r"two prompts in one picture: Closed .*callback_on_step_end"):
        halves(Closed(), "a", "b")


@pytest.mark.parametrize("family", ["Stable Diffusion 1", "Stable Diffusion XL", "Stable Diffusion 3", "PixArt-Sigma"])
def test_a_negative_prompt_applies_to_every_picture(family):
    """A batch has the same result as single pictures, whether the pipeline repeats a text or not."""
    pipeline, small = families.FAMILIES[family](), families.SMALL.get(family, {})
    pipeline.set_progress_bar_config(disable=True)
    arguments = {**small.get("arguments", {}), "negative_prompt": "a blue ring"}
    how = dict(steps=2, guidance=5.0, resolution=small.get("resolution"))
    prompts, seeds = ["a red star", "a moon", "a heart"], [1, 2, 3]
    together = sample(pipeline, prompts, seeds, batch=3, arguments=arguments, **how)
    alone = [sample(pipeline, [p], [s], arguments=arguments, **how) for p, s in zip(prompts, seeds, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-3)
    without = sample(pipeline, prompts, seeds, batch=3, arguments=small.get("arguments", {}), **how)
    assert (together - without).abs().max() > 1e-3
