"""Several adapters in one denoiser: their changes add up, and each can be scaled and unloaded separately."""

import pytest
import tiny
import torch
from saved_adapters import info_of

from nullbooth import fuse, load_adapter
from nullbooth.errors import InputError


@pytest.fixture
def paths(pipeline, tmp_path):
    """Files of an adapter that depends on the timestep, and of one that does not."""
    given, found = tiny.protected_inputs(), []
    for seed, scope in enumerate(("timestep", "pooled")):
        adapter = tiny.randomise(tiny.adapter(pipeline.unet, given, scope, 3 + seed))
        found.append(tmp_path / f"{scope}.safetensors")
        adapter.save(found[-1], info_of(adapter))
    return found


def weights(pipeline, timestep: float) -> dict[str, torch.Tensor]:
    """Return the weights after a pass at a timestep."""
    given = tiny.protected_inputs(seed=77)
    tiny.predict(pipeline.unet, given.latents[0], timestep, given.prompts)
    return {name: p.detach().clone() for name, p in pipeline.unet.named_parameters()}


def test_changes_of_two_adapters_add_up_at_every_timestep(pipeline, paths):
    base, alone = weights(pipeline, 901.0), []
    for path in paths:
        loaded = load_adapter(pipeline, path)
        alone.append([weights(pipeline, t) for t in (901.0, 101.0)])
        loaded.unload()
    first, second = (load_adapter(pipeline, path) for path in paths)
    second.scale = 0.5
    for i, t in enumerate((901.0, 101.0)):
        for name, value in weights(pipeline, t).items():
            expected = base[name] + (alone[0][i][name] - base[name]) + 0.5 * (alone[1][i][name] - base[name])
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    changed = [name for name in base if not alone[0][0][name].equal(alone[0][1][name])]
    assert changed, "one of the two depends on the timestep"
    assert not first.alone


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_unloading_one_adapter_leaves_the_other_as_if_alone(pipeline, paths, order):
    base = weights(pipeline, 501.0)
    loaded = [load_adapter(pipeline, path) for path in paths]
    weights(pipeline, 501.0)
    loaded[order[0]].unload()
    left = weights(pipeline, 501.0)
    loaded[order[1]].unload()
    assert all(value.equal(base[name]) for name, value in weights(pipeline, 501.0).items())
    load_adapter(pipeline, paths[order[1]])
    alone = weights(pipeline, 501.0)
    assert all(value.equal(alone[name]) for name, value in left.items())
    assert any(not value.equal(base[name]) for name, value in left.items())


def test_the_scale_of_a_loaded_adapter_can_be_set(pipeline, paths):
    base = weights(pipeline, 501.0)
    loaded = load_adapter(pipeline, paths[1], scale=1.0)
    whole = weights(pipeline, 501.0)
    loaded.scale = 0.25
    for name, value in pipeline.unet.named_parameters():  # takes effect without a pass
        torch.testing.assert_close(value - base[name], 0.25 * (whole[name] - base[name]), rtol=1e-4, atol=1e-6)
    loaded.scale = 0
    assert all(value.equal(base[name]) for name, value in weights(pipeline, 501.0).items())


def test_unloading_twice_does_nothing(pipeline, paths):
    base = weights(pipeline, 501.0)
    first, second = (load_adapter(pipeline, path) for path in paths)
    first.unload()
    first.unload()
    second.unload()
    assert all(value.equal(base[name]) for name, value in pipeline.unet.named_parameters())


def test_fusing_with_another_adapter_loaded_is_refused(pipeline, paths, tmp_path):
    load_adapter(pipeline, paths[0])
    before = weights(pipeline, 501.0)
    with pytest.raises(InputError, match="another adapter is loaded in the pipeline"):
        fuse(pipeline, paths[1], tmp_path / "fused")
    assert all(value.equal(before[name]) for name, value in weights(pipeline, 501.0).items())


def test_a_merged_adapter_becomes_part_of_the_model(pipeline, paths):
    """Its scale is kept, and another adapter can be loaded on top and unloaded."""
    _, pooled = paths
    loaded = load_adapter(pipeline, pooled, scale=0.5)
    at_work = weights(pipeline, 901.0)
    loaded.merge()
    assert all(value.equal(at_work[name]) for name, value in weights(pipeline, 101.0).items())
    second = load_adapter(pipeline, pooled)
    assert second.alone
    assert any(not value.equal(at_work[name]) for name, value in weights(pipeline, 101.0).items())
    second.unload()
    assert all(value.equal(at_work[name]) for name, value in weights(pipeline, 101.0).items())


