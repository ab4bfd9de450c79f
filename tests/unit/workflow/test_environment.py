"""Environment variables that shells, containers and clusters leave."""

import os
import subprocess
import sys

import pytest
from running import ROOT, Run

from nullbooth.workflow.environment import prepare_environment, restart_needed


def test_python_restarts_once_if_it_cannot_name_every_file():
    assert restart_needed({}, "utf-8") is None
    assert restart_needed({"A": "b", "PYTHONUTF8": "0"}, "ascii") == {"A": "b", "PYTHONUTF8": "1"}
    assert restart_needed({"PYTHONUTF8": "1"}, "ascii") is None, "no endless restarts"


@pytest.mark.parametrize(
    "left",
    [
        {"PMI_SIZE": "8", "PMI_RANK": "0"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"},
        {"LOCAL_RANK": "3", "TORCHELASTIC_RUN_ID": "x", "ACCELERATE_USE_FSDP": "true"},
    ],
    ids=lambda left: next(iter(left)),
)
def test_variables_of_process_launchers_are_removed(monkeypatch, left):
    """accelerate would wait for other processes, and use a rank as the number of a GPU."""
    kept = {"SLURM_PROCID": "0", "RANKING": "1", "PMIX": "1"}
    for name, value in (left | kept).items():
        monkeypatch.setenv(name, value)
    prepare_environment()
    assert not os.environ.keys() & left.keys()
    assert os.environ.keys() >= kept.keys()


def test_conda_installs_the_library_of_the_checkout_wherever_it_is_asked_for(monkeypatch, tmp_path):
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("NULLBOOTH_HOME", raising=False)
    command = ["bash", ROOT / "envs/nullbooth.post-deploy.sh"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "conda: NullBooth has no checkout here" in done.stderr
    prepare_environment()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["install", "--no-deps", "--editable", str(ROOT)]


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONOPTIMIZE": "2"},
    ],
    ids=lambda found: next(iter(found)),
)
def test_names_and_captions_in_any_script_are_read_in_any_locale(environment, tmp_path):
    run = Run(tmp_path)
    photographs = tmp_path / "f\u00f6tos \u5199\u771f"
    photographs.mkdir()
    for path in (ROOT / "resources/subjects/starling/train").glob("*.png"):
        (photographs / path.name).write_bytes(path.read_bytes())
        (photographs / path.name).with_suffix(".txt").write_text("ein {subject} \u96ea", encoding="utf-8")
    concept = {"name": "thing", "images": str(photographs), "identifier": "vbk", "class": "star"}
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", *run.arguments(concepts=[concept])]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [*command, "--", "adapters"], cwd=ROOT, env=environ, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Job stats" in done.stdout + done.stderr
