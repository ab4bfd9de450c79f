"""Real runs of the workflow in which the embedded model learns subjects one after another."""

import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from running import Run, executed, planned, snakemake

from nullbooth import load_adapter
from nullbooth.adapters.file import read_adapter
from nullbooth.models.loading import ModelSource, load_pipeline
from nullbooth.models.pixels import load_image
from nullbooth.models.sampling import sample
from nullbooth.storage import zarrstore

ORDER = ("starling", "quilt")
SUBJECTS = {"starling": ("vbk", "star"), "quilt": ("qlt", "heart"), "muppet": ("mpt", "circle")}
METHODS = [
    {"name": "ours", "scope": "pooled", "rank": 4, "lifelong": "sequence"},
    {"name": "stepwise", "scope": "timestep", "rank": 4, "lifelong": "sequence", "train": {"distinct_timesteps": 1}},
    {"name": "side", "method": "lora", "rank": 4, "lifelong": "merged"},
]
OWN = {"subject_moments", "joined_projector", "stage_images", "stage_metrics", "together", "lifelong"}


def concepts(*names: str) -> list[dict]:
    found = []
    for name in names:
        photographs, (identifier, kind) = f"resources/subjects/{name}", SUBJECTS[name]
        entry = {"name": name, "identifier": identifier, "class": kind, "images": f"{photographs}/train"}
        found.append(entry | {"holdout": f"{photographs}/holdout"})
    return found


@pytest.fixture(scope="module")
def learned(finished, tmp_path_factory) -> Run:
    """A copy of the finished run, in which two subjects are learned one after another by two methods, and merged."""
    run = finished.copy(tmp_path_factory.mktemp("in_turn") / "run")
    run.settings |= {"concepts": concepts(*ORDER), "methods": METHODS}
    run.jobs = executed(results(run) / "lifelong", *run.arguments())
    executed(results(run) / "samples", *run.arguments())
    run.again = planned(results(run) / "lifelong", results(run) / "samples", *run.arguments())
    return run


def results(run: Run) -> Path:
    return run.folder / "results"


def told(run: Run) -> dict:
    return json.loads((results(run) / "lifelong/lifelong.json").read_text())


def run_of(run: Run, concept: str, method: str) -> Path:
    """Return the folder of an adapter."""
    [adapter] = (results(run) / "kept/runs" / concept / method / "0").glob("*/adapter.safetensors")
    return adapter.parent


# --- what is made ------------------------------------------------------------------------------------------


def test_each_stage_is_a_job_of_its_own(learned):
    assert {rule: learned.jobs[rule] for rule in OWN} == {
        "subject_moments": 2,  # of the first subject, under two protecting methods
        "joined_projector": 1 + 3,  # pooled, and each of three timesteps
        "stage_images": 2 + 2,  # the first subject again, and both merged ones
        "stage_metrics": 2 + 2,
        "together": 3,
        "lifelong": 1,
    }
    assert learned.jobs["adapter"] == 6
    assert not {"trajectory", "moments", "projector"} & set(learned.jobs), "statistics are reused"


def test_a_recipe_names_the_subjects_that_it_is_learned_on_top_of(learned):
    for method, joins in (("ours", True), ("stepwise", True), ("side", False)):
        first, second = (yaml.safe_load((run_of(learned, c, method) / "config.yaml").read_text()) for c in ORDER)
        assert "earlier" not in first["identity"]
        if method == "side":
            assert "earlier" not in second["identity"]
        else:
            assert second["identity"]["earlier"] == {f"starling/{method}/0": run_of(learned, "starling", method).name}
        assert ("lifelong" in second["identity"]) == joins


def test_the_second_subject_is_learned_in_the_null_space_of_prompts_and_first_subject(learned):
    """Compared with eigenvectors of the stored moments, computed here."""
    covariance = results(learned) / "covariances/pooled.zarr"  # by its plain name, because earlier tests made others
    executed(covariance, *learned.arguments())
    pooled = zarrstore.read(covariance)
    subject = zarrstore.read(run_of(learned, "starling", "ours") / "moments.zarr")
    tensors, info = read_adapter(run_of(learned, "quilt", "ours") / "adapter.safetensors")
    assert info.rule == "energy: 0.001"
    taken = []
    for feature in pooled.attrs["features"]:
        name = feature["name"]
        keys = [key for key in subject.attrs["rows"] if key.partition(":")[2] == name]
        assert len(keys) == (1 if feature["static"] else 3)
        own = zarrstore.unpack_symmetric(pooled[name][:]) / pooled.attrs["rows"][name]
        c = own + np.mean([zarrstore.unpack_symmetric(subject[k][:]) / subject.attrs["rows"][k] for k in keys], axis=0)
        occupied = {}
        for kind, moment in (("joined", c), ("protected", own)):
            w, u = np.linalg.eigh(moment.astype(np.float64))
            occupied[kind] = u[:, (np.cumsum(w) > 1e-3 * np.trace(own)).argmax() :]
        for site in feature["sites"]:
            change = (tensors[f"{site}.up"].double() @ tensors[f"{site}.down"][0].double()).numpy()
            leak = np.linalg.norm(change @ occupied["joined"]) / np.linalg.norm(change)
            assert leak < 1e-3, site
            taken.append(occupied["joined"].shape[1] - occupied["protected"].shape[1])
    assert len(taken) > 20
    assert min(taken) >= 0, "no subject weakens the protection of the prompts"
    assert max(taken) > 0, "subjects use free directions"


