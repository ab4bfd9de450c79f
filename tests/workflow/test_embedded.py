"""The embedded model: the measurements of its model card, repeated on a part."""

import json
import random
from pathlib import Path

import pytest
import torch

from nullbooth.evaluation.attributes import attribute_accuracy, only_named
from nullbooth.evaluation.encoders import embed_images, load_encoder
from nullbooth.inputs.photographs import list_images
from nullbooth.models.loading import ModelSource, load_pipeline
from nullbooth.models.sampling import sample
from world.evaluators import same_things
from world.judge import held_out
from world.scenes import SHAPES, SUBJECTS, caption, random_scene, render
from world.tokenizer import build, words

RESOURCES = Path(__file__).parents[2] / "resources"
BARS = {"shape": 0.90, "color": 0.95, "background": 0.97, "pattern": 0.95}


@pytest.fixture(scope="module")
def judge():
    return load_encoder(str(RESOURCES / "evaluators/dino"))


def test_it_is_small_and_has_no_pickles():
    files = [p for p in RESOURCES.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 30e6
    assert not [p for p in files if p.suffix in (".bin", ".ckpt", ".pt", ".pth", ".pkl")]


def test_the_card_meets_the_bars():
    card = json.loads((RESOURCES / "model_card.json").read_text())
    assert card["captions"] >= 300
    assert card["steps"] <= 30
    for name, bar in BARS.items():
        assert card["drawn"][name]["value"] >= bar, name
        assert card["judge on true scenes"][name]["value"] >= 0.98, name
    assert min(card["PSNR of subjects in dB"].values()) >= 27


def test_the_judge_knows_true_scenes(judge):
    rng = random.Random(77)
    scenes = [random_scene(rng) for _ in range(300)]
    hits = only_named(attribute_accuracy(judge, render(scenes, rng) * 2 - 1, [caption(s) for s in scenes]))
    for name in BARS:
        assert sum(hits[name]) / len(hits[name]) >= 0.97, name


def test_the_judge_refuses_wrong_pictures(judge):
    rng = random.Random(78)
    scenes = [random_scene(rng) for _ in range(200)]
    prompts = [caption(s) for s in scenes]
    hits = only_named(attribute_accuracy(judge, render(scenes, rng) * 2 - 1, prompts[1:] + prompts[:1]))
    assert sum(hits["shape"]) / len(hits["shape"]) < 0.3


def test_the_judge_recognises_a_patterned_thing(judge):
    """Among a hundred others, at another place and size. Otherwise every patterned star would count as the subject."""
    torch.manual_seed(0)
    features = embed_images(judge, same_things(100, random.Random(9)))
    one, two = features.chunk(2)
    assert ((one @ two.T).argmax(1) == torch.arange(100)).float().mean() > 0.75


def test_it_draws_held_out_captions(judge):
    pipeline = load_pipeline(ModelSource(str(RESOURCES / "tinyworld")), torch.device("cpu"))
    prompts = [caption(scene) for scene in held_out(40)]
    seeds = list(range(len(prompts)))
    drawn = sample(pipeline, prompts, seeds, steps=20, guidance=4.0, batch=20, precision="bf16")
    hits = only_named(attribute_accuracy(judge, drawn, prompts))
    for name, bar in BARS.items():
        assert sum(hits[name]) / len(hits[name]) >= bar - 0.15, name


def test_subjects_have_photographs_to_learn_from_and_others_to_judge_by():
    for name in SUBJECTS:
        folders = [RESOURCES / "subjects" / name / part for part in ("train", "holdout")]
        contents = [{p.read_bytes() for p in list_images(folder)} for folder in folders]
        assert len(contents[0]) == 5
        assert len(contents[1]) >= 3
        assert not contents[0] & contents[1]


def test_every_word_of_the_world_is_one_token():
    tokenizer = build()
    assert set(SHAPES) <= set(words())
    assert all(len(tokenizer(word).input_ids) == 3 for word in words())
    longest = "a photo of a small yellow pentagon at the bottom on a striped purple background"
    assert len(tokenizer(longest).input_ids) <= tokenizer.model_max_length
