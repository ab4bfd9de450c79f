"""Plain names as targets, spellings of paths, and folders that the workflow can run in."""

import re
from pathlib import Path

import pytest
import yaml
from running import NEEDED, ROOT, snakemake

from nullbooth.inputs.settings import complete
from nullbooth.workflow.shown import known_as, show, view

KEPT = Path("out/kept")
SHOWN = {
    "runs/star/ours/0/adapter.safetensors": (KEPT / "runs/star/ours/0/abc/adapter.safetensors", ""),
    "runs/star/ours/0/loss.csv": (KEPT / "runs/star/ours/0/abc/loss.csv", ""),
    "runs/star/ours/0/images": (KEPT / "runs/star/ours/0/abc/images/f", ""),
    "runs/star/ours/0/lora": (KEPT / "runs/star/ours/0/abc/lora", "README.md"),
    "packs/pooled.safetensors": (KEPT / "statistics/d/packs/e/pooled.safetensors", ""),
    "covariances/07.zarr": (KEPT / "statistics/d/covariances/07.zarr", ""),
    "samples": (KEPT / "pages/samples/a", ""),
}
FOLDERS = {"runs/star/ours/0": "runs/star/ours/0/adapter.safetensors", "packs": "packs/pooled.safetensors"}


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("out/runs/star/ours/0", ["out/kept/runs/star/ours/0/abc/adapter.safetensors"]),
        ("./out//runs/star/ours/0/", ["out/kept/runs/star/ours/0/abc/adapter.safetensors"]),
        ("out/runs/star/ours/0/loss.csv", ["out/kept/runs/star/ours/0/abc/loss.csv"]),
        ("out/runs/star/ours/0/images/a.png", ["out/kept/runs/star/ours/0/abc/images/f"]),
        ("out/runs/star/ours/0/lora", ["out/kept/runs/star/ours/0/abc/lora/README.md"]),
        ("out/runs/star/ours/0/lora/kohya.safetensors", ["out/kept/runs/star/ours/0/abc/lora/README.md"]),
        ("out/packs", ["out/kept/statistics/d/packs/e/pooled.safetensors"]),
        ("out/covariances/07.zarr/zarr.json", ["out/kept/statistics/d/covariances/07.zarr"]),
        ("out/samples", ["out/kept/pages/samples/a"]),
        ("out/samples/index.html", ["out/kept/pages/samples/a"]),
        ("out//kept/pages/samples/a", ["out/kept/pages/samples/a"]),
        (str(Path.cwd() / "out/samples"), ["out/kept/pages/samples/a"]),
        ("samples", None),
        ("out", None),
        ("elsewhere/out/samples", None),
        ("--cores", None),
    ],
)
def test_a_plain_name_is_the_files_that_rules_make(target, files):
    assert known_as(target, "out", SHOWN, FOLDERS) == files


