"""Loading of models: variants, precision, and the device of each part."""

import functools
import gc
import shutil
import weakref

import families
import ldm
import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from running import ROOT
from tensorboard.backend.event_processing import event_accumulator
from transformers import CLIPConfig, CLIPImageProcessor

from nullbooth import load_adapter
from nullbooth.adapters.file import AdapterInfo, read_adapter
from nullbooth.errors import InputError, SettingsError
from nullbooth.learning.job import learn_concept
from nullbooth.models.calls import first_call
from nullbooth.models.files import attention_names, check_pipeline
from nullbooth.models.loading import (
    ModelSource,
    beside_denoiser,
    denoiser_alone,
    denoiser_of,
    device_of,
    load_denoiser,
    load_pipeline,
    move_beside,
    set_attention,
)
from nullbooth.models.precision import autocast, computed_in, passes_in
from nullbooth.models.sampling import sample
from nullbooth.models.sites_by_name import DEFAULT
from nullbooth.planning import shapes_from_headers
from nullbooth.statistics.trajectories import record
from nullbooth.workflow.preflight import check_attention

CPU = torch.device("cpu")


@pytest.fixture
def halved(tmp_path):
    """A pipeline with half-precision weights only, except the VAE, which has no such variant."""
    tiny.save_pipeline(tmp_path / "model")
    pipeline = load_pipeline(ModelSource(str(tmp_path / "model")), CPU)
    for name in ("unet", "text_encoder"):
        for path in (tmp_path / "model" / name).glob("*.safetensors"):
            path.unlink()
        getattr(pipeline, name).half().save_pretrained(tmp_path / "model" / name, variant="fp16")
    return tmp_path / "model"


def test_a_variant_is_loaded_for_parts_that_have_it(halved, pipeline):
    check_pipeline(halved, variant="fp16")
    loaded = load_pipeline(ModelSource(str(halved), variant="fp16"), CPU)
    for name in ("unet", "text_encoder", "vae"):
        known = getattr(pipeline, name).state_dict()
        for key, value in getattr(loaded, name).state_dict().items():
            expected = known[key] if name == "vae" else known[key].half().float()
            assert value.equal(expected), f"{name}.{key}"
    assert load_denoiser(ModelSource(str(halved), variant="fp16"), CPU).dtype == torch.float32


def test_headers_are_those_of_the_variant(halved, pipeline_folder):
    found = shapes_from_headers.read(halved, DEFAULT, variant="fp16")
    known = shapes_from_headers.read(pipeline_folder, DEFAULT)
    assert (found.parameters, found.text_parameters) == (known.parameters, known.text_parameters)
    assert found.readings == known.readings


def test_a_variant_that_is_not_there_is_refused(halved):
    with pytest.raises(SettingsError, match=r"variant: .*unet has no weights of the variant 'bf16'; remove it"):
        check_pipeline(halved, variant="bf16")
    with pytest.raises(InputError, match=r"no model\.safetensors; rename model\.fp16"):
        check_pipeline(halved)


# --- parts that are never loaded -------------------------------------------------------------------------


@pytest.fixture
def censored(tmp_path):
    """A pipeline with a safety checker that rejects every picture, named as in old models on the Hub."""
    tower = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    vision = {**tower, "image_size": 32, "patch_size": 16}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, text_config=tower, projection_dim=16))
    checker.concept_embeds_weights.data.fill_(-2.0)
    parts = load_pipeline(ModelSource(str(tiny_folder(tmp_path))), CPU).components
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    parts |= {"safety_checker": checker, "feature_extractor": processor}
    StableDiffusionPipeline(**parts, requires_safety_checker=True).save_pretrained(tmp_path / "censored")
    path = tmp_path / "censored/model_index.json"
    path.write_text(path.read_text().replace("CLIPImageProcessor", "CLIPFeatureExtractor"))
    return tmp_path / "censored"


def tiny_folder(folder):
    tiny.save_pipeline(folder / "plain")
    return folder / "plain"


def test_a_safety_checker_is_never_loaded(censored, pipeline):
    check_pipeline(censored)
    loaded = load_pipeline(ModelSource(str(censored)), CPU)
    assert (loaded.safety_checker, loaded.feature_extractor) == (None, None)
    drawn, known = (sample(p, ["a red star"], [0], steps=2, guidance=3.0) for p in (loaded, pipeline))
    assert drawn.equal(known)
    for name in ("safety_checker", "feature_extractor"):
        shutil.rmtree(censored / name)
    check_pipeline(censored)
    load_pipeline(ModelSource(str(censored)), CPU)


