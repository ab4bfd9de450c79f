"""Metrics agree with their formulas, and encoders with the models that they wrap."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from running import ROOT, script
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from nullbooth.errors import InputError
from nullbooth.evaluation.attributes import attribute_accuracy, edited_attributes, named_attribute
from nullbooth.evaluation.encoders import Encoder, embed_images, embed_texts, load_encoder
from nullbooth.evaluation.lpips import load_lpips, lpips
from nullbooth.evaluation.measure import diversity, paired_drift, subject_fidelity
from nullbooth.evaluation.run_metrics import measure_run
from nullbooth.models.files import check_encoder, picture_size
from nullbooth.models.pixels import load_image
from world import scenes, tokenizer

ATTRIBUTES = {
    "shape": list(scenes.SHAPES),
    "color": list(scenes.COLORS),
    "background": list(scenes.COLORS),
    "pattern": list(scenes.PATTERNS),
    "size": list(scenes.SIZES),
    "position": list(scenes.POSITIONS),
    "fill": ["flat", "patterned"],
}
PREPROCESSING = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


# --- numbers -----------------------------------------------------------------------------------------


def test_subject_fidelity_is_the_mean_cosine_to_all_references():
    images, references = unit(4, 6, 0), unit(3, 6, 1)
    expected = [
        np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in references.numpy()]) for a in images.numpy()
    ]
    np.testing.assert_allclose(subject_fidelity(images, references), expected, rtol=1e-5)
    np.testing.assert_allclose(subject_fidelity(references[:1], references[:1]), [1], rtol=1e-6)


def test_paired_drift_is_half_of_one_minus_cosine_pair_by_pair():
    tuned, base = unit(5, 6, 0), unit(5, 6, 1)
    expected = [(1 - a @ b) / 2 for a, b in zip(tuned.numpy(), base.numpy(), strict=True)]
    np.testing.assert_allclose(paired_drift(tuned, base), expected, rtol=1e-5, atol=1e-7)
    assert (paired_drift(base, base) == 0).all()
    np.testing.assert_allclose(paired_drift(-base, base), 1, atol=1e-6)


def test_diversity_compares_pairs_of_pictures_of_one_prompt():
    x = unit(5, 6, 0)
    found = diversity(x, ["a", "b", "a", "c", "a"])
    assert list(found) == ["a"]
    expected = [(1 - x[i] @ x[j]) / 2 for i, j in ((0, 2), (0, 4), (2, 4))]
    torch.testing.assert_close(found["a"], torch.stack(expected))


class AlexNetFeatures(torch.nn.Sequential):
    """The convolutions of AlexNet as torchvision lays them out, with random weights."""

    def __init__(self):
        torch.manual_seed(0)
        conv, relu, pool = torch.nn.Conv2d, torch.nn.ReLU, torch.nn.MaxPool2d
        super().__init__(
            conv(3, 64, 11, 4, 2), relu(), pool(3, 2), conv(64, 192, 5, padding=2), relu(), pool(3, 2),
            conv(192, 384, 3, padding=1), relu(), conv(384, 256, 3, padding=1), relu(),
            conv(256, 256, 3, padding=1), relu(), pool(3, 2),
        )  # fmt: skip


@pytest.mark.parametrize("size", [64, 97])
def test_lpips_equals_that_of_torchmetrics(monkeypatch, size):
    """Both use the same trunk, and the heads of torchmetrics."""
    from torchmetrics.functional.image import lpips as theirs

    trunk = AlexNetFeatures()
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda name, pretrained: trunk)
    judge = theirs._LPIPS(pretrained=True, net="alex", pnet_rand=True, use_dropout=True)
    weights = {f"features.{name}": value for name, value in trunk.state_dict().items()}
    weights |= {f"lin{i}.model.1.weight": head.model[-1].weight for i, head in enumerate(judge.lins)}
    x, y = pictures(6, size).split(3)
    with torch.no_grad():
        expected = judge.eval()(x, y).flatten()
    torch.testing.assert_close(lpips(weights, x, y), expected, rtol=1e-4, atol=1e-6)
    assert (lpips(weights, x, x) == 0).all()
    assert (expected > 0).all()


def test_missing_lpips_weights_are_named(tmp_path):
    weights = {f"features.{name}": value for name, value in AlexNetFeatures().state_dict().items()}
    weights |= {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, n in enumerate((64, 192, 384, 256, 256))}
    save_file(weights, tmp_path / "whole.safetensors")
    assert load_lpips(tmp_path / "whole.safetensors").keys() == weights.keys()
    del weights["lin3.model.1.weight"]
    save_file(weights, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"part.safetensors has no lin3\.model\.1\.weight"):
        load_lpips(tmp_path / "part.safetensors")


def test_lpips_of_small_pictures_equals_that_of_enlarged_ones():
    trunk = AlexNetFeatures()
    weights = {f"features.{name}": value for name, value in trunk.state_dict().items()}
    weights |= {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, n in enumerate((64, 192, 384, 256, 256))}
    x, y = pictures(4, 32).split(2)
    large = [F.interpolate(z, (64, 64), mode="bicubic", antialias=True) for z in (x, y)]
    torch.testing.assert_close(lpips(weights, x, y), lpips(weights, *large))


# --- attributes --------------------------------------------------------------------------------------


@given(st.integers(0, 10**6))
def test_a_full_caption_names_all_attributes_of_the_scene(seed):
    scene = scenes.random_scene(random.Random(seed))
    text = scenes.caption(scene)
    for prompt in (text, f"a photo of {text}"):
        for name, values in ATTRIBUTES.items():
            expected = None if name == "fill" else getattr(scene, name) or None
            assert named_attribute(name, values, prompt) == expected, (name, prompt)


@given(st.integers(0, 10**6))
def test_a_shorter_caption_names_no_other_attributes(seed):
    rng = random.Random(seed)
    scene = scenes.random_scene(rng)
    prompt = scenes.caption(scene, rng)
    for name, values in ATTRIBUTES.items():
        found = named_attribute(name, values, prompt)
        assert found in (None, getattr(scene, name, None) if scene.pattern == "plain" or name != "pattern" else found)
        if name == "shape":
            assert found == scene.shape


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a photo of a sks star", {"shape": "star"}),
        ("a star on a blue background", {"shape": "star", "background": "blue", "pattern": "plain"}),
        ("a blue star", {"shape": "star", "color": "blue"}),
        ("a white ring on the left", {"shape": "ring", "color": "white", "position": "on the left"}),
        ("a small moon at the top", {"shape": "moon", "size": "small", "position": "at the top"}),
        ("a heart on a striped red background", {"shape": "heart", "background": "red", "pattern": "striped"}),
        ("", {}),
    ],
)
def test_attributes_are_recognised_in_prompts(prompt, named):
    found = {name: named_attribute(name, values, prompt) for name, values in ATTRIBUTES.items()}
    assert {name: value for name, value in found.items() if value} == named


# --- encoders ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    words = tokenizer.build()
    torch.manual_seed(0)
    tower = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = dict(
        **tower,
        vocab_size=len(words),
        max_position_embeddings=tokenizer.MAX_LENGTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    config = CLIPConfig(text_config=text, vision_config=dict(**tower, image_size=16, patch_size=8), projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    about = PREPROCESSING | {"do_center_crop": True, "crop_size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    """Heads with constant output: star, blue, red, dotted, small, on the left, flat."""
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8)
    Dinov2Model(config).save_pretrained(folder)
    about = PREPROCESSING | {"do_center_crop": False, "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    answers = ("star", "blue", "red", "dotted", "small", "on the left", "flat")
    bias = [
        torch.tensor([float(v == answer) for v in values])
        for answer, values in zip(answers, ATTRIBUTES.values(), strict=True)
    ]
    bias = torch.cat(bias)
    save_file({"weight": torch.zeros(len(bias), 16), "bias": bias}, folder / "heads.safetensors")
    (folder / "heads.json").write_text(json.dumps(ATTRIBUTES))
    return folder


def pictures(n: int, size: int) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_prepare_scales_to_unit_range_and_then_normalises():
    mean, std = torch.tensor(PREPROCESSING["image_mean"]), torch.tensor(PREPROCESSING["image_std"])
    encoder = Encoder(torch.nn.Identity(), 16, mean, std)
    x = pictures(2, 16)
    expected = ((x.numpy() + 1) / 2 - mean.numpy()[:, None, None]) / std.numpy()[:, None, None]
    np.testing.assert_allclose(encoder.prepare(x), expected, rtol=1e-4, atol=1e-5)
    grey = encoder.prepare(torch.full((1, 3, 40, 24), 0.2))
    assert grey.shape == (1, 3, 16, 16)
    np.testing.assert_allclose(grey[0, :, 8, 8], (0.6 - mean) / std, rtol=1e-4)


@torch.no_grad()
def test_clip_embeddings_equal_those_of_the_model(clip_folder):
    encoder = load_encoder(str(clip_folder))
    model = CLIPModel.from_pretrained(clip_folder).eval()
    x, texts = pictures(3, 16), ["a red star", "a photo of a small blue ring on a white background"]
    ids = CLIPTokenizer.from_pretrained(clip_folder)(texts, padding="max_length", return_tensors="pt").input_ids
    both = model(input_ids=ids, pixel_values=encoder.prepare(x))
    torch.testing.assert_close(embed_images(encoder, x, batch=2), both.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embed_texts(encoder, texts), both.text_embeds, rtol=1e-4, atol=1e-5)
    assert encoder.size == 16
    assert encoder.heads is None


@torch.no_grad()
def test_dino_embeddings_equal_those_of_the_model(dino_folder):
    encoder = load_encoder(str(dino_folder))
    model = Dinov2Model.from_pretrained(dino_folder).eval()
    x = pictures(3, 16)
    expected = F.normalize(model(pixel_values=encoder.prepare(x)).pooler_output, dim=-1)
    found = embed_images(encoder, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))
    assert encoder.tokenizer is None


def vit(folder, **about):
    """A ViT like facebook/dino-vits16 on the Hub: without a pooler, and with a single number as its size."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    model = ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING | {"size": 16} | about))
    return model


