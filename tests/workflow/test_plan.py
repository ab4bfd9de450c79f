"""The rule `plan`."""

import re

import yaml
from running import snakemake


def test_snakemake_plan_prints_the_table_and_warns(tmp_path):
    machine = {"gpus": 2, "gpu_memory_gb": 0.5, "tflops": 100}
    settings = {"results": str(tmp_path / "results"), "plan": machine}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    done = snakemake("--configfile", "config/minimal.yaml", str(tmp_path / "settings.yaml"), "--", "plan")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if re.match(r"\w+ +\d+ ", line)}
    assert lines["moments"][1] == lines["covariance"][1] == "3"
    assert lines["trajectory"][1] == "2"
    assert re.search(r"jobs take .* hours of GPUs and .* hours of processors; on 2 GPUs, about \d", done.stdout)
    assert re.search(
        r"^Warning: adapter needs \d+ MB on the card, which has 537 MB: lower train.batch", done.stdout, re.M
    )
    assert not (tmp_path / "results" / "kept").exists(), "nothing but the plan runs"