def test_a_safety_checker_among_configs_of_a_single_file_is_not_loaded(censored, tmp_path):
    file = ldm.save(load_pipeline(ModelSource(str(censored)), CPU), tmp_path / "one.safetensors")
    check_pipeline(censored, "model_config", file=file)
    loaded = load_pipeline(ModelSource(str(file), model_config=str(censored)), CPU)
    assert (loaded.safety_checker, loaded.feature_extractor) == (None, None)


def test_pictures_have_no_watermark(tmp_path, monkeypatch):
    """diffusers adds one itself if its package is installed."""
    families.save("Stable Diffusion XL", tmp_path / "model")
    drawing = type(families.FAMILIES["Stable Diffusion XL"]())
    start = drawing.__init__

    @functools.wraps(start)
    def marked(self, *args, **kwargs):
        start(self, *args, **kwargs)
        self.watermark = "a mark"

    monkeypatch.setattr(drawing, "__init__", marked)
    assert load_pipeline(ModelSource(str(tmp_path / "model")), CPU).watermark is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"in_channels": 9}, "in_channels: 9, but latents of the VAE have 4"),
        ({"class_embed_type": "timestep"}, "class_embed_type: 'timestep'"),
    ],
)
def test_pipelines_that_need_more_than_a_prompt_are_refused_when_loaded(tmp_path, changes, said):
    """The files of a Hub model may not be checked earlier."""
    tiny.save_pipeline(tmp_path)
    shutil.rmtree(tmp_path / "unet")
    tiny.unet(**changes).save_pretrained(tmp_path / "unet")
    with pytest.raises(InputError, match=said):
        load_pipeline(ModelSource(str(tmp_path)), CPU)


