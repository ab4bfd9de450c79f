"""Models as they lie on the disk: variants of their weights."""

import pytest
import tiny
import torch

from nullbooth import headers
from nullbooth.modelfiles import check_pipeline
from nullbooth.models import load_denoiser, load_pipeline
from nullbooth.selection import DEFAULT
from nullbooth.settings import SettingsError
from nullbooth.text import InputError

CPU = torch.device("cpu")


@pytest.fixture
def halved(tmp_path):
    """A pipeline in half precision alone, but for the VAE, which has no such variant."""
    tiny.save_pipeline(tmp_path / "model")
    pipeline = load_pipeline(str(tmp_path / "model"), CPU)
    for name in ("unet", "text_encoder"):
        for path in (tmp_path / "model" / name).glob("*.safetensors"):
            path.unlink()
        getattr(pipeline, name).half().save_pretrained(tmp_path / "model" / name, variant="fp16")
    return tmp_path / "model"


def test_a_variant_is_loaded_where_there_is_one(halved, pipeline):
    check_pipeline(halved, variant="fp16")
    loaded = load_pipeline(str(halved), CPU, variant="fp16")
    for name in ("unet", "text_encoder", "vae"):
        known = getattr(pipeline, name).state_dict()
        for key, value in getattr(loaded, name).state_dict().items():
            expected = known[key] if name == "vae" else known[key].half().float()
            assert value.equal(expected), f"{name}.{key}"
    assert load_denoiser(str(halved), CPU, variant="fp16").dtype == torch.float32


def test_headers_are_those_of_the_variant(halved, pipeline_folder):
    found = headers.read(halved, DEFAULT, variant="fp16")
    known = headers.read(pipeline_folder, DEFAULT)
    assert (found.parameters, found.text_parameters) == (known.parameters, known.text_parameters)
    assert found.readings == known.readings


def test_a_variant_that_is_not_there_is_refused(halved):
    with pytest.raises(SettingsError, match=r"variant: .*unet has no weights of the variant 'bf16'; take it away"):
        check_pipeline(halved, variant="bf16")
    with pytest.raises(InputError, match=r"no model\.safetensors; rename model\.fp16"):
        check_pipeline(halved)
