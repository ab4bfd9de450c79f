"""Inputs of users: each fault gives one clear message and loses no files; unusual but valid inputs work."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
import yaml
from hostile import SCRIPT, SMILE, TOKEN, UNUSUAL, World, overlay, photograph
from hostile_rows import ROWS
from PIL import Image
from running import ROOT, snakemake
from safetensors.torch import load_file, save_file

from nullbooth.adapters.export import export_lora
from nullbooth.adapters.file import AdapterInfo
from nullbooth.adapters.loaded import load_adapter
from nullbooth.errors import InputError
from nullbooth.inputs.photographs import captions, list_images
from nullbooth.inputs.settings import complete
from nullbooth.models.loading import ModelSource, load_denoiser, load_pipeline
from nullbooth.models.pixels import load_image
from nullbooth.models.schedulers import set_sampler
from nullbooth.statistics.trajectories import record
from nullbooth.workflow.preflight import check_inputs

CPU = torch.device("cpu")


@pytest.fixture
def world(tmp_path, pipeline_folder):
    return World(tmp_path, shutil.copytree(pipeline_folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def project():
    """The project's own config, which users' configs extend, and its schema."""
    return [yaml.safe_load((ROOT / "config" / name).read_text()) for name in ("config.yaml", "schema.yaml")]


def checked(project, world: World, changes: dict | None = None) -> list[str]:
    """Check a config as the workflow does before it plans anything."""
    config, schema = project
    found = check_inputs(complete(overlay(overlay(config, world.config), changes or {}), schema))
    return [
        warning for warning in found if "settings that suit only the embedded model" not in warning
    ]  # such as its evaluators


def contents(world: World) -> dict[str, str]:
    """Return hashes of all files of a world."""
    files = (p for p in world.folder.rglob("*") if p.is_file() and not p.is_symlink())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_faults_are_refused_with_a_hint(project, world, row):
    changes = row.spoil(world)
    before = contents(world)
    with pytest.raises(InputError) as caught:
        checked(project, world, changes)
    said = str(caught.value)
    assert [part for part in row.says if part not in said] == [], said
    assert len(said) < 700
    assert "\n" not in said
    assert TOKEN not in said
    assert "secret" not in said
    assert contents(world) == before


def test_the_world_itself_is_sound(project, world):
    assert checked(project, world) == []
    assert not (world.folder / "results").exists()


def test_names_of_rows_differ():
    assert len({row.name for row in ROWS}) == len(ROWS) > 100


WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


FAULTS = [(part, fault) for part in WEIGHTS for fault in ("missing", "shape", "nan", "infinite", "unexpected")]
FAULTS.remove(("text_encoder", "unexpected"))  # they are often taken out of a larger model


@pytest.mark.parametrize(("part", "fault"), FAULTS)
def test_weights_that_are_not_the_models_are_refused(project, world, part, fault):
    path = world.model / part / WEIGHTS[part]
    weights = load_file(path)
    name = sorted(name for name in weights if weights[name].ndim == 2)[-1]
    match fault:
        case "missing":
            del weights[name]
        case "shape":
            weights[name] = torch.zeros(3, 5)
        case "unexpected":
            name = "beyond.weight"
            weights[name] = torch.zeros(2)
        case _:
            weights[name][0, 0] = float("nan" if fault == "nan" else "-inf")
    save_file(weights, path, {"format": "pt"})
    assert checked(project, world) == [], "headers do not tell"
    loaders = [load_pipeline, load_denoiser] if part == "unet" else [load_pipeline]
    for load in loaders:
        with pytest.raises(InputError) as caught:
            load(ModelSource(str(world.model)), CPU)
        said = str(caught.value)
        assert said.startswith(f"model: {world.model}/{part}: ")
        assert name.removeprefix("text_model.") in said
        assert "download the model again" in said


def test_an_encoder_without_all_its_weights_measures_nothing(tmp_path):
    from nullbooth.evaluation.encoders import load_encoder

    folder = shutil.copytree(ROOT / "resources/evaluators/dino", tmp_path / "dino")
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=rf"evaluate: .*dino: {name} is missing"):
        load_encoder(str(folder))


def test_faults_that_only_a_loaded_model_shows_are_refused(pipeline):
    """For Hub models, whose files are not here when the workflow is planned."""
    with pytest.raises(InputError, match=r"sampler\.steps: 1001: DDIMScheduler has 1000"):
        record(pipeline, ["a star"], steps=1001, guidance=1.0, seed=0, batch=1)
    with pytest.raises(InputError, match=r"'star star .* has 10000 tokens, of which the text encoder reads 6"):
        record(pipeline, ["star " * 10_000], steps=1, guidance=1.0, seed=0, batch=1)
    with pytest.raises(InputError, match=r"sampler\.options\.timestep_spacng: .*did you mean 'timestep_spacing'"):
        set_sampler(pipeline, None, {"timestep_spacng": "trailing"})


# --- what is unusual, and works ------------------------------------------------------------------------


def test_unusual_prompts_are_read_as_they_stand(tmp_path, project, world):
    from nullbooth.inputs.prompts import read_prompts

    path = world.prompts / "protected.txt"
    path.write_bytes("\r\n".join([f"  {text}\t" for text in UNUSUAL]).encode("utf-8-sig"))
    assert read_prompts(path) == sorted(UNUSUAL)
    assert all("protect.prompts" in warning or "longer" in warning for warning in checked(project, world))


def test_prompts_that_are_cut_off_are_named_with_their_tokens(project, world):
    (world.prompts / "protected.txt").write_text("a red star\na red star on a blue background\n")
    [warning] = checked(project, world)
    assert warning.startswith("protect.prompts: 'a red star on a blue background' has 7 tokens")
    assert "reads 6: the rest is lost" in warning
    (world.prompts / "protected.txt").write_text("".join(f"a red star on a blue background {i}\n" for i in range(9)))
    assert checked(project, world)[3:] == ["9 prompts are longer than the text encoder reads"]


@pytest.mark.parametrize("texts", [[*UNUSUAL, "a photo of a sks dog's CAF\u00c9, 123 \u00bd  x"]])
def test_clips_tokens_are_counted_as_transformers_counts_them(tmp_path, texts):
    """From vocab.json and merges.txt, the only files in Stable Diffusion 1.5."""
    from transformers import CLIPTokenizer

    from nullbooth.models.prompt_length import tokens

    pieces = [chr(i) for i in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
    vocabulary = [*pieces, *(f"{piece}</w>" for piece in pieces), "st", "ar</w>", "star</w>"]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\ns t\na r</w>\nst ar</w>\n")
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}')
    limit, count = tokens(tmp_path)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    assert limit == 75
    assert count(texts) == [len(ids) for ids in theirs(texts, add_special_tokens=False).input_ids]


GREY16 = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(64, 0)


def rotated() -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    image.paste((255, 0, 0), (0, 0, 32, 32))
    image.getexif()[0x0112] = 3  # upside down
    return image


def transparent() -> Image.Image:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (32, 0, 64, 64))
    return image


RED, WHITE = (1, -1, -1), (1, 1, 1)
PHOTOGRAPHS = {  # name: the picture, options, and colours at the upper left and lower right
    "cmyk.jpg": (Image.new("CMYK", (64, 64), (0, 255, 255, 0)), {"quality": 95}, RED, RED),
    "grey16.png": (Image.fromarray(GREY16), {}, (-1, -1, -1), WHITE),
    "turned.jpg": (rotated(), {"quality": 95}, WHITE, RED),
    "telephone.jpg": (rotated(), {"format": "MPO", "save_all": True, "append_images": [photograph()]}, WHITE, RED),
    "cut out.png": (transparent(), {}, RED, WHITE),
    "still.gif": (transparent(), {}, RED, WHITE),
    "q.webp": (rotated(), {"lossless": True}, WHITE, RED),
}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_unusual_photographs_are_seen_as_they_look(project, world, name):
    image, options, first, last = PHOTOGRAPHS[name]
    exif = {} if name.endswith("gif") else {"exif": image.getexif()}
    image.save(world.photos / name, **exif, **options)
    assert checked(project, world) == []
    x = load_image(world.photos / name, 64)
    torch.testing.assert_close(x[:, 4, 4], torch.tensor(first, dtype=torch.float32), atol=0.15, rtol=0)
    torch.testing.assert_close(x[:, -4, -4], torch.tensor(last, dtype=torch.float32), atol=0.15, rtol=0)


def test_sixteen_bits_of_grey_keep_their_shades(tmp_path):
    Image.fromarray(GREY16).save(tmp_path / "a.png")
    expected = torch.linspace(-1, 1, 64).expand(3, 64, 64)
    torch.testing.assert_close(load_image(tmp_path / "a.png", 64), expected, atol=0.01, rtol=0)


def test_unusual_names_of_files_and_captions(project, world):
    for path in list(world.photos.iterdir()):
        path.unlink()
    names = [f"{SMILE} #1?.png", "a%20b&<i>.png", "\u05db.PNG"]
    for name in names:
        photograph().save(world.photos / name, "PNG")
    photograph().save(world.photos / "inside.png")
    (world.photos / "link.png").symlink_to("inside.png")
    (world.photos / "._a%20b.png").write_text("what macOS leaves beside files on other disks")
    (world.photos / f"{SMILE} #1?.TXT").write_text(SCRIPT + "\nsecond line", encoding="utf-8-sig")
    checked(project, world)
    paths = list_images(world.photos)
    assert {p.name for p in paths} == {*names, "inside.png", "link.png"}
    said = dict(zip([p.name for p in paths], captions(paths, "default"), strict=True))
    assert said[names[0]] == SCRIPT + "\nsecond line"
    assert said["link.png"] == "default"


# --- adapters ------------------------------------------------------------------------------------------


def saved_adapter(pipeline, protected, folder):
    info = AdapterInfo("pooled", 4, tuple(protected.timesteps), "UNet2DConditionModel", "abc", "a star", "energy: 0.1")
    tiny.adapter(pipeline.unet, protected, "pooled").save(folder / "adapter.safetensors", info)
    return folder / "adapter.safetensors"


def test_an_adapter_of_a_model_with_the_same_layers_is_refused_where_it_matters(pipeline, protected, tmp_path):
    path = tmp_path / "adapter.safetensors"
    info = AdapterInfo(
        "pooled", 4, tuple(protected.timesteps), "UNet2DConditionModel", "abc", "a sks star", "energy: 0.1"
    )
    tiny.adapter(pipeline.unet, protected, "pooled").save(path, info)
    load_adapter(pipeline, path).unload()
    load_adapter(pipeline, path, model="abc").unload()
    with pytest.raises(InputError, match=r"adapter\.safetensors: made for the model abc, not for def; train it again"):
        load_adapter(pipeline, path, model="def")
    assert not pipeline.unet._forward_pre_hooks


def test_an_adapter_is_not_replaced_by_its_own_export(pipeline, protected, tmp_path):
    path = tmp_path / "adapter.safetensors"
    info = AdapterInfo(
        "pooled", 4, tuple(protected.timesteps), "UNet2DConditionModel", "abc", "a sks star", "energy: 0.1"
    )
    tiny.adapter(pipeline.unet, protected, "pooled").save(path, info)
    before = path.read_bytes()
    with pytest.raises(InputError, match="the adapter itself; give the LoRA another name"):
        export_lora(path, tmp_path / "." / "adapter.safetensors")
    assert path.read_bytes() == before


# --- through the workflow itself -----------------------------------------------------------------------


def planned(world: World, *arguments: str, **changes):
    path = world.folder / "settings.yaml"
    path.write_text(yaml.safe_dump(overlay(world.config, changes)))
    return snakemake("--dry-run", "--quiet", "--configfile", str(path), *arguments)


def test_the_workflow_reports_faults_and_changes_no_files(world):
    (world.photos / "b.jpg").write_text("not a picture")
    results = world.folder / "results/samples"
    results.mkdir(parents=True)
    (results / "index.html").write_text("of an earlier run")
    (world.folder / "settings.yaml").touch()
    before = contents(world)
    done = planned(world)
    after = contents(world)
    assert done.returncode != 0
    assert f"config: {world.photos}/b.jpg: not a readable image" in done.stderr
    assert "Traceback" not in done.stderr
    assert {**after, str(world.folder / "settings.yaml"): ""} == {**before, str(world.folder / "settings.yaml"): ""}


def test_planning_needs_no_torch(world):
    """On a cluster, every job plans the workflow. Warnings are shown, and the workflow continues."""
    blocked = world.folder / "blocked"
    blocked.mkdir()
    for name in ("torch", "diffusers", "transformers"):
        (blocked / f"{name}.py").write_text(f"raise ImportError('planning imports {name}')")
    (world.prompts / "protected.txt").write_text("a red star on a blue background\n")
    path = world.folder / "settings.yaml"
    path.write_text(yaml.safe_dump(world.config))
    command = [sys.executable, "-m", "snakemake", "--nolock", "--cores", "1", "--dry-run", "--configfile", str(path)]
    environ = {**os.environ, "PYTHONPATH": f"{blocked}:{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "config: protect.prompts: 'a red star on a blue background' has 7 tokens" in done.stderr
    assert "adapter" in done.stdout + done.stderr


@pytest.mark.parametrize("results", [5, "a{b}", ""])
def test_invalid_results_folders_are_refused(world, results):
    """Snakemake reads this setting before the schema is checked."""
    done = planned(world, results=results)
    assert done.returncode != 0
    assert f"config: results: {results!r}" in done.stderr
    assert "Traceback" not in done.stderr
