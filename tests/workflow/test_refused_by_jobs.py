"""Real runs in which jobs refuse their inputs."""

from dataclasses import replace

from running import snakemake

from nullbooth.adapters.file import read_adapter, write_adapter


def test_a_job_without_free_directions_names_the_rule(finished, tmp_path):
    run = finished.copy(tmp_path / "run")
    methods = [{"name": "tight", "rank": 4, "rule": {"absolute": 1e-200}}]
    done = snakemake(str(run.folder / "results/runs/starling/tight/0"), *run.arguments(methods=methods))
    assert done.returncode != 0
    assert "no free direction under the rule absolute: 1e-200" in done.stderr
    assert "protect fewer prompts, or leave the site out" in done.stderr


def test_a_job_that_is_given_an_adapter_of_another_model_says_so(finished, tmp_path):
    run = finished.copy(tmp_path / "run")
    path = (run.folder / "results/runs/starling/pooled/0/adapter.safetensors").resolve()
    tensors, info = read_adapter(path)
    write_adapter(path, tensors, replace(info, model="another"))
    done = snakemake(str(run.folder / "results/samples"), *run.arguments())
    assert done.returncode != 0
    assert f"{path.name}: made for the model another, not for {info.model}; train it again" in done.stderr
    assert read_adapter(path)[1].model == "another", "the user's file is kept"
