"""Warnings before the first job: unused files, captions without the subject, settings of the embedded model."""

import shutil

import pytest
import yaml
from hostile import ROOT, World, overlay, photograph

from nullbooth.errors import InputError
from nullbooth.inputs.settings import complete
from nullbooth.workflow.borrowed import borrowed
from nullbooth.workflow.preflight import check_inputs


@pytest.fixture
def world(tmp_path, pipeline_folder):
    return World(tmp_path, shutil.copytree(pipeline_folder, tmp_path / "model"))


@pytest.fixture
def completed(config, schema):
    """Return a function that completes the project's config with changes."""
    return lambda *changes: complete(overlaid(config, changes), schema)


def overlaid(config: dict, changes: tuple[dict, ...]) -> dict:
    for change in changes:
        config = overlay(config, change)
    return config


def warned(completed, world, **changes) -> list[str]:
    found = check_inputs(completed(world.config, changes))
    return [
        warning.replace(str(world.folder), "")
        for warning in found
        if warning.startswith("concepts") and " tokens" not in warning
    ]


def test_unused_files_are_reported(completed, world):
    assert warned(completed, world) == []
    holdout = world.photos / "holdout"
    holdout.mkdir()
    photograph().save(holdout / "0.png")
    for path in (world.photos / "clip.mov", holdout / "all.zip", world.photos / "Thumbs.db"):
        path.write_text("x")
    first, second = warned(completed, world, concepts=[world.concept(holdout=str(holdout))])
    assert first.startswith("concepts.0.holdout: /photos/holdout: not used: all.zip; photographs are read from")
    assert second.startswith("concepts.0.images: /photos: not used: clip.mov; photographs are read from this folder")


def test_unusable_colour_profiles_are_reported(completed, world):
    photograph().save(world.photos / "0.png", icc_profile=b"nonsense")
    [warning] = warned(completed, world)
    assert warning.startswith("concepts.0.images: /photos/0.png: its colour profile is not used (cannot open profile")


def test_captions_without_the_subject_are_reported(completed, world):
    for name, text in {"0": "1girl, solo", "1": "a SKS star", "2": "a sksy {class}"}.items():
        (world.photos / f"{name}.txt").write_text(text)
    [warning] = warned(completed, world)
    assert warning.startswith("concepts.0.images: 2 of 3 captions name the subject neither by {subject} nor by 'sks'")
    assert "'1girl, solo'" in warning
    assert "(0.png, 2.png)" in warning
    assert "write {subject} into them" in warning


def test_a_prompt_without_the_subject_is_reported_if_it_is_used(completed, world):
    changes = {"concepts": [world.concept(prompt="a photo")]}
    [warning] = warned(completed, world, **changes)
    assert warning.startswith("concepts.0.prompt: 3 of 3 captions name the subject neither by {subject} nor by 'sks'")
    for name in "012":
        (world.photos / f"{name}.txt").write_text("a {subject}")
    assert warned(completed, world, **changes) == []
    for name in "012":
        (world.photos / f"{name}.txt").unlink()
    assert warned(completed, world, concepts=[world.concept(prompt="a sks star")]) == []


def test_all_missing_prompt_files_are_reported_at_once(completed, world):
    config = completed(world.config, {"edits": [{"from": "a", "to": "b"}], "edit": {"templates": "none.txt"}})
    (world.prompts / "protected.txt").unlink()
    (world.prompts / "class.txt").write_text("# nothing\n")
    (world.prompts / "unrelated.txt").write_bytes(b"\xff")
    with pytest.raises(InputError) as caught:
        check_inputs(config)
    keys = [line.partition(": ")[0] for line in str(caught.value).splitlines()]
    assert keys == ["protect.prompts", "sample.prompts.class", "sample.prompts.unrelated", "edit.templates"]


def test_the_embedded_model_gets_no_warning(completed, root, monkeypatch):
    monkeypatch.chdir(root)
    assert borrowed(completed()) == []
    assert borrowed(completed({"model": "./resources/../resources/tinyworld/"})) == []
    minimal = yaml.safe_load((ROOT / "config/minimal.yaml").read_text())
    assert borrowed(completed(minimal)) == []


def test_another_model_with_settings_of_the_embedded_model_gets_hints(completed, root, monkeypatch):
    monkeypatch.chdir(root)
    [warning] = borrowed(completed({"model": "a/b"}))
    assert warning.startswith("model: a/b has settings that suit only the embedded model: set protect.prompts")
    named = [
        "config/prompts/photographic.txt",
        "sample.prompts (subject, class, unrelated)",
        "evaluate.clip to a model",
    ]
    named += [
        "evaluate.dino to",
        "sampler.guidance as in",
        "train.learning_rate to",
        "identifier of concepts 0, 1, 2 to",
    ]
    assert [part for part in named if part not in warning] == []
    assert len(warning) < 900


def test_changed_settings_are_no_longer_reported(completed, world, root, monkeypatch):
    monkeypatch.chdir(root)
    own = {
        "protect": {"prompts": "config/prompts/photographic.txt"},
        "evaluate": {"clip": "openai/clip-vit-large-patch14", "dino": "facebook/dinov2-base"},
        "sampler": {"guidance": 7.5},
        "train": {"learning_rate": 1e-4},
    }
    assert borrowed(completed(world.config, own)) == []
    for key, part in {
        "sampler": "sampler.guidance",
        "train": "train.learning_rate",
        "evaluate": "evaluate.clip",
    }.items():
        [warning] = borrowed(completed(world.config, {k: value for k, value in own.items() if k != key}))
        assert part in warning
        assert "protect.prompts" not in warning
    pack = {"protect": {"prompts": "config/prompts/protected.txt", "pack": "a/pack"}}
    assert borrowed(completed(world.config, own, pack)) == []
    assert borrowed(completed(world.config, own, {"protect": {"prompts": "config/prompts/minimal.txt"}})) != []
