"""Real runs of the workflow with each family of models."""

import families
import pytest
from running import Run, executed


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_whole_workflow(family, tmp_path):
    run = Run(tmp_path)
    small = families.SMALL.get(family, {})
    changes = {"model": str(families.save(family, tmp_path / "model")), "resolution": small.get("resolution")}
    changes["sampler"] = {"arguments": small.get("arguments", {})}
    changes["methods"] = [{"name": "pooled", "rank": 2, "rule": {"fraction": 0.25}}]
    jobs = executed(str(tmp_path / "results/samples"), *run.arguments(**changes))
    assert jobs["adapter"] == jobs["gallery"] == 1
    assert len(list((tmp_path / "results/samples").rglob("*.png"))) > 10
