"""Identities depend on content alone."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from running import ROOT

from nullbooth.errors import InputError
from nullbooth.inputs.prompts import read_prompts
from nullbooth.models.identity import model_folder, model_identity
from nullbooth.models.noise import prompt_seed, seeded_noise
from nullbooth.storage import digests
from nullbooth.storage.digests import digest, file_digest

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@pytest.fixture(autouse=True)
def own_memory(tmp_path, monkeypatch):
    """Keep the cache of digests in a folder of the test."""
    path = tmp_path / "cache" / "nullbooth" / "fingerprints.json"
    monkeypatch.setattr(digests, "_REMEMBERED", path)
    return path


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    for name, content in {
        "model_index.json": json.dumps(INDEX).encode(),
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": bytes(range(256)) * 8,
        "tokenizer/merges.txt": b"a b",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def flip_byte(path, place: int = 1000) -> None:
    """Change one byte of a file, but not its size and modification time."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # clocks of file systems are coarse
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


# --- models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json", "tokenizer/merges.txt"]
)
def test_one_byte_makes_another_model(model, name):
    first = model_identity(str(model))
    flip_byte(model / name)
    second = model_identity(str(model))
    assert second != first
    flip_byte(model / name)
    assert model_identity(str(model)) == first


def test_a_copy_elsewhere_is_the_same_model(model, tmp_path):
    first = model_identity(str(model))
    copied = shutil.copytree(model, tmp_path / "elsewhere" / "copy", copy_function=shutil.copy)
    assert model_identity(str(copied)) == first


def test_touching_files_changes_nothing(model):
    first = model_identity(str(model))
    for path in model.rglob("*"):
        os.utime(path, (1, 1))
    assert model_identity(str(model)) == first


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "LICENSE.txt",
        "notes.json",
        "sample.png",
        "whole-checkpoint.safetensors",
        ".DS_Store",
        "._model_index.json",
        "unet/._config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/optimizer.safetensors",
        "unet/old/config.json",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "feature_extractor/preprocessor_config.json",
        "tokenizer/notes.txt",
        "vae_decoder/config.json",
    ],
)
def test_files_that_are_not_loaded_do_not_count(model, name):
    first = model_identity(str(model))
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"anything")
    assert model_identity(str(model)) == first


@pytest.mark.parametrize(
    "name",
    [
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/vocab.json",
        "tokenizer/added_tokens.json",
        "tokenizer/spiece.model",
    ],
)
def test_another_loaded_file_is_another_model(model, name):
    first = model_identity(str(model))
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("{}")
    assert model_identity(str(model)) != first


def test_names_count_beside_contents(model):
    (model / "tokenizer/vocab.json").write_text("{}")
    first = model_identity(str(model))
    (model / "tokenizer/vocab.json").rename(model / "tokenizer/tokenizer.json")
    assert model_identity(str(model)) != first


def test_the_identities_of_the_embedded_models_are_unchanged():
    """Names of kept results contain these hashes."""
    assert model_identity(str(ROOT / "resources/tinyworld")) == "f97572a82649a5e1"
    for name, known in {"clip": "749926e6e6b09688", "dino": "40e4684c1a136c98"}.items():
        assert model_identity(str(ROOT / "resources/evaluators" / name), index="config.json") == known


@pytest.mark.parametrize("whole", ["unet", "unet/diffusion_pytorch_model.safetensors", "tokenizer"])
def test_files_behind_links_count(model, tmp_path, whole):
    first = model_identity(str(model))
    elsewhere = tmp_path / "elsewhere"
    (model / whole).rename(elsewhere)
    (model / whole).symlink_to(elsewhere)
    assert model_identity(str(model)) == first
    file = elsewhere if elsewhere.is_file() else sorted(elsewhere.iterdir())[-1]
    flip_byte(file)
    assert model_identity(str(model)) != first
    other = tmp_path / "other"
    shutil.copytree(elsewhere, other) if elsewhere.is_dir() else shutil.copy(elsewhere, other)
    seen = model_identity(str(model))
    (model / whole).unlink()
    (model / whole).symlink_to(other)
    assert model_identity(str(model)) == seen, "by content, whatever the folder"