@pytest.fixture
def made(tmp_path, monkeypatch) -> Path:
    """A results folder with an adapter and a page."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/star/ours/0/adapter.safetensors", "runs/star/ours/0/images", "samples"):
        target = SHOWN[name][0]
        (target if target.suffix == "" else target.parent).mkdir(parents=True, exist_ok=True)
        (target / "index.html" if target.suffix == "" else target).write_text(name)
    return Path("out")


def links(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): str(p.readlink()) for p in folder.rglob("*") if p.is_symlink()}


def test_plain_names_lead_to_what_is_there(made):
    show(made, SHOWN, FOLDERS)
    assert links(made) == {
        "runs/star/ours/0/adapter.safetensors": "../../../../kept/runs/star/ours/0/abc/adapter.safetensors",
        "runs/star/ours/0/images": "../../../../kept/runs/star/ours/0/abc/images/f",
        "samples": "kept/pages/samples/a",
    }
    before = (made / "samples").lstat().st_mtime_ns
    show(made, SHOWN, FOLDERS)
    assert (made / "samples").lstat().st_mtime_ns == before, "what is right stays as it is"
    with view({"a/page": SHOWN["samples"]}) as seen:
        assert (seen / "a/page/index.html").read_text() == "samples"
    assert not seen.exists()


def test_a_folder_changes_as_a_whole_and_other_names_one_by_one(made):
    show(made, SHOWN, FOLDERS)
    before = links(made)
    other = {name: (str(target).replace("abc", "xyz").replace("samples/a", "samples/b"), file)
             for name, (target, file) in SHOWN.items()}  # fmt: skip
    show(made, other, FOLDERS)
    assert links(made) == before, "of the other adapter and page, nothing is there yet"
    adapter, page = Path(other["runs/star/ours/0/adapter.safetensors"][0]), Path(other["samples"][0])
    page.mkdir()
    adapter.parent.mkdir()
    adapter.write_text("another")
    show(made, other, FOLDERS)
    assert (made / "samples").resolve() == page.resolve()
    assert (made / "runs/star/ours/0/adapter.safetensors").read_text() == "another"
    assert not (made / "runs/star/ours/0/images").is_symlink(), "pictures by the adapter before"
    show(made, SHOWN, FOLDERS)
    assert links(made) == before, "nothing was lost"


def test_results_of_an_earlier_version_are_renamed_and_not_lost(made, capsys):
    (made / "samples").mkdir()
    (made / "samples/notes.txt").write_text("mine")
    (made / "runs/star/ours").mkdir(parents=True)
    (made / "runs/star/ours/0").symlink_to("../../../kept/runs/star/ours/0/abc")
    show(made, SHOWN, FOLDERS)
    assert (made / "samples.old/notes.txt").read_text() == "mine"
    assert "out/samples was not a link" in capsys.readouterr().err
    assert (made / "runs/star/ours/0/adapter.safetensors").read_text()
    assert not (made / "kept/runs/star/ours/0/abc/adapter.safetensors").is_symlink()
    (made / "samples").unlink()
    (made / "samples").mkdir()
    show(made, SHOWN, FOLDERS)
    assert (made / "samples.old1").is_dir()
    assert (made / "samples.old/notes.txt").read_text() == "mine"


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


@pytest.mark.parametrize("way", ["-s", "--directory", "module"])
def test_the_workflow_is_planned_from_another_folder(tmp_path, way):
    """Shipped prompts, models and photographs are found, and a short config of the user extends the defaults."""
    arguments, options = ["-s", str(ROOT / "Snakefile")], {"cwd": tmp_path}
    if way == "--directory":
        arguments, options = ["--directory", str(tmp_path)], {}
    elif way == "module":
        (tmp_path / "Snakefile").write_text(
            f'module nullbooth:\n    snakefile: "{ROOT}/Snakefile"\n'
            "    config: {'seeds': [7, 8], 'results': 'out'}\nuse rule * from nullbooth\n"
        )
        arguments = []
    if way != "module":
        (tmp_path / "config").mkdir()
        (tmp_path / "config/config.yaml").write_text("seeds: [7, 8]\nresults: out\n")
    done = snakemake("--dry-run", "--quiet", *arguments, "--", "samples", **options)
    assert done.returncode == 0, done.stderr
    done = snakemake("--dry-run", *arguments, "--", "adapters", **options)
    assert re.search(r"^adapter +6$", done.stdout + done.stderr, re.MULTILINE)
    assert "out/kept/runs/starling/nullbooth/8/" in done.stdout + done.stderr


def test_a_linked_snakefile_gives_a_hint(tmp_path):
    (tmp_path / "Snakefile").symlink_to(ROOT / "Snakefile")
    done = snakemake("--dry-run", "--", "samples", cwd=tmp_path)
    assert done.returncode == 1
    assert f"config: {tmp_path}/Snakefile is a link without its rules; run snakemake -s {ROOT}/Snakefile" in (
        done.stderr + done.stdout
    )
    assert "Traceback" not in done.stderr + done.stdout
