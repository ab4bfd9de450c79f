"""Attention maps, compared with those of diffusers' plain attention processor."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor

from nullbooth.models.attention_maps import overlay, recording_attention, word_tokens
from world import tokenizer as words


def test_maps_are_the_mean_attention_of_the_conditional_half():
    unet = tiny.unet()
    prompts = torch.randn(6, 5, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    latents = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    with recording_attention(unet, n=3, size=8) as maps:
        for t in (800.0, 200.0):
            tiny.predict(unet, latents, t, prompts)
    found = maps.mean()
    assert found.shape == (3, 5, 8, 8)
    torch.testing.assert_close(found.sum(1), torch.ones(3, 8, 8))

    seen = []
    for block in (m for m in unet.modules() if getattr(m, "is_cross_attention", False)):
        block.set_processor(AttnProcessor())
        scores = block.get_attention_scores

        def spy(*args, scores=scores, heads=block.heads):
            probabilities = scores(*args)
            seen.append(probabilities.unflatten(0, (-1, heads)).mean(1)[3:])
            return probabilities

        block.get_attention_scores = spy
    for t in (800.0, 200.0):
        tiny.predict(unet, latents, t, prompts)
    assert len(seen) == 8
    expected = [F.interpolate(p.mT.unflatten(-1, (2, 2)), (8, 8), mode="bilinear") for p in seen]
    torch.testing.assert_close(found, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-5)


def test_recording_leaves_no_trace():
    unet = tiny.unet()
    given = tiny.protected_inputs()
    before = tiny.predictions(unet, given)
    with recording_attention(unet, n=2, size=4):
        assert tiny.predictions(unet, given).equal(before)
    assert not any(m._forward_hooks for m in unet.modules())


def test_maps_without_cross_attention_are_refused():
    with recording_attention(tiny.unet(), n=1, size=4) as maps:
        pass
    with pytest.raises(ValueError, match="no cross-attention ran"):
        maps.mean()


@pytest.mark.parametrize("word", ["vbk", "star", "a photo"])
def test_the_tokens_of_a_word_are_found(word):
    tokenizer = words.build()
    prompt = "a photo of a vbk star on a red background"
    positions = word_tokens(tokenizer, prompt, word)
    ids = tokenizer(prompt).input_ids
    assert tokenizer.decode([ids[i] for i in positions]).strip() == word
    assert positions == list(range(positions[0], positions[0] + len(positions)))


def test_a_word_that_is_not_in_the_prompt_has_no_tokens():
    assert word_tokens(words.build(), "a star", "moon") == []


def test_overlay_is_brightest_where_the_map_is():
    heat = torch.zeros(4, 4)
    heat[0, 3] = 1
    shown = overlay(torch.zeros(3, 8, 8), heat, 64).mean(0)
    assert shown.shape == (64, 64)
    top = shown.flatten().argmax().item()
    assert top // 64 < 16
    assert top % 64 > 48
