"""Real runs that train with packs."""

import shutil
from pathlib import Path

import yaml
from running import Run, executed, planned

from nullbooth.adapters.file import read_adapter
from nullbooth.statistics import pack_file, packs


def with_pack(run: Run, pack: Path, **changes) -> list[str]:
    protect = {"prompts": str(run.prompts), "pack": str(pack), **changes.pop("protect", {})}
    return run.arguments(**changes, protect=protect)


def test_adapters_of_a_pack_are_those_of_the_stores(finished, tmp_path):
    """A float32 pack is equal up to rounding, the written pack up to float16. Its prompts and its rule are used,
    so that others in the config run nothing; another pack trains again."""
    results = finished.folder / "results"
    executed("pack", *finished.arguments())
    made, exact = tmp_path / "half", tmp_path / "exact"
    shutil.copytree(results / "packs", made)
    for scope, steps in {"pooled": ["pooled"], "timestep": ["00", "01", "02"]}.items():
        about = packs.read_about(made / f"{scope}.safetensors")
        folder = (results / "projectors/00.zarr").resolve().parent
        said = {key: about[key] for key in ("model", "sites", "sampler", "resolution", "prompts")}
        stores = [str(folder / f"{step}.zarr") for step in steps]
        pack_file.write(
            exact / f"{scope}.safetensors", stores, about["identity"], about["rule"], scope, half=False, **said
        )
    expected = {m: read_adapter(results / f"runs/starling/{m}/0/adapter.safetensors") for m in ("pooled", "timestep")}
    run = finished.copy(tmp_path / "run")
    shutil.rmtree(run.folder / "results/runs")  # a copy has no records of how it was made
    for pack, tolerance in ((exact, 1e-3), (made, 0.1)):
        assert executed("adapters", *with_pack(run, pack)) == {"adapter": 2, "adapters": 1}
        for method, (tensors, info) in expected.items():
            path = run.folder / f"results/runs/starling/{method}/0/adapter.safetensors"
            found, same = read_adapter(path)
            assert same == info
            assert info.guided, "as the prompts of the statistics were sampled"
            assert found.keys() == tensors.keys()
            for name, value in tensors.items():
                assert (found[name] - value).norm() <= tolerance * value.norm(), (pack, name)
            recipe = yaml.safe_load((path.parent / "config.yaml").read_text())
            assert recipe["identity"]["pack"] == packs.content(pack / f"{method}.safetensors")
    run.prompts.write_text(run.prompts.read_text() + "a cyan ring\n")
    assert planned("adapters", *with_pack(run, made)) == {}
    moved = shutil.copytree(made, tmp_path / "moved")
    assert planned("adapters", *with_pack(run, moved)) == {}, "the same content at another path"
    assert executed("adapters", *with_pack(run, exact)) == {}, "the trained adapters are kept"
