"""Rival methods: what they train and save, and that loading the result gives the trained model."""

import re
from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from test_training import SETTINGS, assert_same, data, scheduler
from test_training import losses as read_losses

from nullbooth.adapters.export import export_lora
from nullbooth.adapters.file import AdapterInfo, read_adapter, write_adapter
from nullbooth.adapters.loaded import LoadedAdapter
from nullbooth.inputs.methods import METHODS, prior_of
from nullbooth.learning.rivals import FineTune, Options, build
from nullbooth.learning.training import TrainData, train
from nullbooth.models.sites import find_sites

BRIEF = replace(SETTINGS, steps=4, batch=2, learning_rate=0.01)

RIVALS = [name for name in METHODS if name != "nullbooth"]


def rival(unet, method: str, rank: int = 8, **options) -> FineTune:
    torch.manual_seed(0)
    given = tiny.protected_inputs()

    @torch.no_grad()
    def passes() -> None:
        for latents, t in zip(given.latents, given.timesteps, strict=True):
            for i in range(len(latents)):
                unet(latents[i : i + 1], t, encoder_hidden_states=given.prompts[i : i + 1])

    return build(method, unet, find_sites(unet), Options(rank, passes=passes, **options))


def own_data(method: str) -> TrainData:
    found = data()
    if prior_of({"method": method, "prior": None}) == "images":
        return replace(found, prior=TrainData(found.latents.flip(0), found.conditions))
    if method == "prior-prediction":
        return replace(found, class_conditions={k: v.flip(0) for k, v in found.conditions.items()})
    return found


def outputs(unet) -> torch.Tensor:
    return tiny.predictions(unet, tiny.protected_inputs(seed=11))


@pytest.mark.parametrize("method", RIVALS)
def test_an_untrained_rival_equals_the_base_model(method):
    unet = tiny.unet()
    before = outputs(unet)
    rival(unet, method)
    assert tiny.change(outputs(unet), before) < 1e-5


@pytest.mark.parametrize("method", [method for method in RIVALS if not METHODS[method].own_weights])
def test_factors_are_float32_beside_half_precision_weights(method, tmp_path, request):
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate allows one precision per process
    request.addfinalizer(lambda: AcceleratorState._reset_state(reset_partial_state=True))
    unet = tiny.unet().to(torch.bfloat16)
    before, made = {name: p.clone() for name, p in unet.named_parameters()}, rival(unet, method)
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    train(
        unet, made, [own_data(method)], scheduler(), replace(BRIEF, precision="bf16"), tmp_path, log=lambda line: None
    )
    assert any(value.count_nonzero() for key, value in made.tensors().items() if key.endswith(".up"))
    weights = {name.replace(".base_layer", ""): p for name, p in unet.named_parameters() if "lora" not in name}
    assert_same(weights, before)


LEARNS = {
    "dreambooth": r".*",
    "dreambooth-prior": r".*",
    "custom-diffusion": r".*attn2\.to_[kv]\.weight",
    "lora": r".*attn2\.to_(q|k|v|out\.0)\.lora_[AB]\.default\.weight",
    "prior-prediction": r".*attn2\.to_(q|k|v|out\.0)\.lora_[AB]\.default\.weight",
    "replay": r".*attn2\.to_(q|k|v|out\.0)\.lora_[AB]\.default\.weight",
    "oft": r".*attn2\.to_(q|k|v|out\.0)\.oft_R\.default\.weight",
    "corda": r".*attn2\.to_(q|k|v|out\.0)\.lora_[AB]\.default\.weight",
}


@pytest.mark.parametrize("method", RIVALS)
def test_each_method_trains_its_own_parameters(method):
    unet = tiny.unet()
    made = rival(unet, method)
    learning = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert learning == {name for name, _ in unet.named_parameters() if re.fullmatch(LEARNS[method], name)}
    assert len(list(made.parameters())) == len(learning) > 0


@pytest.mark.parametrize("method", RIVALS)
def test_a_saved_rival_loads_as_the_trained_model_and_unloads_bit_by_bit(tmp_path, method):
    unet = tiny.unet()
    made = rival(unet, method)
    train(unet, made, [own_data(method)], scheduler(), BRIEF, tmp_path, log=lambda line: None)
    trained = outputs(unet)
    path = tmp_path / "adapter.safetensors"
    write_adapter(path, made.tensors(), AdapterInfo(method, 8, (0.0,), "UNet2DConditionModel", "m", "p", ""))

    plain = tiny.unet()
    before = outputs(plain)
    assert tiny.change(trained, before) > 1e-2, "training has an effect"
    tensors, info = read_adapter(path)
    loaded = LoadedAdapter(plain, tensors, info, 1.0)
    assert tiny.change(outputs(plain), trained) < 1e-4
    loaded.unload()
    assert outputs(plain).equal(before)


