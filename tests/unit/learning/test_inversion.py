"""Learned vectors of the identifier: their effects, training, loading and export."""

from dataclasses import replace

import families
import pytest
import tiny
import torch
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file
from saved_adapters import draw, saved_with_word
from test_training import SETTINGS, losses

from nullbooth import export_lora, fuse, load_adapter
from nullbooth.adapters import word
from nullbooth.adapters.export import export_word, token_of
from nullbooth.adapters.file import read_adapter, write_adapter
from nullbooth.adapters.word import put
from nullbooth.errors import InputError
from nullbooth.learning.data import conditions, training_data
from nullbooth.learning.inversion import Word
from nullbooth.learning.objective import is_flow
from nullbooth.learning.training import train
from nullbooth.models.calls import spoken
from nullbooth.models.loading import denoiser_of

WORD = "vbk"
NAMED, OTHER = ["a vbk star", "a red vbk"], ["a red star", "vb k star"]


def test_vectors_replace_the_embeddings_where_all_tokens_of_the_word_occur():
    ids = torch.tensor([[9, 1, 2, 3, 9], [1, 2, 1, 2, 3], [1, 3, 2, 1, 2]])
    embedded = torch.arange(30.0).view(3, 5, 2)
    vectors = torch.tensor([[-1.0, -1], [-2, -2], [-3, -3]])
    found = put(embedded, ids, [1, 2, 3], vectors)
    expected = embedded.clone()
    expected[0, 1:4] = expected[1, 2:5] = vectors
    assert found.equal(expected)
    assert put(embedded, ids, [7], vectors[:1]) is embedded
    assert put(embedded, ids[:, :2], [1, 2, 3], vectors) is embedded


@pytest.fixture(params=families.FAMILIES)
def family(request):
    """A pipeline of each family, with the side and arguments that keep it small."""
    pipeline, small = families.FAMILIES[request.param](), families.SMALL.get(request.param, {})
    pipeline.set_progress_bar_config(disable=True)
    denoiser_of(pipeline).requires_grad_(False)
    side = small.get("resolution") or {"Sana": 64}.get(request.param, 16)
    return pipeline, side, {key: max(8, value) for key, value in small.get("arguments", {}).items()}


def given(pipeline, prompts, side, arguments) -> dict[str, torch.Tensor]:
    return conditions(pipeline, prompts, (side, side), arguments, 1.0)[0]


def test_prompts_without_the_word_are_encoded_as_before(family):
    pipeline, *how = family
    before = {tuple(texts): given(pipeline, texts, *how) for texts in (NAMED, OTHER)}
    word = Word(pipeline, WORD)
    with word.attached():
        same = given(pipeline, NAMED, *how)
        torch.testing.assert_close(same, before[tuple(NAMED)])  # initially, the vectors are the embeddings of the word
    with torch.no_grad():
        for vectors in word.vectors.values():
            vectors.add_(0.5)
    with word.attached():
        other, named = given(pipeline, OTHER, *how), given(pipeline, NAMED, *how)
    assert all(other[key].equal(value) for key, value in before[tuple(OTHER)].items())
    assert any(not named[key].equal(value) for key, value in before[tuple(NAMED)].items())
    again = given(pipeline, NAMED, *how)
    assert all(again[key].equal(value) for key, value in before[tuple(NAMED)].items())


def test_gradients_reach_every_text_encoder(family):
    """Conditions computed with gradients equal those computed without."""
    pipeline, *how = family
    word, texts = Word(pipeline, WORD), [*NAMED, "vbk"]
    with word.attached():
        found = spoken(pipeline, texts, (how[0],) * 2, how[1])
        plain = given(pipeline, texts, *how)
    assert found.keys() == plain.keys()
    for key, value in plain.items():
        torch.testing.assert_close(found[key].float(), value, rtol=1e-4, atol=1e-5)
    sum(value.float().square().sum() for value in found.values() if value.requires_grad).backward()
    assert all(vectors.grad.abs().sum() > 0 for vectors in word.vectors.values())


def learned(pipeline, folder, steps: int = 12) -> Word:
    """Return a word after training on one photograph."""
    folder.mkdir(exist_ok=True)
    Image.effect_noise((16, 16), 90).convert("RGB").save(folder / "a.png")
    concept = {"identifier": WORD, "class": "star", "prompt": "a {subject}"}
    word = Word(pipeline, WORD)
    data = training_data(pipeline, folder, concept, 16, arguments={}, live=True)
    scheduler = pipeline.scheduler
    if not is_flow(scheduler):
        scheduler = DDPMScheduler.from_config(scheduler.config)
    settings = replace(SETTINGS, steps=steps, learning_rate=0.1, schedule="constant", checkpoint_every=100)
    train(denoiser_of(pipeline), word, data, scheduler, settings, folder, log=str, trackers=())
    return word


def test_training_changes_the_vectors_and_nothing_else(pipeline, tmp_path):
    pipeline.unet.requires_grad_(False)
    weights = {
        f"{name}.{key}": value.clone()
        for name, part in (("unet", pipeline.unet), ("text", pipeline.text_encoder))
        for key, value in part.state_dict().items()
    }
    start = Word(pipeline, WORD).tensors()["word.text_encoder"]
    word = learned(pipeline, tmp_path / "run")
    assert (word.tensors()["word.text_encoder"] - start).abs().min(1).values.max() > 0
    assert len(losses(tmp_path / "run")) == 12
    for name, part in (("unet", pipeline.unet), ("text", pipeline.text_encoder)):
        assert all(value.equal(weights[f"{name}.{key}"]) for key, value in part.state_dict().items())
        assert not any(module._forward_hooks for module in part.modules())