def test_every_subject_is_measured_when_learned_and_after_each_later_one(learned):
    with open(results(learned) / "lifelong/lifelong.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    fidelity = {
        (row["method"], row["known"], row["concept"]): float(row["value"])
        for row in rows
        if (row["group"], row["metric"]) == ("subject", "dino_fidelity")
    }
    in_turn = [("1", "starling"), ("2", "starling"), ("2", "quilt")]
    merged = [("0", "starling"), ("0", "quilt"), *in_turn]
    expected = {(m, *key) for m in ("ours", "stepwise") for key in in_turn} | {("side", *key) for key in merged}
    assert set(fidelity) == expected
    drifts = Counter(
        (row["method"], row["known"]) for row in rows if row["metric"] == "dino_drift" and row["group"] == "unrelated"
    )
    assert drifts["ours", "1"] == drifts["ours", "2"] == 1, "other prompts are drawn once per number of subjects"
    methods = {row["method"]: row for row in told(learned)["methods"]}
    assert list(methods) == ["ours", "stepwise", "side"]
    for name, row in methods.items():
        first = [fidelity[name, "0" if name == "side" else str(i), c] for i, c in enumerate(ORDER, 1)]
        last = [fidelity[name, "2", c] for c in ORDER]
        assert row["when_learned"]["value"] == pytest.approx(np.mean(first))
        assert row["at_the_end"]["value"] == pytest.approx(np.mean(last))
        assert row["forgotten"]["value"] == pytest.approx(np.mean(first) - np.mean(last))
        assert ("room" in row) == (name != "side")
        if "room" in row:
            assert row["room"]["means"][1] < row["room"]["means"][0]


def test_pictures_of_later_stages_are_those_of_all_adapters_together(learned, root):
    """Pictures of the first subject, drawn again here, are made with both merged adapters."""
    [entry] = [e for e in told(learned)["shown"] if (e["method"], e["known"], e["concept"]) == ("side", 2, "starling")]
    listed = json.loads((Path(entry["images"]) / "images.json").read_text())["images"]
    shown = next(e for e in listed if e["group"] == "subject")
    pipeline = load_pipeline(ModelSource(str(root / "resources/tinyworld")), torch.device("cpu"))
    how = {"steps": 3, "guidance": 3.0}
    load_adapter(pipeline, run_of(learned, "starling", "side") / "adapter.safetensors")
    one = sample(pipeline, [shown["prompt"]], [shown["seed"]], **how)[0]
    load_adapter(pipeline, run_of(learned, "quilt", "side") / "adapter.safetensors")
    both = sample(pipeline, [shown["prompt"]], [shown["seed"]], **how)[0]
    found = load_image(Path(entry["images"]) / shown["file"], 64)
    assert (found - both).abs().max() < 0.02
    assert (one - both).abs().max() > (found - both).abs().max()


def test_two_subjects_stand_in_one_picture(learned):
    for entry in told(learned)["together"]:
        listed = json.loads((Path(entry["images"]) / "images.json").read_text())["images"]
        assert len(listed) == 3
        assert len({e["seed"] for e in listed}) == 3
        prompts = {e["prompt"] for e in listed}
        left, right = prompts.pop().split(" | ")
        assert not prompts
        assert "vbk star" in left
        assert "qlt heart" in right
        assert all((Path(entry["images"]) / e["file"]).is_file() for e in listed)


def test_the_log_reports_free_directions(learned):
    [log] = (results(learned) / "logs/lifelong").glob("table.log")
    assert re.search(r"^ours: free directions, mean of all layers: \d+\.\d%, \d+\.\d%; ", log.read_text(), re.MULTILINE)


# --- the page ----------------------------------------------------------------------------------------------


