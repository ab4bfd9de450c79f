"""The table of families: its entries, and that one entry is all that a new family needs."""

import inspect
from importlib import import_module
from types import SimpleNamespace

import diffusers
import families
import pytest
import strip
import tiny
import torch
from running import script
from saved_adapters import adapter_of

from nullbooth import export_lora, load_adapter
from nullbooth.adapters.export import keys_of
from nullbooth.errors import InputError
from nullbooth.models import files
from nullbooth.models.attention_maps import without_maps
from nullbooth.models.families import FAMILIES, family_of
from nullbooth.models.loading import ModelSource, denoiser_of, load_pipeline
from nullbooth.models.sites import find_sites
from nullbooth.models.sites_by_name import DEFAULT
from nullbooth.planning import shapes_exact, shapes_from_headers
from nullbooth.statistics.eigenvectors import decompose_store
from nullbooth.statistics.records import TrajectoryStore
from nullbooth.statistics.site_projectors import site_projectors
from nullbooth.statistics.sums import sum_shards
from nullbooth.storage.tensorfile import load_tensors


def test_every_family_has_one_entry_and_a_tiny_model_in_the_tests():
    assert [name for name, family in FAMILIES.items() if family.denoiser != name] == []
    assert {type(denoiser_of(make())).__name__ for make in families.FAMILIES.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_inputs_of_every_family_can_be_made(name):
    module, _, function = FAMILIES[name].inputs.partition(":")
    assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_pipelines_pack_latents_and_pass_constants_as_their_entries_say(family):
    pipeline = families.FAMILIES[family]()
    entry = family_of(type(denoiser_of(pipeline)).__name__)
    takes = inspect.signature(denoiser_of(pipeline).forward).parameters
    assert bool(entry.pack) == hasattr(pipeline, "_pack_latents")
    assert set(entry.constants) <= set(takes)
    assert entry.part == ("unet" if hasattr(pipeline, "unet") else "transformer")


@pytest.fixture
def added(monkeypatch):
    """The new family's entry in the table, and its class in diffusers, where those of all families are."""
    monkeypatch.setattr(diffusers, strip.FAMILY.denoiser, strip.StripTransformer2DModel, raising=False)
    known = frozenset({*files.diffusers_names(), strip.FAMILY.denoiser})
    monkeypatch.setattr(files, "diffusers_names", lambda: known)
    monkeypatch.setattr("nullbooth.models.parts.diffusers_names", lambda: known, raising=False)
    monkeypatch.setitem(FAMILIES, strip.FAMILY.denoiser, strip.FAMILY)


@pytest.fixture
def folder(tmp_path):
    strip.pipeline_of(families.FAMILIES["PixArt-Sigma"]()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_new_family_is_checked_and_planned(added, folder):
    files.check_pipeline(folder)
    exact = shapes_exact.pipeline_shapes(str(folder), None, DEFAULT, "fp32", resolution=16)
    planned = shapes_from_headers.read(folder, DEFAULT, 16, precision="fp32")
    assert shapes_from_headers.tokens_of(strip.FAMILY.denoiser, 77, None) == 9
    assert (planned.parameters, planned.latent) == (exact.parameters, exact.latent)
    assert {r.width for r in planned.readings} == {r.width for r in exact.readings}
    assert exact.flops > 0


def test_a_new_family_protects_prompts_from_its_pipeline_to_its_adapter(added, folder, tmp_path):
    config = {"model": str(folder), "device": "cpu", "precision": "fp32", "weights": "fp32", "resolution": None}
    config |= {"offload": False, "protect": {"batch": 2, "negatives": []}}
    config |= dict.fromkeys(("revision", "variant", "model_config", "attention"))
    sampler = {"scheduler": None, "options": {}, "steps": 1, "guidance": 3.0, "arguments": {"max_sequence_length": 8}}
    script("trajectory").main(tmp_path / "trajectory.zarr", ["a red ring"], sampler, 0, {}, config)
    assert set(TrajectoryStore(tmp_path / "trajectory.zarr").constants()) == {"strip_ids"}
    script("moments").main(tmp_path / "moments.zarr", tmp_path / "trajectory.zarr", 0, list(DEFAULT), {}, config)
    sum_shards(tmp_path / "sums.zarr", [tmp_path / "moments.zarr"], {"all": {}}, {})
    decompose_store(tmp_path / "projectors.zarr", tmp_path / "sums.zarr", {})
    stacks, _ = site_projectors([str(tmp_path / "projectors.zarr")], {}, "energy", tiny.ENERGY)
    pipeline = load_pipeline(ModelSource(str(folder)), torch.device("cpu"))
    assert set(stacks) == set(find_sites(denoiser_of(pipeline)))
    assert without_maps(denoiser_of(pipeline)) is None
    path = adapter_of(pipeline, tmp_path / "adapter.safetensors")
    info = SimpleNamespace(denoiser=strip.FAMILY.denoiser)
    assert keys_of(info) == ["diffusers"]
    export_lora(path, tmp_path / "lora.safetensors")
    names = load_tensors(tmp_path / "lora.safetensors", "pt", "a LoRA", "")[0]
    assert all(name.startswith("transformer.") for name in names)
    load_adapter(pipeline, path).unload()


def test_a_family_without_an_entry_is_refused_by_name(folder, monkeypatch):
    monkeypatch.setattr(diffusers, strip.FAMILY.denoiser, strip.StripTransformer2DModel, raising=False)
    known = "Stable Diffusion 1, 2 and XL or PixArt or Sana or Stable Diffusion 3 or FLUX.1"
    with pytest.raises(InputError, match=f"this StripTransformer2DModel has no known cross-attention, .* use {known}"):
        files.check_denoiser({"_class_name": "StripTransformer2DModel"}, "model")
    with pytest.raises(InputError, match="StripTransformer2DModel is not a known denoiser"):
        shapes_exact.pipeline_shapes(str(folder), None, DEFAULT, "fp32")
