"""Edits of pipelines of each family: features of prompts, effects of edits, and protection."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from nullbooth import export_lora, fuse, load_adapter
from nullbooth.adapters.file import AdapterInfo, write_adapter
from nullbooth.editing.features import TextFeatures, solve_edits
from nullbooth.errors import InputError, ProjectorError
from nullbooth.inputs.edits import Edit
from nullbooth.models.loading import denoiser_of
from nullbooth.models.sites import find_sites

CROSS = ["Stable Diffusion 1", "Stable Diffusion 2", "Stable Diffusion XL", "LCM", "PixArt-Sigma", "Sana"]
JOINT = ["Stable Diffusion 3", "Stable Diffusion 3.5", "FLUX.1"]
MASKED = ["PixArt-Sigma", "Sana"]
TEMPLATES = ["{concept}", "a {concept}"]
PROTECTED = ["a red star", "blue", ""]
EDIT = Edit("moon", "yellow ring")
FEW = ("fraction", 0.25)  # directions without protected features are free


def small(family: str) -> dict[str, Any]:
    more = families.SMALL.get(family, {})
    arguments = dict(more.get("arguments", {}))
    if family == "Sana":
        arguments["complex_human_instruction"] = None
    return {"resolution": more.get("resolution"), "arguments": arguments}


def texts_of(pipeline: Any, family: str) -> TextFeatures:
    return TextFeatures(pipeline, **small(family))


@contextmanager
def reading(pipeline: Any, layers: str) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Yield inputs and outputs of layers in their last call."""
    seen = {}

    def keep(name: str):
        return lambda _module, args, output: seen.update({name: (args[0].clone(), output.clone())})

    sites = {name: module for name, module in find_sites(denoiser_of(pipeline)).items() if name.endswith(layers)}
    handles = [module.register_forward_hook(keep(name)) for name, module in sites.items()]
    yield seen
    for handle in handles:
        handle.remove()


def draw(pipeline: Any, family: str, prompt: str, guidance: float = 3.0) -> Tensor:
    given = small(family)
    side = given["resolution"] or {"Sana": 64}.get(family, 16)
    options = {"height": side, "width": side, **given["arguments"]}
    if family in MASKED:
        options |= {"use_resolution_binning": False, "clean_caption": False}
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        prompt, num_inference_steps=2, guidance_scale=guidance, generator=generator, output_type="pt", **options
    ).images


def keys(pipeline: Any, family: str, prompt: str) -> dict[str, Tensor]:
    """Return the outputs of the layers for a prompt, `[tokens, out]` by layer."""
    with reading(pipeline, "to_k") as seen:
        draw(pipeline, family, prompt)
    return {name: output[-1] for name, (_, output) in seen.items()}


def solved(pipeline: Any, family: str, edits: list[Edit], l2: float = 1e-6, rule=FEW) -> tuple[dict, dict]:
    return solve_edits(texts_of(pipeline, family), edits, TEMPLATES, PROTECTED, rule, l2)


def saved(pipeline: Any, tensors: dict[str, Tensor], path: Path) -> Path:
    info = AdapterInfo("edit", 1, (0.0,), type(denoiser_of(pipeline)).__name__, "m", "moon -> yellow ring", "r")
    write_adapter(path, tensors, info)
    return path


# --- features ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CROSS)
def test_features_equal_the_inputs_of_the_layers_in_a_call_of_the_pipeline(family):
    """All keys and values are compared at the last timestep, with guidance; the last row is the prompt's."""
    pipeline = families.FAMILIES[family]()
    texts = texts_of(pipeline, family)
    texts.read(["a moon", "a red star on the left"])
    features, _ = texts.of("a moon")
    with reading(pipeline, ("to_k", "to_v")) as seen:
        draw(pipeline, family, "a moon")
    assert {site for feature in texts.features for site in feature.sites} == set(seen) != set()
    for feature in texts.features:
        for site in feature.sites:
            torch.testing.assert_close(seen[site][0][-1].double(), features[feature.name], rtol=1e-4, atol=1e-5)
    other, _ = texts.of("a red star on the left")
    assert all((features[name] - other[name]).abs().max() > 1e-2 for name in features)


@pytest.mark.parametrize("family", CROSS)
def test_padding_that_is_not_read_is_left_out(family):
    pipeline = families.FAMILIES[family]()
    texts = texts_of(pipeline, family)
    features, read = texts.of("a moon")
    [name] = features
    if family in MASKED:
        tokens = len(texts.tokens("a moon", 8))
        assert read.tolist() == [True] * tokens + [False] * (8 - tokens)
        x = features[name][:tokens]
    else:
        assert read is None
        x = features[name]
    torch.testing.assert_close(texts.moment(["a moon"])[name], x.T @ x / len(x))
    k, t = texts.pairs(Edit("moon", "star"), ["a {concept}"])[name]
    assert len(k) == len(t) <= len(x)