@torch.no_grad()
def test_a_vit_without_pooler_gives_its_class_token(tmp_path):
    model, x = vit(tmp_path), pictures(3, 16)
    check_encoder(tmp_path, "evaluate.dino")
    encoder = load_encoder(str(tmp_path))
    expected = F.normalize(model(pixel_values=encoder.prepare(x)).last_hidden_state[:, 0], dim=-1)
    torch.testing.assert_close(embed_images(encoder, x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embed_images(load_encoder(str(tmp_path)), x), embed_images(encoder, x))


@torch.no_grad()
def test_a_vit_with_a_pooler_gives_the_pooled_features(tmp_path):
    vit(tmp_path)
    pooled = ViTModel(ViTConfig.from_pretrained(tmp_path)).eval()
    pooled.save_pretrained(tmp_path)
    encoder, x = load_encoder(str(tmp_path)), pictures(3, 16)
    expected = F.normalize(pooled(pixel_values=encoder.prepare(x)).pooler_output, dim=-1)
    torch.testing.assert_close(embed_images(encoder, x), expected, rtol=1e-4, atol=1e-5)


def test_an_incomplete_pooler_is_refused(tmp_path):
    vit(tmp_path)
    ViTModel(ViTConfig.from_pretrained(tmp_path)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["pooler.dense.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"pooler\.dense\.bias is missing"):
        load_encoder(str(tmp_path))


@torch.no_grad()
def test_siglip_compares_texts_and_pictures_like_the_model(tmp_path):
    words = tokenizer.build()
    torch.manual_seed(0)
    tower = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = dict(**tower, vocab_size=len(words), max_position_embeddings=tokenizer.MAX_LENGTH, projection_size=16)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=dict(**tower, image_size=16, patch_size=8))).eval()
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    said["model_input_names"] = ["input_ids"]  # SigLIP was trained with visible padding
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    about = PREPROCESSING | {"do_resize": True, "size": {"height": 16, "width": 16}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    check_encoder(tmp_path, "evaluate.clip")
    encoder, x, texts = load_encoder(str(tmp_path)), pictures(2, 16), ["a red star", "a blue ring"]
    ids = words(texts, padding="max_length", return_tensors="pt").input_ids
    both = model(input_ids=ids, pixel_values=encoder.prepare(x))
    torch.testing.assert_close(embed_images(encoder, x), both.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embed_texts(encoder, texts), both.text_embeds, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("about", "size"),
    [
        ({"size": 224}, 224),  # dino-vits16
        ({"size": {"height": 256, "width": 256}}, 256),  # SigLIP, DINOv3
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 224),  # DINOv2
        ({"size": 224, "crop_size": 224, "do_center_crop": True}, 224),  # clip-vit-base-patch32
        ({"size": {"height": 64}, "crop_size": {"height": 224}, "do_center_crop": False}, 64),
        ({"size": {"height": 64}, "crop_size": None}, 64),
    ],
)
def test_the_size_of_pictures_is_read_in_all_forms_of_the_hub(about, size):
    assert picture_size(PREPROCESSING | about, "here") == size


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({}, "size None is not a size of square pictures"),
        ({"size": {"longest_edge": 64}}, "size .* is not a size of square pictures"),
        ({"size": {"height": 16, "width": 8}}, "size .* is not a size of square pictures"),
        ({"size": True}, "size True is not a size of square pictures"),
        ({"size": 16, "image_mean": None}, "image_mean None: needs three numbers"),
        ({"size": 16, "image_std": [0, 1, 1]}, r"image_std \[0, 1, 1\]: needs three numbers"),
        ({"size": 16, "image_mean": ["a", "b", "c"]}, "image_mean .*: needs three numbers"),
        ({"size": 16, "image_mean": [0.5, float("nan"), 0.5]}, "image_mean .*: needs three numbers"),
        ({"size": 32}, "pictures of 32 pixels, but config.json has image_size 16"),
    ],
)
def test_an_unusable_encoder_is_refused_before_the_first_job(tmp_path, about, said):
    vit(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING | about))
    with pytest.raises(InputError, match=f"^evaluate.dino: {tmp_path}/preprocessor_config.json: {said}"):
        check_encoder(tmp_path, "evaluate.dino")


