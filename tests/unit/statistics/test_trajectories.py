"""Trajectories are the inputs of the denoiser while the pipeline itself samples the protected prompts."""

import diffusers
import families
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from nullbooth.models.calls import denoiser_inputs, flatten, initial_latents, unflatten
from nullbooth.models.noise import prompt_seed, seeded_noise
from nullbooth.models.schedulers import set_sampler
from nullbooth.statistics.trajectories import negatives_of, record

PROMPTS = ["a red star", "a small blue ring", "a heart on a green background"]
SAMPLING = dict(steps=3, guidance=4.0, seed=0)


def calls_of(pipeline, prompts, guidance=4.0, steps=3) -> list[tuple]:
    """Arguments and output of each call of the UNet in a plain run of the pipeline, from the prompts' own noise."""
    seen = []

    def see(_module, args, kwargs, output):
        seen.append((args[0].clone(), args[1].clone(), kwargs["encoder_hidden_states"].clone(), output[0].clone()))

    noise = torch.stack(
        [torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(prompt_seed(p, 0))) for p in prompts]
    )
    handle = pipeline.unet.register_forward_hook(see, with_kwargs=True)
    pipeline(prompts, num_inference_steps=steps, guidance_scale=guidance, latents=noise, output_type="latent")
    handle.remove()
    return seen


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_a_trajectory_has_the_denoiser_inputs_of_a_plain_run(pipeline, guidance):
    """Mistake 3: inputs are not random noise, and the unconditional branch is included."""
    found = record(pipeline, PROMPTS, steps=3, guidance=guidance, seed=0, batch=3)
    calls = calls_of(pipeline, PROMPTS, guidance)
    branches = 2 if guidance > 1 else 1
    assert found.latents.shape == (3, 3, 4, 4, 4)
    assert found.timesteps == [float(t) for _, t, _, _ in calls]
    assert list(found.conditions) == ["encoder_hidden_states"]
    for latents, (sample, _, prompts, _) in zip(found.latents, calls, strict=True):
        assert latents.repeat(branches, 1, 1, 1).equal(sample)
        assert found.conditions["encoder_hidden_states"].flatten(0, 1).equal(prompts)
    assert found.conditions["encoder_hidden_states"].shape == (branches, 3, tiny.TOKENS, tiny.WIDTH)


def test_latents_follow_the_sampler_instead_of_the_noise(pipeline):
    found = record(pipeline, PROMPTS[:1], batch=1, **SAMPLING)
    noise = seeded_noise(prompt_seed(PROMPTS[0], 0), (4, 4, 4))
    assert found.latents[0, 0].equal(noise)
    for before, after in zip(found.latents, found.latents[1:], strict=False):
        assert tiny.change(after, before) > 0.05


