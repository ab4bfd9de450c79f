"""Shared fixtures: a tiny denoiser and a tiny pipeline with random weights, and a finished run."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import tiny
import torch
import yaml
from hypothesis import settings
from running import ROOT, Run, executed

settings.register_profile("fast", max_examples=20, deadline=None, derandomize=True)
settings.load_profile("fast")
torch.set_num_threads(1)  # the models are so small that more threads are slower


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Run:
    """A finished run of config/minimal.yaml. Tests do not change it, or work on a copy."""
    run = Run(tmp_path_factory.mktemp("workflow"))
    executed(str(run.folder / "results/samples"), *run.arguments())
    run.logs = sorted((run.folder / "results/logs").rglob("*.log"))  # before any test adds to them
    return run


@pytest.fixture
def unet():
    return tiny.unet()


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.save_pipeline(folder)
    return folder


@pytest.fixture
def pipeline(pipeline_folder):
    from nullbooth.models.loading import ModelSource, load_pipeline

    return load_pipeline(ModelSource(str(pipeline_folder)), torch.device("cpu"))


@pytest.fixture
def protected():
    return tiny.protected_inputs()


@pytest.fixture
def schema(root):
    return yaml.safe_load((root / "config" / "schema.yaml").read_text())


@pytest.fixture
def config(root):
    return yaml.safe_load((root / "config" / "config.yaml").read_text())