def test_a_tokenizer_that_knows_no_words_is_refused_when_loaded(tmp_path):
    tiny.save_pipeline(tmp_path)
    (tmp_path / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer has .* tokens, but its text encoder has 450"):
        load_pipeline(ModelSource(str(tmp_path)), CPU)


# --- precision of weights ------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_have_the_requested_type_except_the_vae(pipeline_folder, pipeline, weights, dtype):
    loaded = load_pipeline(ModelSource(str(pipeline_folder), weights=weights), CPU)
    for name in ("unet", "text_encoder", "vae"):
        known = getattr(pipeline, name).state_dict()
        for key, value in getattr(loaded, name).state_dict().items():
            expected = known[key].to(dtype) if known[key].is_floating_point() and name != "vae" else known[key]
            assert value.dtype == expected.dtype, f"{name}.{key}"
            assert value.equal(expected), f"{name}.{key}"
    denoiser = load_denoiser(ModelSource(str(pipeline_folder), weights=weights), CPU)
    assert all(p.equal(q) for p, q in zip(denoiser.parameters(), loaded.unet.parameters(), strict=True))
    assert denoiser.dtype == dtype


def test_a_vae_does_not_compute_in_float16(pipeline):
    """Its largest activations would be infinite in float16. Passes in bfloat16 do not change."""
    latents = 1e5 * torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    picture = 1e5 * torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact, coded = pipeline.vae.decode(latents).sample, pipeline.vae.encode(picture).latent_dist.mode()
        with autocast(CPU, "fp16"):
            assert not torch.isfinite(pipeline.vae.decoder(latents)).all(), "the premise of this test"
            assert pipeline.vae.decode(latents).sample.equal(exact)
            assert pipeline.vae.encode(picture).latent_dist.mode().equal(coded)
        with autocast(CPU, "bf16"):
            assert 0 < tiny.change(pipeline.vae.decode(latents).sample, exact) < 0.1
        assert pipeline.vae.decode(latents.bfloat16()).sample.dtype == torch.float32


@pytest.mark.parametrize("weights", ["bf16", "fp16"])
def test_pictures_in_half_precision_are_near_those_in_full(pipeline_folder, pipeline, weights):
    half = load_pipeline(ModelSource(str(pipeline_folder), weights=weights), CPU)
    how = {"steps": 3, "guidance": 3.0, "precision": weights}
    known, found = (sample(p, ["a red star"], [0], **how) for p in (pipeline, half))
    assert 0 < tiny.change(found, known) < 0.05


# --- parts that come and go ------------------------------------------------------------------------------


@pytest.fixture
def offloaded(pipeline_folder):
    """Uses accelerate's hooks as on a GPU, but from CPU to CPU: the moves themselves are not tested."""
    found = load_pipeline(ModelSource(str(pipeline_folder)), CPU, offload=True)
    assert not hasattr(found.unet, "_hf_hook"), "without a GPU there is nothing to do"
    found.enable_model_cpu_offload(device="cpu")
    return found


def test_hooks_of_offloading_leave_recording_and_drawing_as_they_are(pipeline, offloaded, protected, tmp_path):
    assert device_of(offloaded).type == "cpu"
    how = dict(steps=3, guidance=3.0, seed=0, batch=2)
    known, found = (record(p, ["a red star", "a blue ring"], **how) for p in (pipeline, offloaded))
    assert found.latents.equal(known.latents)
    assert all(found.conditions[key].equal(value) for key, value in known.conditions.items())
    adapter = tiny.randomise(tiny.adapter(tiny.unet(), protected, "timestep"))
    adapter.save(tmp_path / "a.safetensors", AdapterInfo("timestep", 4, tuple(protected.timesteps), "", "m", "p", "r"))
    before = {name: p.clone() for name, p in offloaded.unet.state_dict().items()}
    drawn = []
    for p in (pipeline, offloaded):
        base = sample(p, ["a red star"], [0], steps=3, guidance=3.0)
        loaded = load_adapter(p, tmp_path / "a.safetensors")
        drawn.append(sample(p, ["a red star"], [0], steps=3, guidance=3.0))
        assert tiny.change(drawn[-1], base) > 1e-3
        loaded.unload()
    assert drawn[0].equal(drawn[1])
    assert all(p.equal(before[name]) for name, p in offloaded.unet.state_dict().items())


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_inputs_of_the_denoiser_are_recorded_before_it_runs(family):
    pipeline, small = families.FAMILIES[family](), families.SMALL.get(family, {})
    pipeline.set_progress_bar_config(disable=True)
    ran, prompts = [], ["a red star", "a blue ring"]
    denoiser_of(pipeline).register_forward_hook(lambda *_: ran.append(1))
    found = first_call(pipeline, prompts, guidance=1.0, seed=0, **small)
    assert not ran
    known = record(pipeline, prompts, steps=2, guidance=1.0, seed=0, batch=2, **small)
    assert ran
    assert found.latents.equal(known.latents[:1])
    assert found.timesteps == known.timesteps[:1]
    for a, b in ((found.conditions, known.conditions), (found.constants, known.constants)):
        assert a.keys() == b.keys()
        assert all(a[key].equal(b[key]) for key in a)


def test_parts_that_training_does_not_need_are_removed(offloaded):
    gone = [weakref.ref(part) for part in beside_denoiser(offloaded).values()]
    assert len(gone) == 2
    denoiser = denoiser_alone(offloaded, CPU, keep=False)
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert not any(p.requires_grad for p in denoiser.parameters())
    assert not hasattr(denoiser, "_hf_hook")


def test_parts_that_validation_needs_are_moved_back(pipeline, offloaded):
    known = sample(pipeline, ["a red star"], [0], steps=3, guidance=3.0)
    denoiser_alone(offloaded, CPU, keep=True)
    move_beside(offloaded, CPU)
    assert sample(offloaded, ["a red star"], [0], steps=3, guidance=3.0).equal(known)


@pytest.mark.parametrize(("weights", "every"), [("fp32", 0), ("bf16", 1)])
def test_a_whole_training(pipeline_folder, tmp_path, request, weights, every):
    """Encode pictures and captions, remove or keep other parts, train, validate and save, as the workflow does."""
    AcceleratorState._reset_state(reset_partial_state=True)
    request.addfinalizer(lambda: AcceleratorState._reset_state(reset_partial_state=True))
    images = str(ROOT / "resources/subjects/starling/train")
    concept = {"name": "starling", "identifier": "vbk", "class": "star", "prompt": "a photo of a {subject}"}
    sampler = {"scheduler": None, "options": {}, "arguments": {}}
    config = {"device": "cpu", "model": str(pipeline_folder), "revision": None, "variant": None, "weights": weights}
    config |= {
        "attention": None,
        "concepts": [{"name": "starling", "images": images}],
        "sampler": {"steps": 2, "guidance": 3.0},
    }
    config["validate"] = {"every": every, "prompts": ["a photo of a {subject}"]}
    config |= {"attention": None, "protect": {"pack": None}, "model_config": None, "trackers": ["tensorboard"]}
    train = {"steps": 2, "batch": 2, "flip": True, "buckets": False, "precision": weights, "seed": 0}
    train |= {"gpus": 1, "inversion_steps": 0}
    method = {
        "method": "lora",
        "scope": "pooled",
        "rank": 4,
        "alpha": None,
        "rule": None,
        "prior": None,
        "train": train,
    }
    out = {"adapter": str(tmp_path / "adapter.safetensors"), "config": str(tmp_path / "config.yaml")}
    given = ([], [], None, [], concept, method, sampler, None, list(DEFAULT), {"model": "m"}, config)
    learn_concept(out, *given)
    tensors, info = read_adapter(out["adapter"], "m")
    assert info.prompt == "a photo of a vbk star"
    assert all(value.count_nonzero() for value in tensors.values())
    [events] = [event_accumulator.EventAccumulator(str(path)) for path in tmp_path.rglob("events.*")]
    events.Reload()
    assert [event.step for tag in events.Tags()["images"] for event in events.Images(tag)] == [1, 2][: 2 * every]


# --- attention -------------------------------------------------------------------------------------------


@pytest.fixture
def restored():
    """diffusers keeps this setting for the whole process."""
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName(before))


