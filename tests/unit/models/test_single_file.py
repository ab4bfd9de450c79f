"""Models in one .safetensors file, with the names of the original repositories."""

import json
import os
import shutil
from pathlib import Path

import families
import ldm
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from nullbooth import load_adapter
from nullbooth.adapters.export import write_card
from nullbooth.adapters.file import AdapterInfo
from nullbooth.errors import InputError
from nullbooth.models.files import check_pipeline
from nullbooth.models.identity import known_configs, model_folder, single_identity
from nullbooth.models.loading import ModelSource, load_denoiser, load_pipeline, resolution_of
from nullbooth.models.sites_by_name import DEFAULT
from nullbooth.planning import shapes_from_headers
from nullbooth.planning.cost import Model
from nullbooth.storage import digests

CPU = torch.device("cpu")
MAKE = {
    "Stable Diffusion 1": lambda: families.stable_diffusion("epsilon"),
    "Stable Diffusion 2": lambda: families.stable_diffusion("v_prediction"),
    "Stable Diffusion XL": lambda: families.stable_diffusion_xl(second=48),  # diffusers tells models apart by widths
}
THREE = {"Stable Diffusion 3": False, "Stable Diffusion 3.5": True}


def stable_diffusion_3(five: bool):
    """A pipeline whose first text encoder has an identity projection, which files leave out."""
    pipeline = families.stable_diffusion_3(five, second=48)
    torch.nn.init.eye_(pipeline.text_encoder.text_projection.weight)
    return pipeline


class Single:
    """A pipeline as a folder, as one file, and as a folder without weights."""

    def __init__(self, folder: Path, family: str):
        pipeline = stable_diffusion_3(THREE[family]) if family in THREE else MAKE[family]()
        pipeline.save_pretrained(folder / "whole")
        self.whole = folder / "whole"
        self.file = ldm.save(load_pipeline(ModelSource(str(self.whole)), CPU), folder / "files/model.safetensors")
        self.configs = ldm.without_weights(self.whole, folder / "configs")

    def load(self, **options):
        return load_pipeline(ModelSource(str(self.file), model_config=str(self.configs), **options), CPU)

    def edit(self, change) -> None:
        """Change the dictionary of the file's weights."""
        weights = load_file(self.file)
        change(weights)
        save_file(weights, self.file, {"format": "pt"})


@pytest.fixture(scope="module", params=[*MAKE, *THREE])
def any_family(request, tmp_path_factory) -> Single:
    return Single(tmp_path_factory.mktemp("single"), request.param)


@pytest.fixture(scope="module", params=MAKE)
def every(request, tmp_path_factory) -> Single:
    return Single(tmp_path_factory.mktemp("single"), request.param)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Single:
    return Single(tmp_path_factory.mktemp("single"), "Stable Diffusion 1")


@pytest.fixture
def single(made, tmp_path, monkeypatch) -> Single:
    """A model of its own for each test, with its own cache of digests."""
    monkeypatch.setattr(digests, "_REMEMBERED", tmp_path / "memory.json")
    copied = object.__new__(Single)
    shutil.copytree(made.whole.parent, tmp_path / "all")
    copied.whole, copied.configs = tmp_path / "all/whole", tmp_path / "all/configs"
    copied.file = tmp_path / "all/files/model.safetensors"
    return copied


def draw(pipeline) -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    options = {"max_sequence_length": 4} if hasattr(pipeline, "text_encoder_3") else {}
    given = dict(num_inference_steps=2, generator=noise, output_type="np", **options)
    return torch.from_numpy(pipeline("a red star", **given).images)


# --- what is loaded --------------------------------------------------------------------------------------


def test_a_file_draws_what_its_folder_draws(any_family):
    check_pipeline(any_family.configs, "model_config", file=any_family.file)
    one, folder = any_family.load(), load_pipeline(ModelSource(str(any_family.whole)), CPU)
    assert type(one) is type(folder)
    assert resolution_of(one) == resolution_of(folder)
    for name in [name for name, part in folder.components.items() if isinstance(part, torch.nn.Module)]:
        assert not getattr(one, name).training
        found, known = getattr(one, name).state_dict(), getattr(folder, name).state_dict()
        assert found.keys() == known.keys()
        assert all(found[key].equal(value) for key, value in known.items()), name
    torch.testing.assert_close(draw(one), draw(folder), rtol=0, atol=1e-5)  # memory layouts of tensors differ


def test_the_vae_stays_in_full_precision(any_family):
    one, known = any_family.load(weights="bf16"), load_pipeline(ModelSource(str(any_family.whole), weights="bf16"), CPU)
    for name in [name for name, part in known.components.items() if isinstance(part, torch.nn.Module)]:
        expected = known.components[name].state_dict()
        assert all(value.equal(expected[key]) for key, value in one.components[name].state_dict().items()), name
    assert one.vae.dtype == torch.float32
    assert one.text_encoder.dtype == torch.bfloat16