def test_colours_do_not_change_without_normalisation(tmp_path):
    vit(tmp_path, do_normalize=False, image_mean=None)
    check_encoder(tmp_path, "evaluate.dino")
    x = pictures(1, 16)
    torch.testing.assert_close(load_encoder(str(tmp_path)).prepare(x), x / 2 + 0.5)


def test_texts_are_padded_to_the_length_that_the_model_reads(tmp_path, clip_folder):
    copy = shutil.copytree(clip_folder, tmp_path / "clip")
    said = json.loads((copy / "tokenizer_config.json").read_text())
    said.pop("model_max_length", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(said))
    texts = ["a red star", "a photo of a small blue ring on a white background " * 20]
    expected = embed_texts(load_encoder(str(clip_folder)), texts)
    torch.testing.assert_close(embed_texts(load_encoder(str(copy)), texts), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "vit_mae"}, "model_type 'vit_mae' reads a random part of each picture"),
        ({"vision_config": [1], "image_size": 8}, "pictures of 16 pixels, but config.json has image_size 8"),
        ({"image_size": 8, "model_type": "deit"}, "pictures of 16 pixels, but config.json has image_size 8"),
    ],
)
def test_unusable_configs_are_refused(tmp_path, change, said):
    vit(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=said):
        check_encoder(tmp_path, "evaluate.dino")


