"""Several adapters at work in one denoiser: changes add up, and each can be scaled and taken away by itself."""

import pytest
import tiny
import torch
from test_adapter import info_of

from nullbooth import fuse, load_adapter
from nullbooth.text import InputError


@pytest.fixture
def paths(pipeline, tmp_path):
    """One adapter that changes with the timestep, and one that does not, in files."""
    given, found = tiny.protected_inputs(), []
    for seed, scope in enumerate(("timestep", "pooled")):
        adapter = tiny.randomise(tiny.adapter(pipeline.unet, given, scope, 3 + seed))
        found.append(tmp_path / f"{scope}.safetensors")
        adapter.save(found[-1], info_of(adapter))
    return found


def weights(pipeline, timestep: float) -> dict[str, torch.Tensor]:
    """After a pass at a timestep."""
    given = tiny.protected_inputs(seed=77)
    tiny.predict(pipeline.unet, given.latents[0], timestep, given.prompts)
    return {name: p.clone() for name, p in pipeline.unet.state_dict().items()}


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
    assert changed, "one of the two changes with the timestep"
    assert not first.alone


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_can_be_unloaded_and_the_other_stays_as_if_alone(pipeline, paths, order):
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


def test_a_scale_can_be_set_while_at_work(pipeline, paths):
    base = weights(pipeline, 501.0)
    loaded = load_adapter(pipeline, paths[1], scale=1.0)
    whole = weights(pipeline, 501.0)
    loaded.scale = 0.25
    for name, value in pipeline.unet.state_dict().items():  # at once, without a pass
        torch.testing.assert_close(value - base[name], 0.25 * (whole[name] - base[name]), rtol=1e-4, atol=1e-6)
    loaded.scale = 0
    assert all(value.equal(base[name]) for name, value in weights(pipeline, 501.0).items())


def test_unloading_twice_does_nothing_more(pipeline, paths):
    base = weights(pipeline, 501.0)
    first, second = (load_adapter(pipeline, path) for path in paths)
    first.unload()
    first.unload()
    second.unload()
    assert all(value.equal(base[name]) for name, value in pipeline.unet.state_dict().items())


def test_fusing_takes_no_other_adapter_along(pipeline, paths, tmp_path):
    load_adapter(pipeline, paths[0])
    before = weights(pipeline, 501.0)
    with pytest.raises(InputError, match="another adapter is at work in the pipeline"):
        fuse(pipeline, paths[1], tmp_path / "fused")
    assert all(value.equal(before[name]) for name, value in weights(pipeline, 501.0).items())


def test_a_merged_adapter_is_part_of_the_model(pipeline, paths):
    """For what is loaded on top of it, and after that is unloaded again; with the scale that it had."""
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


def test_what_cannot_be_merged_stays_at_work(pipeline, paths):
    timestep, pooled = paths
    first = load_adapter(pipeline, timestep)
    with pytest.raises(InputError, match="scope timestep has other weights at each timestep"):
        first.merge()
    second = load_adapter(pipeline, pooled)
    with pytest.raises(InputError, match="another adapter is at work in the same denoiser: unload or merge it first"):
        second.merge()
    before = weights(pipeline, 901.0)
    assert any(not value.equal(before[name]) for name, value in weights(pipeline, 101.0).items())
    second.unload()
    first.unload()
