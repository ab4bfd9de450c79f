"""Plain names as targets, folders in every spelling, and where the workflow can be run from."""

import shutil
from pathlib import Path

import pytest
import yaml
from running import ROOT, snakemake
from test_settings import NEEDED

from nullbooth.settings import complete
from nullbooth.targets import known_as

SHOWN = {
    "runs/star/ours/0": (Path("out/kept/runs/star/ours/0/abc"), "adapter.safetensors"),
    "packs": (Path("out/kept/statistics/d/packs/e"), "pooled.safetensors"),
    "covariances/07.zarr": (Path("out/kept/statistics/d/covariances/07.zarr"), ""),
}


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("out/runs/star/ours/0", ["out/runs/star/ours/0"]),
        ("./out//runs/star/ours/0/", ["out/runs/star/ours/0"]),
        ("out/runs/star/ours/0/loss.csv", ["out/kept/runs/star/ours/0/abc/loss.csv", "out/runs/star/ours/0"]),
        ("out/runs/star/ours/0/images/a.png", ["out/kept/runs/star/ours/0/abc/images", "out/runs/star/ours/0"]),
        ("out/runs/star/ours/0/lora", ["out/kept/runs/star/ours/0/abc/lora/README.md", "out/runs/star/ours/0"]),
        ("out/packs/pooled.safetensors", ["out/kept/statistics/d/packs/e/pooled.safetensors", "out/packs"]),
        ("out/covariances/07.zarr/zarr.json", ["out/covariances/07.zarr"]),
        ("out/samples/index.html", ["out/samples"]),
        ("out/evaluation/metrics.csv", ["out/evaluation/metrics.csv"]),
        (str(Path.cwd() / "out/samples"), ["out/samples"]),
        ("samples", None),
        ("out", None),
        ("elsewhere/out/samples", None),
        ("--cores", None),
    ],
)
def test_a_plain_name_is_the_files_that_rules_make(target, files):
    assert known_as(target, "out", SHOWN, ("samples", "comparison")) == files


def test_home_and_spelling_of_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    schema = yaml.safe_load((ROOT / "config/schema.yaml").read_text())
    given = {
        **NEEDED,
        "results": "~/out//x/",
        "model": "~/models/sd",
        "concepts": [{"name": "dog", "images": "~/dog", "class": "dog"}],
        "sample": {"prompts": {"subject": "~/s.txt", "class": "./c.txt", "unrelated": "u.txt"}},
        "evaluate": {"clip": "owner/name", "dino": "~/d"},
    }
    config = complete(given, schema)
    assert config["results"] == f"{tmp_path}/out/x"
    assert config["model"] == f"{tmp_path}/models/sd"
    assert config["concepts"][0]["images"] == f"{tmp_path}/dog"
    assert config["sample"]["prompts"] == {"subject": f"{tmp_path}/s.txt", "class": "./c.txt", "unrelated": "u.txt"}
    assert config["evaluate"] == {"clip": "owner/name", "dino": f"{tmp_path}/d", "lpips": None}
    for spelled in ("out/", "./out", "out//", "x/../out"):
        assert complete({**given, "results": spelled}, schema)["results"] == "out"


@pytest.mark.parametrize("name", ["samples/index.html", "packs/pooled.safetensors", "runs/quilt/nullbooth/0/lora"])
def test_a_file_of_the_readme_is_a_target(tmp_path, name):
    config = ("--configfile", "config/config.yaml", "--config", f"results={tmp_path}")
    if "quilt" in name:
        concepts = "[{name: quilt, images: resources/subjects/quilt/train, identifier: vbk, class: star}]"
        config += (f"concepts={concepts}",)
    done = snakemake("--dry-run", "--quiet", *config, "--", f"{tmp_path}//{name}")
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize("way", ["-s", "--directory", "module", "link"])
def test_elsewhere_one_sentence_says_where_to_run(tmp_path, way):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    arguments, options = ["-s", str(ROOT / "Snakefile")], {"cwd": tmp_path}
    if way == "--directory":
        arguments, options = ["--directory", str(tmp_path)], {}
    elif way == "module":
        (tmp_path / "Snakefile").write_text(
            'configfile: "config/config.yaml"\nmodule nullbooth:\n'
            f'    snakefile: "{ROOT}/Snakefile"\n    config: config\nuse rule * from nullbooth\n'
        )
        arguments = []
    elif way == "link":
        (tmp_path / "Snakefile").symlink_to(ROOT / "Snakefile")
        arguments = []
    done = snakemake("--dry-run", "--cores", "1", *arguments, "--", "samples", **options)
    said = done.stderr + done.stdout
    assert done.returncode == 1
    assert (
        f"config: NullBooth works in its own checkout alone, not by -s, --directory or module: run it in {ROOT}" in said
    )
    assert "Traceback" not in said