def test_a_tokenizer_that_needs_a_package_names_it(tmp_path, clip_folder, monkeypatch):
    copy = shutil.copytree(clip_folder, tmp_path / "clip")
    said = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(said | {"tokenizer_class": "SiglipTokenizer"}))
    monkeypatch.setattr("nullbooth.models.files.find_spec", lambda package: None)
    with pytest.raises(InputError, match=r"evaluate\.clip: .*SiglipTokenizer needs .*: pip install sentencepiece"):
        check_encoder(copy, "evaluate.clip")


def test_heads_without_weights_are_refused(dino_folder, tmp_path):
    copy = shutil.copytree(dino_folder, tmp_path / "dino")
    (copy / "heads.safetensors").unlink()
    with pytest.raises(InputError, match=r"evaluate\.dino: .*heads\.safetensors: no such file"):
        check_encoder(copy, "evaluate.dino")


def test_an_encoder_without_texts_is_refused_for_clip(tmp_path, clip_folder):
    vit(tmp_path)
    with pytest.raises(InputError, match=r"evaluate\.clip: .*model_type 'vit' has no text encoder"):
        check_encoder(tmp_path, "evaluate.clip")
    copy = shutil.copytree(clip_folder, tmp_path / "clip")
    check_encoder(copy, "evaluate.clip")
    for path in (*copy.glob("*vocab*"), *copy.glob("tokenizer.json")):
        path.unlink()
    with pytest.raises(InputError, match=r"evaluate\.clip: .*clip has no vocabulary"):
        check_encoder(copy, "evaluate.clip")
    (copy / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 9}))
    with pytest.raises(InputError, match=r"evaluate\.dino: .*model_type 'bert' takes no images"):
        check_encoder(copy, "evaluate.dino")


