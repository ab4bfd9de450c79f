"""What training of the embedded model must not lose: the numbers of its tokens, the function of its weights."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from world import tokenizer
from world.generator import UNET, grown


def test_a_resumed_training_finds_its_words_where_they_were(tmp_path):
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