def test_the_denoiser_alone(any_family, monkeypatch):
    monkeypatch.setattr("diffusers.AutoencoderKL.from_single_file", None)
    found = load_denoiser(ModelSource(str(any_family.file), model_config=str(any_family.configs)), CPU)
    known = load_denoiser(ModelSource(str(any_family.whole)), CPU)
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())
    assert found.state_dict().keys() == known.state_dict().keys()
    assert all(value.equal(known.state_dict()[key]) for key, value in found.state_dict().items())


def test_half_precision_files_are_loaded_in_the_requested_type(single):
    single.edit(lambda weights: weights.update({name: weight.half() for name, weight in weights.items()}))
    known = load_pipeline(ModelSource(str(single.whole)), CPU)
    for weights, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        loaded = single.load(weights=weights)
        for name in ("unet", "text_encoder"):
            for key, value in getattr(known, name).state_dict().items():
                assert getattr(loaded, name).state_dict()[key].equal(value.half().to(dtype)), key


def saved_adapter(pipeline, protected, folder: Path) -> Path:
    info = AdapterInfo("pooled", 4, tuple(protected.timesteps), "UNet2DConditionModel", "m", "a star", "energy: 0.1")
    tiny.randomise(tiny.adapter(pipeline.unet, protected, "pooled")).save(folder / "adapter.safetensors", info)
    return folder / "adapter.safetensors"


def test_adapters_fit_either(single, protected, tmp_path):
    folder, one = load_pipeline(ModelSource(str(single.whole)), CPU), single.load()
    path, before = saved_adapter(folder, protected, tmp_path), draw(folder)
    for pipeline in (folder, one):
        load_adapter(pipeline, path)
    assert draw(one).equal(draw(folder))
    assert not draw(one).equal(before)


def in_cache(folder: Path, cache: Path, name: str, commit: str = "a" * 40) -> str:
    """Put a folder into a cache of the Hub, as a download would."""
    repo = cache / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(commit)
    shutil.copytree(folder, repo / "snapshots" / commit)
    return commit


def test_configs_come_from_the_hub_where_none_are_named(single, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert known_configs(single.file) == name
    with pytest.raises(FileNotFoundError, match=f"model_config: '{name}', revision main: .* not in the Hub's cache"):
        single_identity(single.file, name)
    commit = in_cache(single.configs, tmp_path / "hub", name)
    assert single_identity(single.file, name).partition("@")[2] == commit
    assert model_folder(name, commit) is None
    folder = model_folder(name, commit, weights=False)
    assert folder.name == commit
    expected = draw(load_pipeline(ModelSource(str(single.whole)), CPU))
    for configs, revision in ((None, commit), (name, commit), (None, None)):
        assert draw(load_pipeline(ModelSource(str(single.file), revision, model_config=configs), CPU)).equal(expected)


def test_the_configs_that_diffusers_finds_are_cached(single, monkeypatch):
    found = known_configs(single.file)
    monkeypatch.setattr("diffusers.loaders.single_file_utils.fetch_diffusers_config", None)
    assert known_configs(single.file) == found
    monkeypatch.undo()


def test_a_file_that_diffusers_cannot_name(single):
    """A Stable Diffusion 3 of an unknown size."""
    names = {"joint_blocks.0.context_block.adaLN_modulation.1.bias": torch.ones(9216), "pos_embed": torch.ones(1, 7, 3)}
    single.edit(lambda weights: weights.update(names))
    with pytest.raises(InputError, match=r"diffusers does not know this model .* set model_config"):
        known_configs(single.file)


# --- what it is ------------------------------------------------------------------------------------------


def test_another_file_or_config_is_another_model_and_a_moved_one_is_not(single):
    first = single_identity(single.file, str(single.configs))
    moved = single.file.rename(single.file.with_name("another.safetensors"))
    assert single_identity(moved, str(single.configs)) == first
    assert single_identity(moved, str(single.whole)) == first, "weights beside the configs do not count"
    seen = {first}
    content = bytearray(moved.read_bytes())
    content[-1] ^= 1
    moved.write_bytes(content)
    seen.add(single_identity(moved, str(single.configs)))
    path = single.configs / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "steps_offset": 0}))
    seen.add(single_identity(moved, str(single.configs)))
    (single.configs / "notes.txt").write_text("a note")
    assert single_identity(moved, str(single.configs)) in seen, "what is not loaded does not count"
    (single.configs / "tokenizer/added_tokens.json").write_text("{}")
    seen.add(single_identity(moved, str(single.configs)))
    assert len(seen) == 4


def test_a_files_hash_is_remembered(single, monkeypatch):
    first = single_identity(single.file, str(single.configs))
    monkeypatch.setattr(digests, "file_digest", None)
    assert single_identity(single.file, str(single.configs)) == first
    os.utime(single.file, (1, 1))
    with pytest.raises(TypeError):
        single_identity(single.file, str(single.configs))


def like(reading):
    return reading.width, reading.static, reading.sites, reading.outs