def test_another_attention_of_diffusers(restored):
    pipeline = families.FAMILIES["FLUX.1"]()
    pipeline.set_progress_bar_config(disable=True)
    transformer, small = pipeline.transformer, families.SMALL["FLUX.1"]

    def drawn() -> torch.Tensor:
        return record(pipeline, ["a red star"], steps=2, guidance=3.0, seed=0, batch=1, **small).latents[-1]

    usual = drawn()
    set_attention(transformer, None)
    assert drawn().equal(usual)
    set_attention(transformer, "_native_math")
    assert all(
        m.processor._attention_backend == "_native_math" for m in transformer.modules() if hasattr(m, "processor")
    )
    assert tiny.change(drawn(), usual) < 1e-5
    with pytest.raises(InputError, match=r"attention: flash: .*install `flash-attn"):
        set_attention(transformer, "flash")


def test_attention_of_models_without_a_choice_is_refused(unet):
    set_attention(unet, None)
    with pytest.raises(
        InputError, match="attention: native: diffusers has no choice of back ends for UNet2DConditionModel"
    ):
        set_attention(unet, "native")


def test_attention_back_ends_are_those_of_diffusers():
    known = {backend.value for backend in AttentionBackendName}
    assert set(attention_names()) == {name for name in known if not name.endswith("_hub")}
    check_attention(None)
    check_attention("sage")
    with pytest.raises(
        SettingsError, match="attention: 'flsh' is not a back end of diffusers; use null or one of flash"
    ):
        check_attention("flsh")
    with pytest.raises(SettingsError, match="flash_hub"):
        check_attention("flash_hub")


# --- precision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "capability", "used"),
    [
        ("x86_64", "AVX2", "fp32"),
        ("AMD64", "DEFAULT", "fp32"),
        ("x86_64", "AVX512", "bf16"),
        ("aarch64", "NEON", "bf16"),
    ],
)
def test_half_precision_is_used_only_on_processors_that_support_it(monkeypatch, capsys, machine, capability, used):
    """A message says if float32 is used instead. Half-precision weights compute in half precision."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    assert computed_in(CPU, "bf16") == used
    assert computed_in(CPU, "bf16", torch.bfloat16) == "bf16"
    assert computed_in(torch.device("cuda"), "bf16") == "bf16"
    assert computed_in(CPU, "fp32") == "fp32"
    with passes_in(CPU, "bf16"):
        assert torch.is_autocast_enabled("cpu") == (used == "bf16")
    assert ("precision: bf16: using fp32, which is faster" in capsys.readouterr().out) == (used == "fp32")
    with pytest.raises(ValueError, match="precision 'int8': use one of fp32, bf16, fp16"):
        computed_in(CPU, "int8")
