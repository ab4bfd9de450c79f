"""Training of the embedded model keeps the numbers of its tokens and the function of its weights."""

import random

import pytest
import torch
from diffusers import UNet2DConditionModel

from world import tokenizer
from world.generator import UNET, grown, training_scenes
from world.scenes import COLORS, NAMES, PATTERNED, Scene, caption, render


def test_a_resumed_training_keeps_the_numbers_of_its_tokens(tmp_path):
    """Ties make BPE training differ from run to run: the tokenizer is kept with the checkpoint."""
    first = tokenizer.load(tmp_path / "tokenizer").get_vocab()
    assert tokenizer.load(tmp_path / "tokenizer").get_vocab() == first


def test_every_word_is_one_token():
    tokens = tokenizer.build()
    for word in tokenizer.words():
        assert tokens.tokenize(word) == [f"{word}</w>"]


def test_a_generator_that_grows_attention_begins_as_the_same_function(tmp_path):
    lean = UNET | {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }
    before = UNet2DConditionModel(**lean).eval()
    before.save_pretrained(tmp_path / "unet")
    after = grown(tmp_path).eval()
    assert after.num_parameters() > before.num_parameters()
    inputs = torch.randn(2, 8, 16, 16), torch.tensor([10, 900]), torch.randn(2, 24, 128)
    with torch.no_grad():
        torch.testing.assert_close(after(*inputs).sample, before(*inputs).sample)
    richer = UNET | {"down_block_types": ("CrossAttnDownBlock2D",) * 3}
    UNet2DConditionModel(**richer).save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="differs in more than attention blocks"):
        grown(tmp_path)


def test_captions_always_name_patterns_and_names():
    """Patterned scenes must not blur the meaning of "a star"."""
    rng = random.Random(0)
    scenes = training_scenes(800)
    for kinds, share in (((PATTERNED,), 1 / 8), (NAMES, 1 / 4), (COLORS, 5 / 8)):
        found = [s for s in scenes if s.color in kinds]
        assert len(found) == 800 * share
        said = [{PATTERNED, *NAMES} & set(caption(s, rng).split()) for s in found]
        assert all(words == ({s.color} - set(COLORS)) for s, words in zip(found, said, strict=True))


def test_patterns_vary_and_names_are_always_the_same_one():
    def fills(color):
        scenes = [Scene("circle", color, "black", size="large")] * 8
        return render(scenes, random.Random(1))[..., 20:44, 20:44].flatten(2)

    assert fills("red").std(-1).max() < 0.01
    assert sum(bool(fill.std(-1).max() > 0.05) for fill in fills(PATTERNED)) >= 4
    assert fills(PATTERNED).mean(-1).std(0).min() > 0.05
    means = torch.stack([fills(name).mean(-1) for name in NAMES[:6]])
    assert means.std(1).max() < 0.1 < means.mean(1).std(0).min()
