"""Versions agree everywhere, and the project stands on its own."""

import re
import subprocess
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in (*project["dependencies"], *project["optional-dependencies"]["dev"]):
        requirement = Requirement(text)
        assert requirement.specifier, text
        assert requirement.specifier.contains(locked()[requirement.name.lower()]), text


def test_conda_has_every_runtime_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {Requirement(text).name for text in project["dependencies"]} - {"snakemake"}
    text = (ROOT / "envs/nullbooth.yaml").read_text()
    listed = {CONDA_NAMES.get(n, n) for n in re.findall(r"- (\w+)=", text)}
    assert needed <= listed


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
