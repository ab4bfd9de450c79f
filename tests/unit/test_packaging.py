"""Versions agree everywhere, the project is self-contained, and its wheel is small and complete."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
import tiny
import yaml
from diffusers import StableDiffusionPipeline
from packaging.requirements import Requirement
from running import ROOT
from saved_adapters import adapter_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"pytorch": "torch"}


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_environments_are_held_equal_to_the_lock():
    for path in (ROOT / "envs").glob("*.yaml"):
        for entry in yaml.safe_load(path.read_text())["dependencies"]:
            name, _, wanted = entry.partition("=")
            if name not in ("python", "pip"):
                assert locked()[CONDA_NAMES.get(name, name)] == wanted, f"{path.name}: {name}"


def test_every_dependency_has_a_lower_bound_that_the_lock_satisfies():
    extras = [text for listed in PROJECT["optional-dependencies"].values() for text in listed]
    for text in (*PROJECT["dependencies"], *extras):
        requirement = Requirement(text)
        assert requirement.specifier, text
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(locked()[requirement.name.lower()]), text


def test_conda_has_every_dependency_of_the_workflow():
    needed = {Requirement(t).name for t in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["workflow"])}
    text = (ROOT / "envs/nullbooth.yaml").read_text()
    listed = {CONDA_NAMES.get(n, n) for n in re.findall(r"- (\w+)=", text)}
    assert needed - {"snakemake"} <= listed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # In a copy, because setuptools leaves a build folder there.
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in (name for name in files if not name.startswith(("resources/", "tests/"))):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", folder]
    subprocess.run([*command, folder / "source"], check=True, timeout=300)
    [path] = folder.glob("nullbooth-*.whl")
    return path


def test_the_wheel_has_all_that_the_workflow_reads(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("config", "workflow/report"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file():
                assert f"nullbooth/shipped/{path.relative_to(ROOT).as_posix()}" in names
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "nullbooth").rglob("*.py")}
    assert modules | {"nullbooth/py.typed"} <= names


def needed(names: list[str]) -> dict[str, Distribution]:
    """Return the installed distributions that these need, directly or indirectly."""
    found: dict[str, Distribution] = {}
    while names:
        if (name := names.pop().lower()) not in found:
            found[name] = distribution(name)
            wanted = map(Requirement, found[name].requires or ())
            names += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def test_an_adapter_loads_where_only_the_dependencies_of_the_wheel_are_installed(wheel, tmp_path):
    """Uses a new environment with links to these packages, without snakemake, zarr, accelerate, peft and others."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    [site] = (tmp_path / "venv").glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    for found in needed([Requirement(text).name for text in PROJECT["dependencies"]]).values():
        for top in {Path(file).parts[0] for file in found.files if ".." not in Path(file).parts}:
            if not (site / top).exists() and top != "__pycache__":
                (site / top).symlink_to(found.locate_file(top))
    tiny.save_pipeline(tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    adapter_of(pipeline, tmp_path / "adapter.safetensors")
    code = """
import sys
from importlib.util import find_spec
import torch
from diffusers import StableDiffusionPipeline
import nullbooth
pipeline = StableDiffusionPipeline.from_pretrained("model", safety_checker=None)
def draw():
    seed = torch.Generator().manual_seed(0)
    return pipeline("a red star", num_inference_steps=2, output_type="np", generator=seed).images
before = draw()
loaded = nullbooth.load_adapter(pipeline, "adapter.safetensors")
during = draw()
loaded.unload()
assert abs(during - before).max() > 1e-3 and abs(draw() - before).max() < 1e-6
nullbooth.export_lora("adapter.safetensors", "lora.safetensors")
print(nullbooth.__file__, *[name for name in ("snakemake", "zarr", "accelerate", "peft", "scipy") if find_spec(name)])
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    python = tmp_path / "venv/bin/python"
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [str(site / "nullbooth/__init__.py")]


def test_no_path_of_one_machine():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    text = [
        p
        for p in files
        if Path(p).suffix in (".py", ".smk", ".yaml", ".md", ".toml", ".lock") or "." not in Path(p).name
    ]
    pattern = re.compile(r"(?<![\w.])/(work|root|home|opt)/")
    text = [p for p in text if (ROOT / p).is_file()]
    assert not [p for p in text if pattern.search((ROOT / p).read_text()) and p != "tests/unit/test_packaging.py"]


def test_the_snakefile_stays_short():
    assert len((ROOT / "Snakefile").read_text().splitlines()) <= 70