@pytest.mark.parametrize("method", ["dreambooth-prior", "prior-prediction", "oft"])
def test_a_resumed_rival_ends_in_the_same_weights(tmp_path, method):
    def learn(folder, die_after=None):
        unet = tiny.unet()
        made = rival(unet, method)

        def validate(step: int) -> torch.Tensor:
            if step == die_after:
                raise KeyboardInterrupt
            return torch.zeros(1, 3, 4, 4)

        folder.mkdir(exist_ok=True)
        options = dict(validate=validate, validate_every=1, log=lambda line: None)
        train(unet, made, [own_data(method)], scheduler(), BRIEF, folder, **options)
        return made.tensors()

    whole = learn(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", die_after=3)
    assert_same(learn(tmp_path / "cut"), whole)
    assert read_losses(tmp_path / "cut") == read_losses(tmp_path / "whole")


def test_prior_preservation_adds_the_loss_of_class_pictures(tmp_path):
    """The first loss is that of the photographs plus the weighted one of the class, each a separate mean."""
    found = {}
    for weight in (0.0, 1.0, 3.0):
        unet = tiny.unet()
        made = rival(unet, "dreambooth-prior")
        settings = replace(BRIEF, steps=1, prior_weight=weight)
        train(unet, made, [own_data("dreambooth-prior")], scheduler(), settings, tmp_path, run=str(weight), log=str)
        [(_, found[weight])] = read_losses(tmp_path)
    unet = tiny.unet()
    made = rival(unet, "dreambooth")
    train(unet, made, [data()], scheduler(), replace(BRIEF, steps=1), tmp_path, run="plain", log=str)
    [(_, plain)] = read_losses(tmp_path)
    assert found[0.0] == pytest.approx(plain, rel=1e-4)
    assert found[3.0] - found[0.0] == pytest.approx(3 * (found[1.0] - found[0.0]), rel=1e-4)
    assert found[1.0] > 1.2 * found[0.0]


def test_prior_prediction_keeps_outputs_near_the_base_model(tmp_path):
    """After the same training, outputs for class captions are nearer to the base model with a larger weight. The first
    loss equals that of plain LoRA, because nothing has changed yet."""

    @torch.no_grad()
    def of_class(unet) -> torch.Tensor:
        given = own_data("prior-prediction")
        prompts = given.class_conditions["encoder_hidden_states"]
        return torch.cat([tiny.predict(unet, given.latents, t, prompts) for t in (900.0, 500.0, 100.0)])

    base = of_class(tiny.unet())
    drift, first = {}, {}
    for weight in (0.0, 50.0):
        unet = tiny.unet()
        made = rival(unet, "prior-prediction")
        settings = replace(BRIEF, steps=40, batch=5, prior_weight=weight)
        train(unet, made, [own_data("prior-prediction")], scheduler(), settings, tmp_path, run=str(weight), log=str)
        first[weight] = read_losses(tmp_path)[0][1]
        drift[weight] = tiny.change(of_class(unet), base)
    assert first[50.0] == pytest.approx(first[0.0], rel=1e-5)
    assert drift[50.0] < 0.5 * drift[0.0]


def test_a_disabled_method_gives_the_base_model():
    unet = tiny.unet()
    before = outputs(unet)
    made = rival(unet, "lora")
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p))
    changed = outputs(unet)
    with made.disabled(unet):
        assert outputs(unet).equal(before)
    assert outputs(unet).equal(changed)
    assert all(p.requires_grad for p in made.parameters())


def test_a_lora_can_be_exported(tmp_path, pipeline):
    made = rival(pipeline.unet, "lora", alpha=4.0)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    expected = outputs(pipeline.unet)
    path = tmp_path / "adapter.safetensors"
    write_adapter(path, made.tensors(), AdapterInfo("lora", 8, (0.0,), "UNet2DConditionModel", "m", "p", ""))
    export_lora(path, tmp_path / "lora.safetensors")
    pipeline.unet.delete_adapters("default")
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    assert tiny.change(outputs(pipeline.unet), expected) < 1e-4


def test_corda_starts_in_directions_that_protected_inputs_use_least():
    """Its factors respond less to protected features than to random ones of the same size."""
    unet = tiny.unet()
    made = rival(unet, "corda", rank=4)
    layer = next(layer for name, layer in made._layers.items() if name.endswith("to_k"))
    prompts = tiny.protected_inputs().prompts.reshape(-1, tiny.WIDTH)
    other = torch.randn(200, tiny.WIDTH, generator=torch.Generator().manual_seed(1))
    down = layer.lora_A["default"].weight
    seen = F.linear(prompts, down).norm() / prompts.norm()
    assert seen < 0.5 * F.linear(other, down).norm() / other.norm()


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method 'lore'"):
        rival(tiny.unet(), "lore")