def test_attribute_accuracy_counts_attributes_that_prompts_name(dino_folder):
    encoder = load_encoder(str(dino_folder))
    prompts = ["a blue star on the left", "a small green star on a dotted red background", "a ring on a red background"]
    assert attribute_accuracy(encoder, pictures(3, 16), prompts) == {
        "shape": [1.0, 1.0, 0.0],
        "color": [1.0, 0.0, None],
        "background": [None, 1.0, 1.0],
        "pattern": [None, 1.0, 0.0],
        "size": [None, 1.0, None],
        "position": [1.0, None, None],
    }


@pytest.mark.parametrize(
    ("source", "target", "as_meant", "gone"),
    [
        ("a moon", "a blue star", 1, 1),
        ("a moon", "a green star", 0, 1),  # shows all attributes of the target
        ("a star", "a ring", 0, 0),
        ("a green star", "a blue ring", 0, 0),  # shows nothing of the source
        ("a blue ring", "a green ring", 0, 0),  # of the attributes in which they differ
        ("a red moon on the left", "a blue star on the left", 1, 1),
        ("a star on a red background", "on a red background", None, 0),
        ("a moon", "", None, 1),
        ("a photo", "a photo of a star", 1, None),
        ("a thing", "another thing", None, None),
    ],
)
def test_edited_attributes_are_those_in_which_source_and_target_differ(dino_folder, source, target, as_meant, gone):
    """The picture shows a small blue star on the left, on a dotted red background."""
    found = edited_attributes(load_encoder(str(dino_folder)), pictures(1, 16), [source], [target])
    assert found == {"as_meant": [as_meant], "gone": [gone]}


# --- rule evaluate -------------------------------------------------------------------------------------


def drawn(folder, entries: list[dict]) -> str:
    """Write a folder of noise pictures, one for each entry's `noise`, like rule base_images."""
    folder.mkdir()
    for i, entry in enumerate(entries):
        pixels = np.random.default_rng(entry.pop("noise")).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        entry["file"] = f"{i}.png"
        Image.fromarray(pixels).save(folder / entry["file"])
    (folder / "images.json").write_text(json.dumps({"identity": {}, "images": entries}))
    return str(folder)


def test_an_extra_picture_of_each_prompt_gives_the_scale_of_drift(tmp_path):
    """Twins are paired by prompt and seed in any order; further pictures of the base model only give the scale."""
    prompts = ["red circle", "blue square"]
    tuned = [{"group": "unrelated", "prompt": p, "seed": i, "noise": i} for i, p in enumerate(prompts)]
    base = [{"group": "unrelated", "prompt": p, "seed": s, "noise": s} for s, p in ((11, prompts[1]), (10, prompts[0]))]
    base += [{"group": "unrelated", "prompt": p, "seed": i, "noise": i} for i, p in enumerate(prompts)]
    folders = drawn(tmp_path / "tuned", tuned), drawn(tmp_path / "base", base)
    models = ROOT / "resources/evaluators"
    evaluators = {"clip": str(models / "clip"), "dino": str(models / "dino"), "lpips": None}
    photographs = str(ROOT / "resources/subjects/quilt/train")
    config = {
        "device": "cpu",
        "evaluate": evaluators,
        "concepts": [{"name": "star", "images": photographs, "holdout": None}],
    }
    concept = {"name": "star", "identifier": "zark"}
    out, embedded, identity = tmp_path / "metrics.json", tmp_path / "base.safetensors", dict.fromkeys(evaluators, "")
    script("embed_base").main(str(embedded), folders[1], identity, config)
    measure_run(str(out), folders[0], [folders[1]], [str(embedded)], identity, concept, config)
    found = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    rows = {(m["model"], m["metric"]): m for m in found}
    assert rows["tuned", "dino_drift"]["values"] == pytest.approx([0, 0], abs=1e-6)
    encoder = load_encoder(evaluators["dino"])
    seen = {n: embed_images(encoder, load_image(tmp_path / "base" / f"{n}.png", 32)[None]) for n in range(4)}
    expected = [paired_drift(seen[2], seen[1]).item(), paired_drift(seen[3], seen[0]).item()]
    assert rows["base", "dino_div"]["values"] == pytest.approx(expected, rel=1e-3)
    assert rows["base", "dino_div"]["value"] > 0.001
    assert ("tuned", "dino_div") not in rows, "one picture of each prompt has no pair"
