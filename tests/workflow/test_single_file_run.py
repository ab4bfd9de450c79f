"""Real run of a single-file model."""

import ldm
import torch
from running import ROOT, Run, executed, planned, snakemake

from nullbooth.models.loading import ModelSource, load_pipeline

CPU = torch.device("cpu")


def test_the_whole_workflow(tmp_path):
    """With the embedded model as one file: the base model draws the same pictures as from its folder."""
    folder = ROOT / "resources/tinyworld"
    one = ldm.save(load_pipeline(ModelSource(str(folder)), CPU), tmp_path / "one/tinyworld.safetensors")
    run, method = Run(tmp_path), {"name": "pooled", "rank": 2, "rule": {"fraction": 0.25}}
    configs = str(ldm.without_weights(folder, tmp_path / "configs"))
    changes = {"model": str(one), "model_config": configs, "methods": [method], "sampler": {"steps": 1}}
    goals = [str(tmp_path / "results/samples"), "exports"]
    jobs = executed(*goals, *run.arguments(**changes))
    assert jobs["adapter"] == jobs["gallery"] == jobs["export"] == 1
    assert "tinyworld.safetensors" in (tmp_path / "results/samples/index.html").read_text()
    assert list((tmp_path / "results/samples").rglob("attention-*.png"))
    [card] = (tmp_path / "results/kept/runs").rglob("README.md")
    assert "StableDiffusionPipeline.from_single_file" in card.read_text()

    part = "results/images/base/unrelated"
    drawn = {p.name: p.read_bytes() for p in (tmp_path / part).glob("*.png")}
    (tmp_path / "folder").mkdir()
    executed(
        str(tmp_path / "folder" / part), *Run(tmp_path / "folder").arguments(methods=[method], sampler={"steps": 1})
    )
    assert {p.name: p.read_bytes() for p in (tmp_path / "folder" / part).glob("*.png")} == drawn != {}

    changes["model"] = str(one.rename(tmp_path / "moved.safetensors"))
    assert planned(goals[0], *run.arguments(**changes)).keys() <= {"gallery", "samples"}, "a moved file is the same"
    estimate = snakemake("plan", *run.arguments(**changes))
    assert f"{changes['model']}: " in estimate.stdout
    assert "memory of jobs unknown" not in estimate.stderr
