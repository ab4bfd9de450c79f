"""Exports draw the same pictures in tools without NullBooth."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import families
import pytest
import tiny
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image
from running import script
from safetensors import safe_open
from saved_adapters import adapter_of, draw, saved_with_word

from nullbooth import export_lora, fuse, load_adapter
from nullbooth.adapters.export import write_card
from nullbooth.adapters.file import AdapterInfo, read_adapter, write_adapter
from nullbooth.errors import InputError
from nullbooth.models.loading import denoiser_of

UNETS = ("Stable Diffusion 1", "Stable Diffusion 2", "Stable Diffusion XL", "LCM")
SAME = 1e-4  # of pictures in [0, 1]: x W + x D and x (W + D) are rounded differently


LOADABLE = [f for f in families.FAMILIES if f not in ("PixArt-Sigma",)]  # whose pipelines load LoRA files


@pytest.mark.parametrize(
    ("family", "keys"), [(f, "diffusers") for f in LOADABLE] + [(f, "kohya") for f in UNETS], ids=str
)
def test_a_lora_file_draws_the_same_pictures_in_plain_diffusers(tmp_path, family, keys):
    pipeline = families.FAMILIES[family]()
    path, base = adapter_of(pipeline, tmp_path / "adapter.safetensors"), draw(pipeline, family)
    export_lora(path, tmp_path / "lora.safetensors", keys)
    loaded = load_adapter(pipeline, path)
    ours = draw(pipeline, family)
    loaded.unload()
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    torch.testing.assert_close(draw(pipeline, family), ours, rtol=0, atol=SAME)
    assert (ours - base).abs().max() > 100 * SAME


def test_the_metadata_of_a_lora_file_describe_it(tmp_path):
    pipeline = families.FAMILIES["Stable Diffusion 1"]()
    path = adapter_of(pipeline, tmp_path / "adapter.safetensors", rank=5)
    export_lora(path, tmp_path / "lora.safetensors", "kohya")
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        said = file.metadata()
        alphas = {file.get_tensor(key).item() for key in file.keys() if key.endswith(".alpha")}  # noqa: SIM118
    assert alphas == {5.0}, "the scale is in the weights"
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("5", "5")
    assert said["modelspec.trigger_phrase"] == "a vbk star"
    write_card(path, tmp_path / "README.md", "owner/name", {"diffusers": "lora.safetensors"})
    card = (tmp_path / "README.md").read_text()
    assert "base_model: owner/name" in card
    assert 'weight_name="lora.safetensors"' in card
    assert "rank 5" in card
    assert "kohya" not in card


@pytest.mark.parametrize(
    ("width", "version", "name"),
    [
        (768, "sd_v1", "stable-diffusion-v1/lora"),
        (1024, "sd_v2", "stable-diffusion-v2/lora"),
        (2048, "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
        (96, None, "UNet2DConditionModel/lora"),
    ],
)
def test_a_lora_file_names_its_base_model(tmp_path, width, version, name):
    """AUTOMATIC1111 takes a file without a base model for SD 1 and hides it for SD XL."""
    tensors = {}
    for site, read in (("attn1.to_q", 8), ("attn2.to_k", width), ("attn2.to_v", width)):
        tensors[f"blocks.{site}.down"], tensors[f"blocks.{site}.up"] = torch.ones(1, 2, read), torch.ones(8, 2)
    info = AdapterInfo("pooled", 2, (0.0,), "UNet2DConditionModel", "m", "a vbk star", "r")
    write_adapter(tmp_path / "adapter.safetensors", tensors, info)
    for keys in ("diffusers", "kohya"):
        export_lora(tmp_path / "adapter.safetensors", tmp_path / f"{keys}.safetensors", keys)
        with safe_open(tmp_path / f"{keys}.safetensors", "pt") as file:
            said = file.metadata()
        assert said.get("ss_base_model_version") == version
        assert said["modelspec.architecture"] == name
        assert {"modelspec.sai_model_spec", "modelspec.implementation", "modelspec.title"} <= said.keys()


@pytest.mark.parametrize("with_word", [False, True], ids=["lora", "lora and word"])
def test_the_code_of_a_card_runs_in_its_folder(tmp_path, monkeypatch, with_word):
    """The model is a folder with a path relative to another folder."""

    monkeypatch.chdir(tmp_path)
    pipeline = families.FAMILIES["Stable Diffusion 1"]()
    pipeline.save_pretrained("models/base")
    path = Path("a.safetensors")
    saved_with_word(pipeline, path, "vbk") if with_word else adapter_of(pipeline, path)
    script("export").main("out/lora", str(path), "models/base")
    assert Path("out/lora/word.safetensors").exists() == with_word
    program = Path("out/lora/README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir("out/lora")
    exec(compile(program, "README.md", "exec"), {})
    with Image.open("picture.png") as picture:
        assert picture.size == (16, 16)


def test_a_card_escapes_prompt_and_model(tmp_path, pipeline):
    """Neither is interpreted as Markdown, HTML or YAML, and the code in the card stays valid."""
    prompt, model = "a `star` <script>\n# [x](y) ``` \"'", "odd: name # here"
    tensors, info = read_adapter(adapter_of(pipeline, tmp_path / "adapter.safetensors"))
    write_adapter(tmp_path / "odd.safetensors", tensors, replace(info, prompt=prompt))
    write_card(tmp_path / "odd.safetensors", tmp_path / "README.md", model, {"diffusers": "lora.safetensors"})
    _, front, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == model
    before, program, after = re.split("```(?:python)?\n", text)
    ast.parse(program)
    assert repr(prompt) in program
    for line in (before + after).splitlines():
        assert "<script>" not in re.sub("`[^`]*`", "", line)
        assert not line.startswith("# [x]")


def test_kohya_s_keys_of_a_transformer_are_refused(tmp_path):
    path = adapter_of(families.FAMILIES["FLUX.1"](), tmp_path / "adapter.safetensors")
    with pytest.raises(InputError, match="kohya's keys exist for UNets only, not for FluxTransformer2DModel"):
        export_lora(path, tmp_path / "lora.safetensors", "kohya")
    with pytest.raises(InputError, match="keys 'comfy': use one of diffusers, kohya"):
        export_lora(path, tmp_path / "lora.safetensors", "comfy")


@pytest.mark.parametrize("rank", [3, "full"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_fused_pipeline_draws_the_same_pictures_in_plain_diffusers(tmp_path, family, rank):
    pipeline = families.FAMILIES[family]()
    before = {key: value.clone() for key, value in denoiser_of(pipeline).state_dict().items()}
    path = adapter_of(pipeline, tmp_path / "adapter.safetensors", rank=rank)
    fuse(pipeline, path, tmp_path / "fused", scale=0.5)
    assert all(value.equal(before[key]) for key, value in denoiser_of(pipeline).state_dict().items())
    load_adapter(pipeline, path, scale=0.5)
    ours = draw(pipeline, family)
    torch.testing.assert_close(draw(DiffusionPipeline.from_pretrained(tmp_path / "fused"), family), ours)
    with pytest.raises(InputError, match="fused: exists already; name a new folder"):
        fuse(pipeline, path, tmp_path / "fused")


def test_an_adapter_that_depends_on_the_timestep_cannot_be_fused(tmp_path, pipeline):
    path = adapter_of(pipeline, tmp_path / "adapter.safetensors", timesteps=2)
    before = {key: value.clone() for key, value in pipeline.unet.state_dict().items()}
    with pytest.raises(InputError, match="scope timestep has different weights at each timestep, which one pipe"):
        fuse(pipeline, path, tmp_path / "fused")
    assert not (tmp_path / "fused").exists()
    assert all(value.equal(before[key]) for key, value in pipeline.unet.state_dict().items())


def test_the_file_of_an_adapter_includes_its_scale(tmp_path, pipeline, protected):
    """Loaders must not apply alpha / rank of training again."""
    adapter = tiny.randomise(tiny.adapter(pipeline.unet, protected, "pooled", 4, alpha=2.0))
    site = adapter.site_adapters[0]
    assert adapter.tensors()[f"{adapter.names[0]}.up"].equal(0.5 * site.up.detach())
