"""Real runs of the workflow with edits of the embedded model: results, pages, and jobs after changes."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from running import Run, executed, planned

from nullbooth import load_adapter
from nullbooth.models.loading import ModelSource, load_pipeline

EDITS = [{"from": "a moon", "to": "a yellow star"}, {"from": "a ring", "to": ""}]
MADE = {"edit", "unedited_images", "edited_images", "measure_edits"}


@pytest.fixture(scope="module")
def edited(finished, tmp_path_factory) -> Run:
    """A copy of the finished run with edits, their measurements, and a page that shows them."""
    run = finished.copy(tmp_path_factory.mktemp("edited") / "run")
    contexts = {"templates": "{concept}\na photo of {concept}\n{concept} on a red background\n"}
    contexts["paraphrases"] = "a photo of {concept} on a pink background\n{concept} at the bottom\n"
    for name, text in contexts.items():
        (run.folder / f"{name}.txt").write_text(text)
    run.settings["edits"] = EDITS
    run.settings["edit"] = {name: str(run.folder / f"{name}.txt") for name in contexts} | {"pictures": 2}
    run.jobs = executed("edits", *run.arguments())
    executed(results(run) / "samples", *run.arguments())
    run.again = planned("edits", results(run) / "samples", *run.arguments())
    return run


@pytest.fixture
def prompts(edited) -> Iterator[Path]:
    """The file of protected prompts of the run, to change; it is restored afterwards."""
    before = edited.prompts.read_text()
    yield edited.prompts
    edited.prompts.write_text(before)


def results(run: Run) -> Path:
    return run.folder / "results"


# --- what is made ------------------------------------------------------------------------------------------


def test_the_target_edits_solves_draws_and_measures(edited):
    assert edited.jobs == {**dict.fromkeys(MADE, 1), "edits": 1}
    folder = results(edited) / "edits"
    assert (folder / "edit.json").resolve().parents[1] == (results(edited) / "kept/edits").resolve()
    about = json.loads((folder / "edit.json").read_text())
    assert [{key: found[key] for key in ("from", "to")} for found in about["edits"]] == EDITS
    assert all(found["reached"] > 0.5 for found in about["edits"])
    assert about["protected"] == 3 + 1, "of four prompts, one speaks of a moon; and the empty one"
    drawn = json.loads((folder / "images/images.json").read_text())["images"]
    prompts = {group: [e["prompt"] for e in drawn if e["group"] == group] for group in {e["group"] for e in drawn}}
    assert len(prompts["edited"]) == len(prompts["paraphrased"]) == 4
    assert not [p for group in ("unrelated", "protected") for p in prompts[group] if "moon" in p or "ring" in p]


def test_measurements_compare_edited_with_base_pictures(edited):
    folder = results(edited) / "edits"
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    keys = [(r["edit"], r["model"], r["group"], r["metric"]) for r in rows]
    assert len(set(keys)) == len(keys)
    assert {edit for edit, *_ in keys} == {"a moon -> a yellow star", "a ring -> ", "all"}
    assert all(float(r["low"]) - 1e-9 <= float(r["value"]) <= float(r["high"]) + 1e-9 for r in rows)
    value = {key: float(r["value"]) for key, r in zip(keys, rows, strict=True)}
    for group in ("edited", "paraphrased"):
        assert value["all", "edited", group, "clip_margin"] > value["all", "base", group, "clip_margin"]
        assert {("all", model, group, "gone") for model in ("base", "edited")} <= set(keys)
    assert ("a ring -> ", "edited", "edited", "as_meant") not in keys, "what is erased names nothing to be seen"
    assert ("all", "base", "meant", "clip_margin") in keys
    assert value["all", "edited", "protected", "dino_drift"] < 0.05
    assert ("all", "edited", "unrelated", "clip_drift") in keys
    as_json = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert [(r["edit"], r["model"], r["group"], r["metric"]) for r in as_json] == keys


def test_the_page_shows_each_edit_with_its_own_pictures(edited):
    samples = results(edited) / "samples"
    page = (samples / "index.html").read_text()
    addresses = re.findall(r'(?:src|data-base)="([^"]+)"', page)
    assert [a for a in addresses if not (samples / a).is_file()] == []
    assert sum(a.startswith("edits/images/") for a in addresses) == 8
    assert (samples / "edits.csv").read_text() == (results(edited) / "edits/metrics.csv").read_text()
    with Image.open(samples / "edits.png") as sheet:
        assert sheet.size == (104 + 4 * 134, 64 + 2 * 134), "base and edited, two prompts of each edit"
    moon, ring = re.split("<h3>“a ring”", page.split('<section id="edits">')[1])
    assert len(re.findall("<figcaption>[^<]*a moon[^<]*</figcaption>", moon)) == 4
    assert len(re.findall("<figcaption>[^<]*a ring[^<]*</figcaption>", ring)) == 4
    assert "<figcaption>a ring" not in moon
    assert "→ nothing" in ring


@pytest.mark.parametrize("size", browser.SIZES)
def test_the_page_works_in_a_browser(edited, tmp_path, size):
    with browser.opened(results(edited) / "samples/index.html", size, tmp_path / "profile") as driver:
        browser.assert_sound(driver)
        browser.assert_slider_works(driver)
        titles = [e.text for e in driver.find_elements("css selector", "#edits h2, #edits h3")]
        figures = driver.find_elements("css selector", "#edits figure")
        assert len(figures) == 8
    assert titles == ["Edits", "“a moon” → “a yellow star”", "“a ring” → nothing"]


def test_exports_are_a_pipeline_and_lora_files(edited, root):
    jobs = executed("exports", *edited.arguments())
    assert jobs["export_edits"] == 1
    folder = results(edited) / "edits"
    for shared in ("lora", "pipeline"):
        assert not list((folder / shared).rglob(".snakemake*")), "no files of Snakemake in folders that people upload"
    assert {path.name for path in (folder / "lora").glob("*.safetensors")} == {
        "diffusers.safetensors",
        "kohya.safetensors",
    }
    plain = DiffusionPipeline.from_pretrained(folder / "pipeline", use_safetensors=True)
    ours = load_pipeline(ModelSource(str(root / "resources/tinyworld")), torch.device("cpu"))
    before = draw(ours)
    load_adapter(ours, folder / "edit.safetensors")
    torch.testing.assert_close(draw(plain), draw(ours), rtol=0, atol=1e-5)
    assert (draw(ours) - before).abs().max() > 0.05
    assert planned("exports", *edited.arguments()) == {}


def draw(pipeline) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline("a photo of a moon", num_inference_steps=2, generator=generator, output_type="pt").images


# --- what runs again ---------------------------------------------------------------------------------------


def planned_edits(run: Run, **changes) -> set[str]:
    return set(planned("edits", *run.arguments(**changes))) - {"edits"}


def test_nothing_runs_twice(edited):
    assert edited.again == {}
    assert planned_edits(edited) == set()


def test_without_edits_none_of_their_jobs_is_planned(edited):
    assert not MADE & set(planned(*edited.arguments(edits=[])))
    assert "export_edits" not in planned("exports", *edited.arguments(edits=[]))


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"steps": 5, "batch": 2}},
        {"seeds": [0, 1]},
        {"methods": [{"name": "full", "rank": "full"}]},
        {"concepts": [{"name": "quilt", "images": "resources/subjects/quilt/train", "class": "heart"}]},
        {"device": "cpu"},
    ],
    ids=str,
)
def test_edits_do_not_depend_on_training(edited, changes):
    assert planned_edits(edited, **changes) == set()


def test_other_sampling_prompts_draw_again_but_do_not_edit(edited, tmp_path):
    (tmp_path / "unrelated.txt").write_text("a blue anchor\n")
    names = {name: f"config/prompts/minimal_{name}.txt" for name in ("subject", "class")}
    found = planned_edits(edited, sample={"prompts": {**names, "unrelated": str(tmp_path / "unrelated.txt")}})
    assert found - {"base_images"} == {"edited_images", "measure_edits"}


def test_a_sampler_draws_but_does_not_edit(edited):
    found = planned_edits(edited, sampler={"steps": 2})
    assert "edit" not in found
    assert {"unedited_images", "edited_images", "measure_edits"} <= found


def test_another_protected_prompt_edits_again(edited, prompts):
    before = prompts.read_text()
    prompts.write_text(before + "a cyan heart\n")
    assert planned_edits(edited) >= MADE
    prompts.write_text(before + "a cyan moon\n")
    assert "edit" not in planned_edits(edited), "it mentions an edited concept, and is not retained"
    prompts.write_text(before)
    assert planned_edits(edited) == set()


@pytest.mark.parametrize("change", [{"rule": {"fraction": 0.5}}, {"l2": 0.1}], ids=str)
def test_another_rule_or_ridge_edits_again(edited, change):
    assert planned_edits(edited, edit={**edited.settings["edit"], **change}) == MADE


def test_an_edit_more_is_another_result_and_the_first_is_kept(edited):
    more = [*EDITS, {"from": "a cross", "to": "a heart"}]
    first = (results(edited) / "edits/edit.json").resolve()
    assert planned_edits(edited, edits=more) == MADE
    assert planned_edits(edited, edits=EDITS[::-1]) == MADE, "one after another: their order counts"
    assert executed("edit", *edited.arguments(edits=more)) == {"edit": 1}
    assert planned_edits(edited, edits=more) == MADE - {"edit"}
    assert executed("edits", *edited.arguments()) == {}
    assert (results(edited) / "edits/edit.json").resolve() == first