@pytest.mark.parametrize("sites", [DEFAULT, ("*.attn2.to_[qv]", "!*.to_v"), ("self-attention", "feed-forward")])
def test_headers_of_a_file_give_the_same_shapes_as_those_of_a_folder(every, sites):
    known, found = (
        shapes_from_headers.read(every.whole, sites),
        shapes_from_headers.read(every.configs, sites, file=every.file),
    )
    assert sorted(map(like, found.readings)) == sorted(map(like, known.readings))
    assert {**vars(found), "name": "", "readings": ()} == {**vars(known), "name": "", "readings": ()}
    assert isinstance(found, Model)


def test_patterns_that_a_file_has_no_names_for_leave_memory_unknown(every):
    with pytest.raises(ValueError, match=r"down_blocks\.\*"):
        shapes_from_headers.read(every.configs, ["down_blocks.*"], file=every.file)


@pytest.mark.parametrize("any_family", THREE, indirect=True)
def test_fused_linears_leave_memory_unknown(any_family):
    with pytest.raises(ValueError, match="'cross-attention' is neither a kind of linear"):
        shapes_from_headers.read(any_family.configs, DEFAULT, file=any_family.file)


def test_a_card_says_how_to_load_the_file(single, protected, tmp_path):
    path = saved_adapter(single.load(), protected, tmp_path)
    files = {"diffusers": "lora.safetensors"}
    write_card(path, tmp_path / "README.md", "my/model.safetensors", files, str(single.configs))
    card = (tmp_path / "README.md").read_text()
    assert "base_model: my/model.safetensors" in card
    assert "from diffusers import StableDiffusionPipeline\n" in card
    configs = os.path.relpath(single.configs, tmp_path)
    call = f"pipe = StableDiffusionPipeline.from_single_file('my/model.safetensors', config={configs!r})"
    assert f"{call}\n" in card


# --- what is refused -------------------------------------------------------------------------------------

PLACES = {
    "unet": "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
    "vae": "first_stage_model.decoder.mid.block_1.conv1.weight",
    "text_encoder": "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.weight",
}
FAULTS = {
    "missing": (lambda w, key: w.pop(key), "missing"),
    "shape": (lambda w, key: w.update({key: w[key][:1].clone()}), "shape"),
    "nan": (lambda w, key: w[key].view(-1)[:1].fill_(float("nan")), "NaN or infinite"),
    "infinite": (lambda w, key: w[key].view(-1)[:1].fill_(float("inf")), "NaN or infinite"),
}


@pytest.mark.parametrize("part", PLACES)
@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_are_not_the_models_are_refused(single, part, fault):
    change, said = FAULTS[fault]
    single.edit(lambda weights: change(weights, PLACES[part]))
    check_pipeline(single.configs, "model_config", file=single.file)  # not visible in the header
    with pytest.raises(InputError, match=rf"model: .*model\.safetensors: .*{said}"):
        single.load()
    if part == "unet":
        with pytest.raises(InputError, match=rf"model: .*model\.safetensors: .*{said}"):
            load_denoiser(ModelSource(str(single.file), model_config=str(single.configs)), CPU)


def test_a_denoiser_with_more_than_the_config_says_is_refused(single):
    name = "model.diffusion_model.middle_block.1.transformer_blocks.1.attn2.to_k.weight"
    single.edit(lambda weights: weights.update({name: torch.ones(4, 4)}))
    for load in (
        single.load,
        lambda: load_denoiser(ModelSource(str(single.file), model_config=str(single.configs)), CPU),
    ):
        with pytest.raises(InputError, match=r"unet: [\d,]+ numbers in the file, [\d,]+ in the model; "):
            load()


def test_a_file_without_a_part_is_never_filled_up_from_elsewhere(single):
    """Not even from weights in the folder of its configs, which might be pickles."""
    single.edit(lambda weights: [weights.pop(name) for name in list(weights) if name.startswith("cond_stage")])
    for load in (
        lambda: check_pipeline(single.whole, "model_config", file=single.file),
        lambda: load_pipeline(ModelSource(str(single.file), model_config=str(single.whole)), CPU),
    ):
        with pytest.raises(
            InputError, match=r"has no text_encoder \(cond_stage_model\.\* or .*: it is not a whole pipe"
        ):
            load()


def test_a_pipeline_that_diffusers_reads_from_no_file(single):
    families.save("PixArt-Sigma", single.configs.parent / "sigma")
    single.edit(lambda weights: weights.update({"text_encoders.t5xxl.transformer.shared.weight": torch.ones(2)}))
    with pytest.raises(
        InputError, match="PixArtSigmaPipeline: diffusers cannot read it from one file; give a pipeline"
    ):
        load_pipeline(ModelSource(str(single.file), model_config=str(single.configs.parent / "sigma")), CPU)


def test_a_pickle_is_refused_by_its_name(single):
    path = single.file.rename(single.file.with_suffix(".ckpt"))
    for load in (load_pipeline, load_denoiser):
        with pytest.raises(
            InputError, match=r"model: .*model\.ckpt is one file, but not a \.safetensors file; convert"
        ):
            load(ModelSource(str(path), model_config=str(single.configs)), CPU)


# --- through the workflow --------------------------------------------------------------------------------
