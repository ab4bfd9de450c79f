"""Real runs from another folder: as a module of another workflow, with -s and with --directory."""

import shutil
from pathlib import Path

import yaml
from running import ROOT, executed, planned

SETTINGS = {
    "results": "out",
    "precision": "fp32",
    "sampler": {"steps": 2},
    "protect": {"prompts": "mine/protected.txt"},
    "concepts": [{"name": "rex", "images": "photographs", "identifier": "vbk", "class": "star"}],
    "methods": [{"name": "pooled", "rank": 4}],
    "train": {"steps": 2, "batch": 2},
    "sample": {
        "prompts": {
            "subject": "config/prompts/minimal_subject.txt",
            "class": "config/prompts/minimal_class.txt",
            "unrelated": "config/prompts/minimal_unrelated.txt",
            "names": None,
        }
    },
}


def test_the_same_run_as_a_module_and_by_the_paths_of_snakefile_and_folder(tmp_path):
    """Relative paths in the user's settings belong to the user's folder; those of defaults name shipped files."""
    shutil.copytree(ROOT / "resources/subjects/starling/train", tmp_path / "photographs")
    (tmp_path / "mine").mkdir()
    shutil.copy(ROOT / "config/prompts/minimal.txt", tmp_path / "mine/protected.txt")
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    (tmp_path / "Snakefile").write_text(
        f'configfile: "settings.yaml"\n\nmodule nullbooth:\n    snakefile: "{ROOT}/Snakefile"\n    config: config\n\n'
        "use rule * from nullbooth\n\nonsuccess:\n    nullbooth.workspace.show()\n"
    )
    made = executed("--", "samples", cwd=tmp_path)
    assert made["adapter"] == 1
    assert (tmp_path / "out/samples/index.html").is_file(), "the link was made at the end"
    assert planned("--", "samples", cwd=tmp_path) == {}
    again = ["--configfile", str(tmp_path / "settings.yaml"), "--", "samples"]
    assert planned("-s", str(ROOT / "Snakefile"), *again, cwd=tmp_path) == {}
    assert planned("--directory", str(tmp_path), *again) == {}
    assert not Path(ROOT, "out").exists()