def test_the_page_shows_the_retention_of_each_subject(learned):
    samples = results(learned) / "samples"
    section = (samples / "index.html").read_text().split('<section id="lifelong">')[1].split("</section>")[0]
    addresses = re.findall(r'(?:src|href)="([^"]+)"', section)
    assert [a for a in addresses if not (samples / a).is_file()] == []
    for name in ("retention.svg", "room.svg", "lifelong.csv"):
        assert f"lifelong/{name}" in addresses
    for name, rows in (("lifelong", 1 + 3), ("together", 3)):  # a row per method, and one for photographs
        with Image.open(samples / f"{name}.png") as sheet:
            assert sheet.size == (104 + 3 * 134, 64 + rows * 134)
        assert f"{name}.png" in addresses
    captions = Counter(re.findall("<figcaption>([^<]*)</figcaption>", section))
    assert captions["starling, 1 known"] == 3
    assert captions["starling, 2 known"] == captions["quilt, 2 known"] == 3
    assert captions["starling, alone"] == captions["quilt, alone"] == 1
    assert len(re.findall('alt="a photo of a vbk star on the left[^"]*qlt heart', section)) == 9


@pytest.mark.parametrize("size", browser.SIZES)
def test_the_page_works_in_a_browser(learned, tmp_path, size):
    with browser.opened(results(learned) / "samples/index.html", size, tmp_path / "profile") as driver:
        browser.assert_sound(driver)
        rows = driver.find_elements("css selector", "#lifelong table tr")
        assert [row.text.split()[0] for row in rows] == ["method", "ours", "stepwise", "side"]


# --- what runs again ---------------------------------------------------------------------------------------


def planned_lifelong(run: Run, **changes) -> dict[str, int]:
    return planned(results(run) / "lifelong", *run.arguments(**changes))


def test_nothing_runs_twice(learned):
    assert learned.again == {}


def test_methods_without_lifelong_are_planned_without_its_jobs(learned):
    plain = [{k: v for k, v in method.items() if k != "lifelong"} for method in METHODS]
    assert not OWN & set(planned(*learned.arguments(methods=plain)))
    assert not OWN & set(planned(*learned.arguments(concepts=concepts("starling"))))


def test_merged_adapters_are_reused_and_of_a_sequence_only_the_first(learned):
    """The first subject is learned alone, so that the adapters of plain methods are reused."""
    plain = [{k: v for k, v in method.items() if k != "lifelong"} for method in METHODS]
    assert planned(*learned.arguments(methods=plain))["adapter"] == 2


def test_another_order_learns_later_subjects_again(learned):
    found = planned_lifelong(learned, concepts=concepts(*ORDER[::-1]))
    assert found["adapter"] == 4, "merged adapters do not depend on the order"
    assert found["subject_moments"] == 2


def test_one_more_subject_leaves_the_first_ones_as_they_are(learned):
    found = planned_lifelong(learned, concepts=concepts(*ORDER, "muppet"))
    assert found["adapter"] == 3
    assert found["subject_moments"] == 2
    assert found["joined_projector"] == 4
    assert found["stage_metrics"] == 2 * 2 + 3


def test_another_weight_or_other_prompts_learn_the_later_ones_again(learned, tmp_path):
    assert planned_lifelong(learned, lifelong={"weight": 2.0})["adapter"] == 2
    assert "subject_moments" not in planned_lifelong(learned, lifelong={"weight": 2.0})
    prompts = tmp_path / "taught.txt"
    prompts.write_text("a photo of a {subject}\na {subject} on a red background\n")
    found = planned_lifelong(learned, lifelong={"prompts": str(prompts)})
    assert found["adapter"] == 2
    assert found["subject_moments"] == 2


def test_another_pair_draws_the_pair_alone(learned):
    pair = ["a small {subject}", "a large {subject}"]
    assert set(planned_lifelong(learned, lifelong={"pair": pair})) == {"together", "lifelong"}


def test_two_methods_with_the_same_settings_are_both_reported(learned):
    twice = [METHODS[0], {**METHODS[0], "name": "again"}]
    assert planned_lifelong(learned, methods=twice)["together"] == 1


def test_with_a_pack_merged_adapters_need_no_statistics(learned, tmp_path):
    executed("pack", *learned.arguments())
    pack = shutil.copy(results(learned) / "packs/pooled.safetensors", tmp_path)
    protect = {**learned.settings["protect"], "pack": str(pack)}
    found = planned_lifelong(learned, methods=[{**METHODS[0], "lifelong": "merged"}], protect=protect)
    assert {"adapter", "together", "lifelong"} <= set(found)
    assert not {"trajectory", "moments", "covariance", "pool", "projector"} & set(found)


# --- no room left ------------------------------------------------------------------------------------------


def test_without_free_directions_the_earlier_subjects_are_named(learned, tmp_path):
    run = learned.copy(tmp_path / "full")
    run.settings["lifelong"] = {"weight": 1e9}  # the first subject outweighs everything else
    method = {**METHODS[0], "rule": {"absolute": 1e-3}}
    done = snakemake(results(run) / "lifelong", *run.arguments(methods=[method]))
    assert done.returncode
    said = "quilt: the protected prompts and the subjects before it (starling) leave no direction free: "
    logs = "".join(path.read_text() for path in (results(run) / "logs").rglob("*.log"))
    assert said in logs, done.stderr[-3000:]
    assert "no free direction under the rule absolute: 0.001" in logs