def test_an_adapter_that_cannot_be_merged_stays_loaded(pipeline, paths):
    timestep, pooled = paths
    first = load_adapter(pipeline, timestep)
    with pytest.raises(InputError, match="scope timestep has different weights at each timestep"):
        first.merge()
    second = load_adapter(pipeline, pooled)
    with pytest.raises(InputError, match="another adapter is loaded in the same denoiser: unload or merge it first"):
        second.merge()
    before = weights(pipeline, 901.0)
    assert any(not value.equal(before[name]) for name, value in weights(pipeline, 101.0).items())
    second.unload()
    first.unload()


# --- other tools in the same pipeline --------------------------------------------------------------------


def latents_of(pipeline) -> torch.Tensor:
    return tiny.predict(pipeline.unet, *given_at(901.0))


def given_at(timestep: float) -> tuple:
    given = tiny.protected_inputs(seed=77)
    return given.latents[0], timestep, given.prompts


def load_other(pipeline) -> None:
    pipeline.unet.load_state_dict({name: p * 1.01 for name, p in pipeline.unet.named_parameters()})


def average(pipeline) -> None:
    for parameter in pipeline.unet.parameters():
        parameter.data.copy_(parameter.data * 1.01)


def fuse_lora(pipeline) -> None:
    from peft import LoraConfig

    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    pipeline.unet.fuse_lora()


def assign(pipeline) -> None:
    pipeline.unet.load_state_dict(
        {name: p.detach() * 1.01 for name, p in pipeline.unet.named_parameters()}, assign=True
    )


OTHERS = [load_other, average, fuse_lora, assign]


