"""The workspace without Snakemake: names, recipes and decisions."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from running import ROOT, snakemake
from snakemake.utils import update_config

from nullbooth.errors import SettingsError
from nullbooth.workflow import runs
from nullbooth.workflow.workspace import Workspace, required

MINIMAL = yaml.safe_load((ROOT / "config/config.yaml").read_text())
update_config(MINIMAL, yaml.safe_load((ROOT / "config/minimal.yaml").read_text()))
RUN = {"concept": "starling", "method": "pooled", "seed": "0"}


@pytest.fixture
def given(tmp_path, monkeypatch) -> dict:
    """Settings of config/minimal.yaml, with results in a temporary folder."""
    monkeypatch.chdir(ROOT)
    return {**copy.deepcopy(MINIMAL), "results": str(tmp_path / "results")}


def changed(given: dict, **changes) -> Workspace:
    settings = copy.deepcopy(given)
    update_config(settings, changes)
    return Workspace(settings)


def test_a_key_depends_on_what_an_adapter_is_made_from_and_on_nothing_else(given, tmp_path):
    key = Workspace(given).runs.keys["starling/pooled/0"]
    moved = copy.deepcopy(given["concepts"])
    for name in ("images", "holdout"):
        moved[0][name] = str(shutil.copytree(ROOT / moved[0][name], tmp_path / name))
    same = [{"device": "cpu"}, {"sample": {"seed": 5}}, {"concepts": moved}, {"protect": {"batch": 3}}]
    other = [
        {"train": {"steps": 5}},
        {"protect": {"seed": 1}},
        {"resolution": 32},
        {"protect": {"rule": {"energy": 0.1}}},
    ]
    assert {changed(given, **change).runs.keys["starling/pooled/0"] for change in same} == {key}
    assert len({key, *(changed(given, **change).runs.keys["starling/pooled/0"] for change in other)}) == 5


def test_a_later_setting_of_training_leaves_the_keys_of_before_at_its_default(given, monkeypatch):
    key = Workspace(given).runs.keys["starling/pooled/0"]
    monkeypatch.setattr(runs, "LATER_TRAIN", {"flip": False})
    later = Workspace(given).runs
    assert "flip" not in later.recipes["starling/pooled/0"]["method"]["train"]
    assert later.keys["starling/pooled/0"] != key, "here the setting was there before"
    assert changed(given, train={"flip": True}).runs.recipes["starling/pooled/0"]["method"]["train"]["flip"]


def test_statistics_do_not_depend_on_how_a_subject_is_learned(given):
    workspace = Workspace(given)
    for change in ({"train": {"steps": 5}}, {"seeds": [4]}, {"protect": {"rule": {"fraction": 0.5}}}):
        assert changed(given, **change).statistics.folder == workspace.statistics.folder
    assert changed(given, sampler={"steps": 4}).statistics.folder != workspace.statistics.folder


def test_every_kept_place_is_below_the_results_and_no_two_names_share_one(given):
    workspace = Workspace(given)
    places = [str(Path(*shown)) for shown in workspace.names.shown.values()]
    assert all(Path(place).is_relative_to(Path(given["results"], "kept")) for place in places)
    assert len(set(places)) == len(places) > 30
    assert {name: workspace.names.folders[name] in workspace.names.shown for name in workspace.names.folders} == (
        dict.fromkeys(workspace.names.folders, True)
    )


def test_a_page_has_another_name_when_what_it_shows_changes(given):
    workspace = Workspace(given)
    drawn = changed(given, sample={"seed": 5})
    trained = changed(given, train={"steps": 5})
    for name in ("samples", "evaluation/metrics.csv"):
        assert len({workspace.names.shown[name], drawn.names.shown[name], trained.names.shown[name]}) == 3


def test_what_tuned_pictures_are_paired_with_was_drawn_from_the_same_prompts(given):
    pictures = Workspace(given).pictures
    paired = pictures.base_prompts({"part": "starling"}) | pictures.base_prompts({"part": "unrelated"})
    assert pictures.run_prompts(RUN) == paired
    assert pictures.base_of_run(RUN) == [pictures.base_folder("starling"), pictures.base_folder("unrelated")]


def test_shards_are_added_until_another_one_brings_too_little(given, tmp_path):
    """The third shard lowers the leak by less than a tenth, so that three shards are protected."""
    protect = {"prompts": "config/prompts/protected.txt", "prompts_until": 0.1, "shard_size": 20}
    statistics = changed(given, protect=protect).statistics
    assert len(statistics.shards) > 4
    for number, leak in {1: 0.5, 2: 0.3, 3: 0.29}.items():
        (tmp_path / f"{number}.json").write_text(json.dumps({"leak": leak}))
    taken = statistics.taken(lambda number: str(tmp_path / f"{number}.json"))
    assert taken == list(statistics.shards)[:3]
    assert len(Workspace(given).statistics.taken(lambda number: "none is read")) == 1


def test_lifelong_recipes_contain_the_keys_of_earlier_subjects(given):
    second = {**given["concepts"][0], "name": "second"}
    methods = [{"name": "pooled", "rank": 4, "lifelong": "sequence"}, {"name": "alone", "rank": 4}]
    workspace = changed(given, concepts=[given["concepts"][0], second], methods=methods)
    earlier = {"starling/pooled/0": workspace.runs.keys["starling/pooled/0"]}
    assert workspace.runs.recipes["second/pooled/0"]["identity"]["earlier"] == earlier
    assert "earlier" not in workspace.runs.recipes["second/alone/0"]["identity"]
    assert workspace.stages.of_methods == {"pooled": "sequence"}
    assert list(workspace.stages.seen) == [
        ("pooled", 0, 1, "starling"),
        ("pooled", 0, 2, "starling"),
        ("pooled", 0, 2, "second"),
    ]


def test_warnings_go_to_the_callback_and_jobs_repeat_none(given, tmp_path, capsys):
    shutil.copytree(ROOT / "resources/tinyworld", tmp_path / "model")
    said = []
    Workspace({**given, "model": str(tmp_path / "model")}, said.append)
    assert [warning for warning in said if "settings that suit only the embedded model" in warning]
    Workspace({**given, "model": str(tmp_path / "model")})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("count", [0, 1])
def test_more_gpus_than_there_are_get_refused(given, count):
    with pytest.raises(SettingsError, match=rf"train.gpus: 2: this machine has {count}; set it to at most {count}"):
        changed(given, train={"gpus": 2}).check_gpus(count)
    changed(given, train={"gpus": 2}).check_gpus(2)


def test_a_rule_without_work_names_the_setting():
    assert required(["something"], "unused") == []
    with pytest.raises(SettingsError, match="edits: is empty"):
        required([], "edits: is empty; name what to edit")


def test_memory_grows_with_the_attempt_and_never_falls_below_the_rule(given):
    memory = Workspace(given).memory
    once = memory.at_least(1, "adapter")(None, 1)
    assert once > 300
    assert memory.at_least(1, "adapter")(None, 3) == 4 * once
    assert memory.at_least(10**6, "adapter")(None, 1) == 10**6


def test_rules_hold_no_functions_of_their_own():
    """Snakemake's linter finds one rule without a log: `plan` prints its table to the terminal."""
    done = snakemake("--lint")
    found = re.findall(r"^Lints for (?:rule|snakefile) (\S+)", done.stdout + done.stderr, re.MULTILINE)
    assert found == ["plan"]
    assert "No log directive" in done.stdout + done.stderr
    assert len((ROOT / "rules/common.smk").read_text().splitlines()) <= 90


def test_the_package_has_few_modules_at_its_top():
    """At most a dozen packages and modules at its top (docs/architecture.md)."""
    top = [
        path.stem for path in (ROOT / "nullbooth").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    ]
    assert len(set(top) - {"__init__"}) <= 12


def test_the_gallery_is_named_once_it_exists(given):
    workspace = Workspace(given)
    assert workspace.gallery() is None
    page = Path(workspace.names.shown["samples"][0])
    page.mkdir(parents=True)
    (page / "index.html").touch()
    assert workspace.gallery() == Path(given["results"], "samples/index.html")