def test_shards_count_and_strays_among_them_do_not(model):
    folder = model / "unet"
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in [*shards, "diffusion_pytorch_model-00003-of-00003.safetensors"]:
        (folder / name).write_text(name)
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    seen = [model_identity(str(model))]
    for name, counts in {
        shards[1]: True,
        "diffusion_pytorch_model-00003-of-00003.safetensors": False,
        "diffusion_pytorch_model.safetensors": False,  # diffusers reads the shards
    }.items():
        flip_byte(folder / name)
        seen.append(model_identity(str(model)))
        assert (seen[-1] != seen[-2]) == counts, name
    (folder / shards[0]).unlink()
    with pytest.raises(FileNotFoundError, match="00001-of-00002"):
        model_identity(str(model))


def test_a_variant_counts_in_place_of_the_plain_weights(model):
    plain, other = (model / f"unet/diffusion_pytorch_model{middle}.safetensors" for middle in ("", ".fp16"))
    shutil.copy(plain, other)
    first = model_identity(str(model), variant="fp16")
    flip_byte(plain)
    assert model_identity(str(model), variant="fp16") == first
    flip_byte(other)
    assert model_identity(str(model), variant="fp16") != first
    other.unlink()
    assert model_identity(str(model), variant="fp16") == model_identity(str(model)), "parts without the variant"


@pytest.mark.parametrize(
    ("name", "counts"),
    [("README.txt", False), ("model.fp16.safetensors", False), ("training_args.json", False), ("vocab.json", True)],
)
def test_the_identity_of_an_evaluator_covers_its_loaded_files(tmp_path, name, counts):
    folder = shutil.copytree(ROOT / "resources/evaluators/clip", tmp_path / "clip")
    first = model_identity(str(folder), index="config.json")
    (folder / name).write_text("{}")
    assert (model_identity(str(folder), index="config.json") != first) == counts


def test_hashes_are_remembered(model, own_memory):
    first = model_identity(str(model))
    remembered = json.loads(own_memory.read_text())
    assert len(remembered) == 4
    assert model_identity(str(model)) == first
    # Hashes are cached: another cached value gives another identity.
    own_memory.write_text(json.dumps(dict.fromkeys(remembered, "0")))
    assert model_identity(str(model)) != first
    own_memory.unlink()
    assert model_identity(str(model)) == first


@pytest.mark.parametrize("broken", ["read-only", "a file", "none"])
def test_without_a_place_to_remember_files_are_read_again(model, tmp_path, monkeypatch, broken):
    first = model_identity(str(model))
    place = tmp_path / "place"
    if broken == "a file":
        place.touch()
    elif broken == "read-only":
        monkeypatch.setattr(digests, "write_text", denied)
    monkeypatch.setattr(digests, "_REMEMBERED", None if broken == "none" else place / "nullbooth/fingerprints.json")
    assert model_identity(str(model)) == first
    assert not place.is_dir()


def denied(path, _text):
    raise PermissionError(13, "Permission denied", str(path))


@pytest.mark.parametrize(
    ("home", "cache", "expected"),
    [
        ("/users/a", None, "/users/a/.cache"),
        ("/users/a", "", "/users/a/.cache"),
        ("/users/a", "relative", "/users/a/.cache"),
        ("/users/a", "/cache", "/cache"),
        (None, "/cache", "/cache"),
        (None, None, None),
    ],
)
def test_the_folder_of_caches(monkeypatch, home, cache, expected):
    """Never a relative path, which would be in the folder of the project or the package."""

    def unknown_user(_uid):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown_user)
    for key, value in {"HOME": home, "XDG_CACHE_HOME": cache}.items():
        monkeypatch.setenv(key, value) if value is not None else monkeypatch.delenv(key, raising=False)
    assert digests._cache_folder() == (Path(expected) if expected else None)