def test_the_branches_are_the_empty_prompt_then_the_prompt(pipeline):
    conditions = record(pipeline, PROMPTS, batch=3, **SAMPLING).conditions["encoder_hidden_states"]
    ids = pipeline.tokenizer(["", *PROMPTS], padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        texts = pipeline.text_encoder(ids).last_hidden_state
    torch.testing.assert_close(conditions[0], texts[:1].expand(3, -1, -1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(conditions[1], texts[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_batch_size_does_not_change_a_trajectory(pipeline, batch):
    together = record(pipeline, PROMPTS, batch=3, **SAMPLING)
    apart = record(pipeline, PROMPTS, batch=batch, **SAMPLING)
    assert apart.timesteps == together.timesteps
    torch.testing.assert_close(apart.latents, together.latents, rtol=1e-3, atol=1e-4)
    for key, value in together.conditions.items():
        torch.testing.assert_close(apart.conditions[key], value, rtol=1e-4, atol=1e-5)


def test_other_prompts_do_not_change_a_trajectory(pipeline):
    some, all_ = (record(pipeline, prompts, batch=2, **SAMPLING) for prompts in (PROMPTS[2:], PROMPTS))
    torch.testing.assert_close(some.latents[:, 0], all_.latents[:, 2], rtol=1e-3, atol=1e-4)


def test_another_seed_gives_another_trajectory(pipeline):
    a, b = (record(pipeline, PROMPTS[:1], steps=1, guidance=1.0, seed=seed, batch=1).latents for seed in (0, 1))
    assert tiny.change(a, b) > 0.5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDIMScheduler", {}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ],
)
def test_timesteps_are_those_of_the_scheduler_itself(pipeline, name, options):
    """Mistake 4: a separate formula for the Karras schedule. Timesteps may be fractional."""
    set_sampler(pipeline, name, options)
    expected = getattr(diffusers, name).from_config(pipeline.scheduler.config, **options)
    expected.set_timesteps(4)
    found = record(pipeline, PROMPTS[:1], steps=4, guidance=1.0, seed=0, batch=1)
    assert found.timesteps == expected.timesteps.tolist()
    assert len(set(found.timesteps)) == 4
    if name == "EulerDiscreteScheduler":
        assert any(t != round(t) for t in found.timesteps)


def test_noise_of_the_sampler_belongs_to_the_prompt_too(pipeline):
    """With no sampler does an added prompt change another trajectory."""
    set_sampler(pipeline, "EulerAncestralDiscreteScheduler")
    torch.manual_seed(0)
    one = record(pipeline, PROMPTS[:1], batch=1, **SAMPLING)
    torch.manual_seed(1)
    two = record(pipeline, PROMPTS, batch=2, **SAMPLING)
    torch.testing.assert_close(one.latents[:, 0], two.latents[:, 0], rtol=1e-3, atol=1e-4)


def test_denoiser_inputs_rebuild_the_call(pipeline):
    found = record(pipeline, PROMPTS, batch=3, **SAMPLING)
    calls = calls_of(pipeline, PROMPTS)
    for step, (sample, timestep, prompts, output) in enumerate(calls):
        given = found.latents[step], found.timesteps[step], found.conditions, slice(None)
        inputs = denoiser_inputs(pipeline.unet, *given)
        assert inputs["sample"].equal(sample)
        assert (inputs["timestep"] == timestep).all()
        assert inputs["encoder_hidden_states"].equal(prompts)
        with torch.no_grad():
            assert pipeline.unet(**inputs).sample.equal(output)


def test_denoiser_inputs_can_be_taken_for_some_rows(pipeline):
    found = record(pipeline, PROMPTS, batch=3, **SAMPLING)
    part = denoiser_inputs(pipeline.unet, found.latents[1], found.timesteps[1], found.conditions, slice(1, 3))
    _, _, prompts, output = calls_of(pipeline, PROMPTS)[1]
    rows = [1, 2, 4, 5]  # of [uncond 0..2, cond 0..2]
    assert part["encoder_hidden_states"].equal(prompts[rows])
    with torch.no_grad():
        torch.testing.assert_close(pipeline.unet(**part).sample, output[rows], rtol=1e-4, atol=1e-5)


def test_initial_noise_depends_on_the_seed_only(pipeline):
    torch.manual_seed(123)
    first = initial_latents(pipeline, [5, 6])
    torch.manual_seed(321)
    assert initial_latents(pipeline, [6])[0].equal(first[1])
    assert first[0].equal(torch.randn(4, 4, 4, generator=torch.Generator("cpu").manual_seed(5)))


def test_recording_leaves_no_hooks(pipeline):
    with pytest.raises(TypeError):
        record(pipeline, PROMPTS, steps="three", guidance=4.0, seed=0, batch=3)
    record(pipeline, PROMPTS[:1], steps=1, guidance=4.0, seed=0, batch=3)
    assert not pipeline.unet._forward_pre_hooks


def test_progress_counts_prompts(pipeline):
    told = []
    record(
        pipeline,
        PROMPTS,
        steps=1,
        guidance=1.0,
        seed=0,
        batch=2,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(2, 3), (3, 3)]


names = st.text("abc_", min_size=1, max_size=3)
nested = st.recursive(
    st.integers(0, 99).map(lambda i: torch.tensor([i])),
    lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3),
    max_leaves=6,
)


def as_lists(value):
    return {k: as_lists(v) for k, v in value.items()} if isinstance(value, dict) else value.tolist()


@given(st.dictionaries(names, nested, max_size=4))
def test_unflatten_inverts_flatten(kwargs):
    flat = flatten(kwargs)
    assert all(isinstance(value, torch.Tensor) for value in flat.values())
    assert as_lists(unflatten(flat)) == as_lists(kwargs)


def test_flatten_keeps_tensors_only():
    x = torch.ones(1)
    flat = flatten({"added_cond_kwargs": {"text_embeds": x, "none": None}, "return_dict": False})
    assert list(flat) == ["added_cond_kwargs.text_embeds"]
    assert flat["added_cond_kwargs.text_embeds"] is x


@pytest.mark.parametrize(("fits", "used"), [(1, 1), (2, 1), (3, 3), (100, 3)])
def test_the_batch_is_halved_until_it_fits(pipeline, fits, used):
    """The result is that of any other batch size."""
    sizes = []

    def crowd(_module, args, kwargs):
        if len(args[0]) > 2 * fits:  # both branches
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        sizes.append(len(args[0]) // 2)

    handle = pipeline.unet.register_forward_pre_hook(crowd, with_kwargs=True)
    found = record(pipeline, PROMPTS, batch=None, **SAMPLING)
    handle.remove()
    assert sizes[-1] == used
    torch.testing.assert_close(found.latents, record(pipeline, PROMPTS, batch=2, **SAMPLING).latents)


# --- negative prompts ----------------------------------------------------------------------------------

SHAPES = ("star", "ring", "heart", "moon")
MANY = [f"a {color} {shape}" for color in ("red", "blue", "green", "pink") for shape in SHAPES]


def test_each_prompt_has_its_own_negative_prompt(pipeline):
    """The second branch is that of the negative prompt chosen by the prompt's hash, or the sampler's default."""
    negatives, options = ["blurry", "a ring"], {"negative_prompt": "dull"}
    found = record(pipeline, MANY, batch=5, arguments=options, negatives=negatives, **SAMPLING)
    given = [negative or "dull" for negative in negatives_of(pipeline, MANY, negatives)]
    assert set(given) == {"dull", "blurry", "a ring"}, "each is chosen for some prompts"
    ids = pipeline.tokenizer(given, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = pipeline.text_encoder(ids)[0]
    torch.testing.assert_close(found.conditions["encoder_hidden_states"][0], expected)
    plain = record(pipeline, MANY, batch=16, **SAMPLING).conditions["encoder_hidden_states"]
    torch.testing.assert_close(found.conditions["encoder_hidden_states"][1], plain[1])


def test_other_prompts_do_not_change_a_trajectory_with_negative_prompts(pipeline):
    together = record(pipeline, MANY, batch=5, negatives=["blurry"], **SAMPLING)
    for i, prompt in enumerate(MANY[:6]):
        alone = record(pipeline, [prompt], batch=1, negatives=["blurry"], **SAMPLING)
        torch.testing.assert_close(together.latents[:, i], alone.latents[:, 0], rtol=1e-4, atol=1e-4)
        for key, value in alone.conditions.items():
            torch.testing.assert_close(together.conditions[key][:, i], value[:, 0], rtol=1e-4, atol=1e-4)


def test_pipelines_that_take_no_negative_prompts_get_none(pipeline):
    assert set(negatives_of(families.FAMILIES["LCM"](), MANY, ["blurry"])) == {None}
    assert set(negatives_of(pipeline, MANY, [])) == {None}
    assert set(negatives_of(pipeline, MANY, ["blurry"])) == {None, "blurry"}


@pytest.mark.parametrize("family", ["Stable Diffusion XL", "Stable Diffusion 3", "PixArt-Sigma", "Sana"])
def test_families_take_a_negative_prompt_per_prompt(family):
    """Without one, the branch is the pipeline's default, such as zeros."""
    pipeline, small = families.FAMILIES[family](), families.SMALL.get(family, {})
    pipeline.set_progress_bar_config(disable=True)
    how = dict(batch=3, resolution=small.get("resolution"), arguments=small.get("arguments", {}), **SAMPLING)
    prompts = MANY[:6]
    found = record(pipeline, prompts, negatives=["blurry", "a ring"], **how).conditions["encoder_hidden_states"]
    plain = record(pipeline, prompts, **how).conditions["encoder_hidden_states"]
    given = negatives_of(pipeline, prompts, ["blurry", "a ring"])
    assert len(set(given)) == 3
    for i, negative in enumerate(given):
        assert torch.allclose(found[0, i], plain[0, i], atol=1e-4) == (negative is None)
    torch.testing.assert_close(found[1], plain[1], rtol=1e-4, atol=1e-4)