def test_a_moment_is_over_the_rows_of_all_prompts(pipeline):
    texts = texts_of(pipeline, "Stable Diffusion 1")
    [name] = texts.of("")[0]
    x = torch.cat([texts.of(prompt)[0][name] for prompt in PROTECTED])
    torch.testing.assert_close(texts.moment(PROTECTED)[name], x.T @ x / len(x))


def test_features_do_not_depend_on_other_prompts_in_the_pass(pipeline):
    prompts = [f"a {color} {thing}" for color in ("red", "blue", "green") for thing in ("star", "ring", "moon")] * 2
    prompts += [f"{prompt} on the left" for prompt in prompts[:9]]
    many, calls = texts_of(pipeline, "Stable Diffusion 1"), []
    many.read(prompts, lambda done, total: calls.append((done, total)))
    assert calls == [(16, 18), (18, 18)], "each prompt is read once"
    alone = texts_of(pipeline, "Stable Diffusion 1")
    for prompt in (prompts[0], prompts[-1]):
        for name, x in alone.of(prompt)[0].items():
            torch.testing.assert_close(many.of(prompt)[0][name], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", JOINT)
def test_joint_attention_is_refused(family):
    pipeline = families.FAMILIES[family]()
    with pytest.raises(InputError, match=r"edits: in (SD3|Flux)Transformer2DModel, prompt and picture go through the"):
        texts_of(pipeline, family)
    assert not any(module._forward_pre_hooks for module in denoiser_of(pipeline).modules())


def test_pipelines_with_instructions_before_prompts_are_refused():
    """Sana has them by default."""
    pipeline, arguments = families.FAMILIES["Sana"](), families.SMALL["Sana"]["arguments"]
    with pytest.raises(InputError, match=r"set sampler\.arguments: \{complex_human_instruction: null\}"):
        TextFeatures(pipeline, arguments=arguments)
    texts_of(pipeline, "Sana")


# --- rows of an edit ---------------------------------------------------------------------------------------


def test_rows_are_the_changed_tokens_and_their_targets(pipeline):
    """With a causal text encoder, tokens before the edit do not change, all after it do."""
    texts = texts_of(pipeline, "Stable Diffusion 1")
    [(ours, theirs)] = texts.pairs(Edit("moon", "yellow ring"), ["a {concept} on"]).values()
    [x], [y] = (texts.of(prompt)[0].values() for prompt in ("a moon on", "a yellow ring on"))
    torch.testing.assert_close(ours, x[2:])  # without the tokens begin and a
    torch.testing.assert_close(theirs, y[[3, 4, 5, 6, 7, 7]])


def test_edits_that_change_no_feature_are_refused(pipeline):
    texts = texts_of(pipeline, "Stable Diffusion 1")
    with pytest.raises(InputError, match=r"edits: 'moon' and 'MOON' are the same to the model; name something else"):
        texts.pairs(Edit("moon", "MOON"), TEMPLATES)
    with pytest.raises(InputError, match="are the same to the model"):
        solved(pipeline, "Stable Diffusion 1", [EDIT, Edit("star", "Star")])


def test_rounding_is_not_a_change(pipeline):
    """Features may differ a little if a pass includes other prompts, especially on a GPU."""
    texts = texts_of(pipeline, "Stable Diffusion 1")
    [(k, t)] = texts.pairs(EDIT, ["a {concept} on"]).values()
    [x] = texts.of("a moon on")[0].values()
    x *= 1 + 1e-6
    [(ours, theirs)] = texts.pairs(EDIT, ["a {concept} on"]).values()
    torch.testing.assert_close(ours, k, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs, t, rtol=1e-4, atol=1e-5)
    for x in texts.of("a MOON")[0].values():
        x += 1e-6
    with pytest.raises(InputError, match="are the same to the model"):
        texts.pairs(Edit("moon", "MOON"), ["a {concept}"])


# --- effects of edits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CROSS)
def test_edits_move_prompts_towards_targets_and_keep_protected_prompts(family, tmp_path):
    """Compared in every layer, in complete calls of the pipeline; pictures of protected prompts do not change."""
    pipeline = families.FAMILIES[family]()
    texts = texts_of(pipeline, family)
    tensors, about = solved(pipeline, family, [EDIT])
    wanted = keys(pipeline, family, "a yellow ring")
    before = {prompt: keys(pipeline, family, prompt) for prompt in ("a moon", *PROTECTED)}
    picture, other = draw(pipeline, family, "a red star"), draw(pipeline, family, "a moon")
    loaded = load_adapter(pipeline, saved(pipeline, tensors, tmp_path / "edit.safetensors"))
    assert set(loaded.original) == set(texts.sites)
    after = {prompt: keys(pipeline, family, prompt) for prompt in before}
    last = len(texts.tokens("a moon", tiny.TOKENS)) - 1  # the end token, which is mapped to the end token of the target
    target = len(texts.tokens("a yellow ring", tiny.TOKENS)) - 1
    for site, x in before["a moon"].items():
        missing = [(at[site][last] - wanted[site][target]).norm() for at in (before["a moon"], after["a moon"])]
        assert missing[1] < 0.9 * missing[0]
        changed = (after["a moon"][site] - x).norm()
        for prompt in PROTECTED:
            read = texts.of(prompt)[1]
            leak = after[prompt][site] - before[prompt][site]
            assert (leak if read is None else leak[read]).norm() < 1e-2 * changed
    assert (draw(pipeline, family, "a moon") - other).abs().max() > 1e-3
    assert (draw(pipeline, family, "a red star") - picture).abs().max() < 1e-4
    assert 0 < about["edits"][0]["reached"] <= 1
    assert about["protected"] == len(PROTECTED)
    loaded.unload()
    assert all(keys(pipeline, family, "a moon")[site].equal(x) for site, x in before["a moon"].items())


@pytest.mark.parametrize("family", ["Stable Diffusion 1", "PixArt-Sigma"])
def test_the_target_is_reached_with_all_directions_free_and_no_ridge(family):
    """Compared in the outputs of each layer for features of the templates, with the tensors of the adapter."""
    pipeline = families.FAMILIES[family]()
    texts = texts_of(pipeline, family)
    tensors, about = solve_edits(texts, [EDIT], ["{concept}"], PROTECTED, ("absolute", 1e9), 1e-12)
    [(k, t)] = texts.pairs(EDIT, ["{concept}"]).values()
    for site, module in texts.sites.items():
        w = module.weight.double()
        change = tensors[f"{site}.up"].double() @ tensors[f"{site}.down"][0].double()
        assert (k @ (w + change).T - t @ w.T).norm() < 0.05 * ((t - k) @ w.T).norm()
    assert about["edits"][0]["reached"] > 0.99


def test_several_edits_hold_at_once(pipeline):
    edits = [EDIT, Edit("heart", "cross"), Edit("circle", "")]
    _, about = solved(pipeline, "Stable Diffusion 1", edits, rule=("soft", 1.0))
    assert [(found["from"], found["to"]) for found in about["edits"]] == [(e.source, e.target) for e in edits]
    assert min(found["reached"] for found in about["edits"]) > 0.3


def test_no_free_direction_is_an_error(pipeline):
    with pytest.raises(ProjectorError, match=r"attn2\.to_k: no free direction under the rule fraction: 0\.01"):
        solved(pipeline, "Stable Diffusion 1", [EDIT], rule=("fraction", 0.01))


@pytest.mark.parametrize("family", ["Stable Diffusion 1", "Stable Diffusion XL", "PixArt-Sigma"])
def test_a_fused_pipeline_and_a_lora_file_draw_the_same(family, tmp_path):
    """Both are loaded by plain diffusers; PixArt's pipeline loads no LoRA files."""
    pipeline = families.FAMILIES[family]()
    tensors, _ = solved(pipeline, family, [EDIT], rule=("fraction", 0.9))
    path, base = saved(pipeline, tensors, tmp_path / "edit.safetensors"), draw(pipeline, family, "a moon")
    fuse(pipeline, path, tmp_path / "fused")
    loaded = load_adapter(pipeline, path)
    ours = draw(pipeline, family, "a moon")
    loaded.unload()
    plain = DiffusionPipeline.from_pretrained(tmp_path / "fused", use_safetensors=True)
    torch.testing.assert_close(draw(plain, family, "a moon"), ours, rtol=0, atol=1e-5)
    assert (ours - base).abs().max() > 1e-3
    if family != "PixArt-Sigma":
        export_lora(path, tmp_path / "lora.safetensors")
        pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
        torch.testing.assert_close(draw(pipeline, family, "a moon"), ours, rtol=0, atol=1e-4)
