"""The table of methods: its entries, and that a new method needs one entry only."""

from dataclasses import replace
from importlib import import_module

import output_layers
import pytest
import tiny
from running import NEEDED
from test_training import SETTINGS, data, scheduler

from nullbooth.adapters.file import AdapterInfo, read_adapter, write_adapter
from nullbooth.adapters.loaded import LoadedAdapter
from nullbooth.errors import SettingsError
from nullbooth.inputs.methods import METHODS, is_lora, is_ours, prior_of, reads_trajectories
from nullbooth.inputs.settings import complete
from nullbooth.learning.rivals import Options, build
from nullbooth.learning.training import train
from nullbooth.models.sites import find_sites
from nullbooth.planning import estimate
from nullbooth.planning.cost import Machine, Run, Work
from nullbooth.planning.shapes_from_headers import read


@pytest.fixture
def added(monkeypatch):
    """Register a method."""
    monkeypatch.setitem(METHODS, output_layers.METHOD.name, output_layers.METHOD)
    return {"name": "mine", "method": output_layers.METHOD.name}


def test_every_method_has_one_entry(schema):
    assert [name for name in METHODS if METHODS[name].name != name] == []
    assert [name for name in METHODS if not METHODS[name].builder] == ["nullbooth"]
    assert schema["$defs"]["method"]["properties"]["method"]["enum"] == list(METHODS), "for completion in editors"


@pytest.mark.parametrize("name", [name for name in METHODS if name != "nullbooth"])
def test_every_builder_exists(name):
    module, _, function = METHODS[name].builder.partition(":")
    assert callable(getattr(import_module(module), function))


def test_a_new_method_is_known_to_configs_plans_and_rules(schema, added, pipeline_folder):
    config = complete({**NEEDED, "methods": [added]}, schema)
    [entry] = config["methods"]
    assert (is_ours(entry), is_lora(entry), reads_trajectories(entry), prior_of(entry)) == (False, False, False, None)
    with pytest.raises(SettingsError, match=r"methods\.0\.method: 'output-layers' needs weights: fp32, not bf16"):
        complete({**NEEDED, "methods": [added], "weights": "bf16", "precision": "bf16"}, schema)
    work = Work(prompts=2, shard_size=2, steps=2, runs=(Run(method=entry["method"]),))
    jobs = {job.rule for job in estimate.jobs(read(pipeline_folder, ["cross-attention"]), work, Machine(1e12, 1e11))}
    assert "adapter" in jobs
    assert not jobs & {"trajectory", "moments", "projector"}, "it needs no data of the protected prompts"


def test_a_method_without_an_entry_is_refused(schema):
    with pytest.raises(SettingsError, match=r"methods\.0\.method: 'output-layers'"):
        complete({**NEEDED, "methods": [{"name": "mine", "method": "output-layers"}]}, schema)
    with pytest.raises(ValueError, match="method 'output-layers': use one of nullbooth, dreambooth, "):
        build("output-layers", tiny.unet(), {}, Options())


def test_a_new_method_can_be_trained_and_loaded(added, tmp_path):
    unet = tiny.unet()
    made = build(added["method"], unet, find_sites(unet), Options())
    brief = replace(SETTINGS, steps=4, batch=2, learning_rate=0.01)
    train(unet, made, [data()], scheduler(), brief, tmp_path, log=lambda line: None)
    trained = tiny.predictions(unet, tiny.protected_inputs(seed=11))
    write_adapter(tmp_path / "a.safetensors", made.tensors(), AdapterInfo("mine", 1, (0.0,), "", "m", "p", ""))
    plain = tiny.unet()
    before = tiny.predictions(plain, tiny.protected_inputs(seed=11))
    LoadedAdapter(plain, *read_adapter(tmp_path / "a.safetensors"), 1.0)
    found = tiny.predictions(plain, tiny.protected_inputs(seed=11))
    assert tiny.change(trained, before) > 1e-3
    assert tiny.change(found, trained) < 1e-4