def test_missing_folders_and_folders_of_something_else(tmp_path):
    for name in (str(tmp_path / "none"), "./none", "none", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=f"'{name}' is neither a folder nor a Hub id"):
            model_identity(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no model_index\.json"):
        model_identity(str(tmp_path / "empty"))


def test_hub_models_go_by_commit(own_memory, tmp_path, monkeypatch):
    """A branch may move: jobs must load the commit that it pointed to when the run was planned."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"model: 'owner/name', revision main: .* not in the Hub's cache"):
        model_identity("owner/name")
    commit = "a" * 40
    for revision, its_commit in {"main": commit, "v2": "b" * 40}.items():
        repo = tmp_path / "models--owner--name"
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / revision).write_text(its_commit)
        (repo / "snapshots" / its_commit).mkdir(parents=True)
        (repo / "snapshots" / its_commit / "model_index.json").write_text("{}")
    assert model_identity("owner/name") == f"owner/name@{commit}"
    assert model_identity("owner/name", "v2") == f"owner/name@{'b' * 40}"
    assert model_identity("owner/name", "c" * 40) == f"owner/name@{'c' * 40}", "a commit needs no network"


def test_weights_of_a_hub_model_may_be_here(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "a" * 40
    assert model_folder("resources/tinyworld", None) == Path("resources/tinyworld")
    snapshot = tmp_path / "models--owner--name/snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    assert model_folder("owner/name", commit) is None, "without its weights"
    (snapshot / "unet").mkdir()
    (snapshot / "unet/diffusion_pytorch_model.safetensors").touch()
    assert model_folder("owner/name", commit) == snapshot
    assert model_folder("owner/name", "c" * 40) is None


# --- prompts -----------------------------------------------------------------------------------------


def test_prompts_without_comments_blank_lines_order_and_repetitions(tmp_path):
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("# people\n\na man\n  a woman  \n\n#a dog\na café\n", encoding="utf-8")
    other.write_text("a woman\na café\n\n# other words\na man\na man", encoding="utf-8")
    assert read_prompts(one) == ["a café", "a man", "a woman"]
    assert read_prompts(str(other)) == read_prompts(one)
    other.write_text("a woman\na cafe\na man")
    assert digest(read_prompts(other)) != digest(read_prompts(one))


def test_a_byte_order_mark_is_not_part_of_a_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# people\na man\n", encoding="utf-8-sig")
    assert read_prompts(path) == ["a man"]
    path.write_text("a man\n", encoding="utf-8-sig")
    assert read_prompts(path) == ["a man"]


def test_no_prompts(tmp_path):
    path = tmp_path / "none.txt"
    path.write_text("# only a comment\n\n")
    with pytest.raises(ValueError, match=r"none\.txt: no prompts in it"):
        read_prompts(path)
    with pytest.raises(InputError, match=r"missing\.txt': no such file"):
        read_prompts(tmp_path / "missing.txt")


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert len({digest(v) for v in ({"a": 1}, {"a": 2}, {"a": [1]}, [1, 2], [2, 1], "", None)}) == 7


def test_file_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_prompt_seeds_are_fixed_and_differ():
    assert prompt_seed("a red star", 0) == 0xCD2CB375  # trajectories on disk depend on it
    seeds = {prompt_seed(f"prompt {i}", seed) for i in range(200) for seed in range(3)}
    assert len(seeds) == 600
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_seeded_noise_is_the_same_whatever_else_is_drawn():
    torch.manual_seed(1)
    first = seeded_noise(7, (2, 3))
    torch.rand(5)
    assert seeded_noise(7, (2, 3)).equal(first)
    assert not seeded_noise(8, (2, 3)).equal(first)
    noise = seeded_noise(0, (100_000,))
    assert abs(noise.mean()) < 0.02
    assert noise.std().item() == pytest.approx(1, abs=0.02)