@pytest.mark.parametrize("others", OTHERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("at", [0, 1], ids=["timestep", "pooled"])
def test_weights_that_others_set_are_noticed_at_the_next_pass(pipeline, paths, others, at):
    loaded = load_adapter(pipeline, paths[at])
    latents_of(pipeline)
    others(pipeline)
    theirs = {name: p.detach().clone() for name, p in pipeline.unet.named_parameters()}
    with pytest.raises(InputError, match="something else has set the weights of"):
        latents_of(pipeline)
    with pytest.raises(InputError, match="they stay as they are"):
        loaded.unload()
    kept = [name for name, p in pipeline.unet.named_parameters() if p.equal(theirs[name])]
    assert len(kept) == len(theirs) or others is fuse_lora, "weights set by others stay unchanged"
    assert all(name in kept for name in theirs if ".to_q.base_layer.weight" in name)
    latents_of(pipeline)


@pytest.mark.parametrize("act", ["scale", "unload", "load"])
def test_nothing_overwrites_weights_that_others_set(pipeline, paths, act):
    loaded = load_adapter(pipeline, paths[1])
    latents_of(pipeline)
    load_other(pipeline)
    theirs = {name: p.detach().clone() for name, p in pipeline.unet.named_parameters()}
    with pytest.raises(InputError, match="something else has set the weights"):
        if act == "scale":
            loaded.scale = 2.0
        elif act == "unload":
            loaded.unload()
        else:
            load_adapter(pipeline, paths[0])
    assert all(p.equal(theirs[name]) for name, p in pipeline.unet.named_parameters())


def test_moving_and_casting_a_pipeline_is_no_change_by_others(pipeline, paths):
    base = {name: p.detach().clone() for name, p in pipeline.unet.named_parameters()}
    loaded = load_adapter(pipeline, paths[1])
    latents_of(pipeline)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.unet.to(torch.float64)
    loaded.scale = 0.5
    loaded.unload()
    assert all(p.float().equal(base[name]) for name, p in pipeline.unet.named_parameters())


def test_saved_weights_draw_the_same_or_saving_is_refused(pipeline, paths, tmp_path):
    from diffusers import UNet2DConditionModel

    loaded = load_adapter(pipeline, paths[1], scale=2.0)
    pipeline.save_pretrained(tmp_path / "saved")  # before any pass
    tuned = latents_of(pipeline)
    pipeline.unet = UNet2DConditionModel.from_pretrained(tmp_path / "saved/unet")
    torch.testing.assert_close(latents_of(pipeline), tuned)
    loaded = load_adapter(pipeline, paths[0])
    with pytest.raises(InputError, match="different weights at each timestep"):
        pipeline.save_pretrained(tmp_path / "again")
    with pytest.raises(InputError, match="unload the adapter first"):
        torch.save(pipeline.unet.state_dict(), tmp_path / "weights.pt")
    loaded.unload()
    pipeline.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize("first", [True, False], ids=["fused first", "loaded first"])
def test_fused_projections_are_refused(pipeline, paths, first):
    if first:
        pipeline.fuse_qkv_projections()
        with pytest.raises(InputError, match="unfuse_qkv_projections"):
            load_adapter(pipeline, paths[1])
        return
    base = latents_of(pipeline)
    loaded = load_adapter(pipeline, paths[1])
    tuned = latents_of(pipeline)
    pipeline.fuse_qkv_projections()
    with pytest.raises(InputError, match="unfuse_qkv_projections"):
        latents_of(pipeline)
    pipeline.unfuse_qkv_projections()
    torch.testing.assert_close(latents_of(pipeline), tuned)
    loaded.unload()
    torch.testing.assert_close(latents_of(pipeline), base)


def test_a_compiled_denoiser_sees_the_adapter(pipeline, paths):
    base = latents_of(pipeline)
    loaded = load_adapter(pipeline, paths[0])
    tuned = latents_of(pipeline)
    loaded.unload()
    plain = pipeline.unet
    pipeline.unet = torch.compile(plain, backend="eager")
    torch.testing.assert_close(latents_of(pipeline), base)
    loaded = load_adapter(pipeline, paths[0])
    torch.testing.assert_close(latents_of(pipeline), tuned)
    loaded.unload()
    torch.testing.assert_close(latents_of(pipeline), base)
    pipeline.unet = plain
    plain.compile(backend="eager")
    with pytest.raises(InputError, match="compiled in place"):
        load_adapter(pipeline, paths[0])


def test_an_adapter_works_together_with_a_lora_of_peft(pipeline, paths):
    from peft import LoraConfig

    loaded = load_adapter(pipeline, paths[0])
    tuned = latents_of(pipeline)
    loaded.unload()
    base = latents_of(pipeline)
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))  # no effect yet
    loaded = load_adapter(pipeline, paths[0])
    torch.testing.assert_close(latents_of(pipeline), tuned)
    loaded.unload()
    torch.testing.assert_close(latents_of(pipeline), base)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_a_scale_that_is_not_finite_is_refused(pipeline, paths, scale):
    with pytest.raises(InputError, match=r"scale .*finite"):
        load_adapter(pipeline, paths[1], scale)
    loaded = load_adapter(pipeline, paths[1])
    with pytest.raises(InputError, match=r"scale .*finite"):
        loaded.scale = scale
    assert loaded.scale == 1


def test_weights_that_cannot_be_set_are_refused_with_the_reason(pipeline, paths):
    weight = next(p for name, p in pipeline.unet.named_parameters() if name.endswith("attn2.to_k.weight"))
    module = next(m for m in pipeline.unet.modules() if getattr(m, "weight", None) is weight)
    for other, reason in (
        (torch.empty_like(weight, device="meta"), "enable_sequential_cpu_offload"),
        (torch.zeros_like(weight, dtype=torch.int8), "quantised"),
    ):
        module.weight = torch.nn.Parameter(other, requires_grad=False)
        with pytest.raises(InputError, match=reason):
            load_adapter(pipeline, paths[1])
    with torch.inference_mode():
        module.weight = torch.nn.Parameter(torch.zeros(weight.shape), requires_grad=False)
    with pytest.raises(InputError, match="inference_mode"):
        load_adapter(pipeline, paths[1])


def test_errors_can_be_imported_from_the_package():
    import nullbooth

    assert nullbooth.InputError is InputError
    for name in ("SettingsError", "ProjectorError", "StoreError"):
        assert issubclass(getattr(nullbooth, name), ValueError)
    assert set(nullbooth.__all__) > {"InputError", "load_adapter"}