def test_learning_the_word_lowers_the_error(pipeline, tmp_path):
    """The error is measured with the same noise and timesteps."""
    pipeline.unet.requires_grad_(False)
    short, long = learned(pipeline, tmp_path / "a", 1), learned(pipeline, tmp_path / "b", 40)
    assert not short.vectors["text_encoder"].equal(long.vectors["text_encoder"])

    def error(word: Word) -> float:
        concept = {"identifier": WORD, "class": "star", "prompt": "a {subject}"}
        with word.attached():
            [data] = training_data(pipeline, tmp_path / "a", concept, 16, arguments={})
        scheduler, generator = DDPMScheduler.from_config(pipeline.scheduler.config), torch.Generator().manual_seed(3)
        x = data.latents.expand(64, -1, -1, -1)
        noise, t = torch.randn(x.shape, generator=generator), torch.randint(1000, (64,), generator=generator)
        prompts = data.conditions["encoder_hidden_states"].expand(64, -1, -1)
        found = tiny.predict(pipeline.unet, scheduler.add_noise(x, noise, t), t, prompts)
        return (found - scheduler.get_velocity(x, noise, t)).square().mean().item()

    assert error(long) < error(short) - 1e-4


def test_loading_an_adapter_installs_its_word_and_unloading_removes_it(pipeline, tmp_path):
    before = {text: draw(pipeline, "Stable Diffusion 1", text) for text in ("a vbk star", "a red star")}
    path = saved_with_word(pipeline, tmp_path / "a.safetensors", WORD)
    tensors, info = read_adapter(path)
    assert info.identifier == WORD
    loaded = load_adapter(pipeline, path)
    with_word = draw(pipeline, "Stable Diffusion 1", "a vbk star")
    loaded.scale = 0
    assert draw(pipeline, "Stable Diffusion 1", "a red star").equal(before["a red star"])
    assert not draw(pipeline, "Stable Diffusion 1", "a vbk star").equal(before["a vbk star"])
    loaded.unload()
    assert draw(pipeline, "Stable Diffusion 1", "a vbk star").equal(before["a vbk star"])
    write_adapter(
        tmp_path / "b.safetensors", {k: v for k, v in tensors.items() if "word" not in k}, replace(info, identifier="")
    )
    load_adapter(pipeline, tmp_path / "b.safetensors")
    assert not draw(pipeline, "Stable Diffusion 1", "a vbk star").equal(with_word)


@pytest.mark.parametrize("family", ["Stable Diffusion 1", "Stable Diffusion XL"])
def test_plain_diffusers_loads_lora_and_word(family, tmp_path):
    """The code is that of an exported model card."""
    pipeline = families.FAMILIES[family]()
    path = saved_with_word(pipeline, tmp_path / "a.safetensors", WORD)
    loaded = load_adapter(pipeline, path)
    ours = draw(pipeline, family, "a vbk star")
    loaded.unload()
    export_lora(path, tmp_path / "lora.safetensors")
    assert export_word(path, tmp_path / "word.safetensors")
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    _, info = read_adapter(path)
    token, word = token_of(info), load_file(tmp_path / "word.safetensors")
    numbers = {"clip_l": "", "clip_g": "_2"}  # keys of ComfyUI
    assert sorted(word) == sorted(list(numbers)[: 1 + family.endswith("XL")])
    for key, vectors in word.items():
        parts = {part: getattr(pipeline, part + numbers[key]) for part in ("text_encoder", "tokenizer")}
        pipeline.load_textual_inversion({token: vectors}, token=token, **parts)
    torch.testing.assert_close(draw(pipeline, family, f"a {token} star"), ours, rtol=1e-3, atol=1e-3)


def test_words_that_cannot_be_loaded_or_exported_are_refused(pipeline, tmp_path):
    path = saved_with_word(pipeline, tmp_path / "a.safetensors", WORD)
    first = load_adapter(pipeline, path)
    with pytest.raises(InputError, match=r"a\.safetensors: another loaded adapter has learned vectors for 'vbk'"):
        load_adapter(pipeline, path)
    assert first.alone, "the refused adapter is unloaded"
    first.unload()
    with pytest.raises(InputError, match="has learned vectors for 'vbk', which the weights of a pipeline cannot"):
        fuse(pipeline, path, tmp_path / "fused")
    with pytest.raises(InputError, match="which other tools cannot use with a FluxTransformer2DModel"):
        export_lora(
            saved_with_word(pipeline, tmp_path / "f.safetensors", WORD, denoiser="FluxTransformer2DModel"),
            tmp_path / "x",
        )
    with pytest.raises(InputError, match=r"has vectors for text_encoder; the pipeline has text_encoder, text_enc"):
        word.install(families.FAMILIES["Stable Diffusion XL"](), WORD, Word(pipeline, WORD).vectors)
    with pytest.raises(InputError, match=r"has text_encoder vectors \(1, 3\), which do not fit this text encoder"):
        word.install(pipeline, WORD, {"text_encoder": torch.zeros(1, 3)})
