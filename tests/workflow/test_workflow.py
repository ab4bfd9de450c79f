"""Real runs of the workflow with the embedded model: every stage, and its pages."""

import csv
import json
import re
import shutil
import statistics
from pathlib import Path

import browser
import pytest
import yaml
from running import ROOT, Run, executed, planned, snakemake
from selenium.webdriver.support.ui import WebDriverWait

from nullbooth.statistics.shards import partition
from nullbooth.storage import zarrstore

SHARDED = [f"a {color} {thing}" for color in ("red", "blue", "green") for thing in ("circle", "cross", "square")]
MEASURED = {"embed_base", "evaluate", "evaluation", "gallery", "samples"}


@pytest.mark.parametrize("config", ["config/config.yaml", "config/minimal.yaml"])
def test_dry_run(config, tmp_path):
    jobs = planned("--configfile", config, "--config", f"results={tmp_path}")
    settings = yaml.safe_load((ROOT / config).read_text())
    steps = settings["sampler"]["steps"]
    runs = len(settings["concepts"]) * len(settings["methods"])
    assert jobs["covariance"] == steps
    assert jobs["adapter"] == jobs["evaluate"] == runs


def test_the_example_of_edits(tmp_path):
    """The example extends the project's config, as its first line says."""
    arguments = ("--configfile", "config/edits.yaml", "--config", f"results={tmp_path}")
    jobs = planned(*arguments, "--", "edits")
    made = ("edit", "unedited_images", "edited_images", "measure_edits", "base_images", "edits")
    assert jobs == dict.fromkeys(made, 1), "nothing is learned, and no statistics are needed"
    assert planned(*arguments)["gallery"] == 1


@pytest.mark.parametrize("target", ["trajectories", "covariances", "projectors", "adapters", "exports", "samples"])
def test_stage_names_are_targets(target, tmp_path):
    jobs = planned("--configfile", "config/minimal.yaml", "--config", f"results={tmp_path}", "--", target)
    assert ("adapter" in jobs) == (target in ("adapters", "exports", "samples"))
    assert ("projector" in jobs) == (target not in ("trajectories", "covariances"))


@pytest.mark.parametrize("target", ["covariances/7.zarr", "projectors/50.zarr", "trajectories/000.zarr"])
def test_a_result_has_one_name(target):
    """A timestep that the sampler does not visit, or another spelling of one, is not a target."""
    done = snakemake("--dry-run", f"results/{target}")
    assert done.returncode != 0
    assert f"No rule to produce results/{target}" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trian": {}}, "trian: unknown key; did you mean 'train'?"),
        ({"sampler": {"stepps": 3}}, "sampler.stepps: unknown key; did you mean 'steps'?"),
        ({"seeds": []}, "seeds"),
        ({"model": "no/such/folder"}, "model: 'no/such/folder'"),
        ({"concepts": [{"name": "../x", "images": "a", "class": "b"}]}, "concepts.0.name: '../x'"),
        ({"protect": {"prompts": "nowhere.txt"}}, "nowhere.txt"),
        ({"evaluate": {"dino": "no/such/folder"}}, "evaluate.dino: 'no/such/folder'"),
        ({"evaluate": {"clip": "config"}}, "evaluate.clip: config has no config.json"),
        ({"evaluate": {"lpips": "nowhere.safetensors"}}, "evaluate.lpips: nowhere.safetensors: no such file"),
        ({"comparison": {"concepts": ["rex"]}}, "comparison.concepts: unknown concept 'rex'; use some of starling"),
        ({"comparison": {"reference": "sgd"}}, "comparison.reference: unknown method 'sgd'; use one of nullbooth,"),
        (
            {"sample": {"prompts": {"unrelated": "config/prompts/minimal.txt"}}},
            "sample.prompts.unrelated: 'a large red circle on a blue background' is also protected (4 such prompts)",
        ),
        (
            {"edits": [{"from": word, "to": ""} for word in ("a circle", "heart", "the moon", "a star")]},
            "edits: every protected prompt names something that is edited; protect others (protect.prompts)",
        ),
    ],
)
def test_config_errors_name_the_key(tmp_path, change, message):
    run = Run(tmp_path)
    done = snakemake("--dry-run", *run.arguments(**change))
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_minimal_run_makes_the_gallery(finished):
    samples = finished.folder / "results/samples"
    page = (samples / "index.html").read_text()
    addresses = re.findall(r'src="([^"]+)"', page)
    assert len(addresses) > 10
    assert all((samples / address).is_file() for address in addresses)
    assert not re.search(r"(src|href)=\"(https?:)?//", page)
    assert (samples / "starling.png").is_file()
    metrics = json.loads((finished.folder / "results/runs/starling/pooled/0/metrics.json").read_text())["metrics"]
    drift = [m for m in metrics if m["metric"] == "dino_drift" and m["group"] == "unrelated"]
    assert len(drift) == 1
    assert 0 <= drift[0]["low"] <= drift[0]["value"] <= drift[0]["high"] < 1
    fidelity = {m["model"]: m["value"] for m in metrics if m["metric"] == "dino_fidelity" and m["group"] == "subject"}
    assert fidelity["base"] < fidelity["photographs"] <= 1, "real photographs of the subject are the scale"


@pytest.mark.parametrize("size", browser.SIZES)
def test_the_gallery_works_in_a_browser(finished, tmp_path, size):
    with browser.opened(finished.folder / "results/samples/index.html", size, tmp_path / "profile") as driver:
        browser.assert_sound(driver)
        browser.assert_slider_works(driver)
        titles = [e.text for e in driver.find_elements("css selector", "h2, h3")]
    assert "Attention to the words" in titles
    assert "Free directions" in titles
    assert "Methods side by side" in titles, "there are two methods"


def test_all_measurements_are_one_tidy_table(finished):
    with open(finished.folder / "results/evaluation/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["concept", "method", "seed", "group", "metric", "value", "low", "high", "n"]
    assert all(float(r["low"]) - 1e-9 <= float(r["value"]) <= float(r["high"]) + 1e-9 for r in rows)
    keys = [(r["concept"], r["method"], r["seed"], r["group"], r["metric"]) for r in rows]
    assert len(set(keys)) == len(keys)
    value = {k: float(r["value"]) for k, r in zip(keys, rows, strict=True)}
    found = value["starling", "timestep - pooled", "all", "unrelated", "dino_drift"]
    parts = [value["starling", m, "0", "unrelated", "dino_drift"] for m in ("timestep", "pooled")]
    assert found == pytest.approx(parts[0] - parts[1], abs=1e-9)
    drifts = {m for *_, group, m in keys if group == "protected"}
    assert {
        "dino_drift",
        "clip_drift",
        "pixel_mse",
        "clip_text_change",
        "dino_kid",
        "clip_fid",
        "dino_coverage",
    } <= drifts
    assert ("starling", "pooled", "0", "class", "pres") in value
    as_json = json.loads((finished.folder / "results/evaluation/metrics.json").read_text())
    assert len(as_json) == len(rows)


def test_protected_prompts_change_less_in_every_layer(finished):
    for method in ("pooled", "timestep"):
        with open(finished.folder / f"results/runs/starling/{method}/0/mechanism.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 3 * len({r["site"] for r in rows})
        ratios = [float(r["protected"]) / float(r["heldout"]) for r in rows if float(r["heldout"]) > 1e-6]
        assert statistics.median(ratios) < 0.5, method


def test_free_directions_are_those_that_training_reports(finished):
    with open(finished.folder / "results/figures/free_directions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    static = [r for r in rows if not r["timestep"]]
    assert len(static) == 1
    share = int(static[0]["free"]) / int(static[0]["width"])
    adapter = finished.folder / "results/runs/starling/timestep/0/adapter.safetensors"
    key = adapter.resolve().parent.name  # other tests trained adapters in this run too
    log = finished.folder / f"results/logs/adapters/starling/timestep/0/{key}.log"
    assert f"free directions of to_k: {share:.0%}" in log.read_text()


def test_every_job_has_a_log_and_a_benchmark(finished):
    results = finished.folder / "results"
    logs = {p.relative_to(results / "logs").with_suffix("") for p in (results / "logs").rglob("*.log")}
    benchmarks = {
        p.relative_to(results / "benchmarks").with_suffix("") for p in (results / "benchmarks").rglob("*.tsv")
    }
    stored = {p for p in logs if p.parts[0] in ("trajectories", "moments", "covariances", "projectors")}
    assert benchmarks | stored == logs
    fresh = planned(*finished.arguments(results=str(finished.folder / "none")))
    ran = sum(count for rule, count in fresh.items() if rule != "samples")  # it has no job of its own
    assert len(finished.logs) == ran
    for path in results.glob("kept/*/*/**/*.zarr"):  # results that may come from a shared cache record their costs
        assert zarrstore.read(path).attrs["spent"]["seconds"] > 0
    assert any("s left" in path.read_text() for path in (results / "logs/trajectories").iterdir())


def test_prompts_are_added_only_while_they_lower_the_leak(tmp_path):
    """Two of five shards are enough, because the second cannot lower the leak by 99 %."""
    run = Run(tmp_path)
    run.prompts.write_text("\n".join(SHARDED))

    def arguments(**protect) -> list[str]:
        protect = {"prompts": str(run.prompts), "shard_size": 2, "prompts_until": 0.99, **protect}
        return run.arguments(protect=protect, sampler={"steps": 2})

    assert planned("covariances", *arguments())["trajectory"] == 2, "the first shard, and held-out prompts"
    assert executed("covariances", *arguments()) == {
        "trajectory": 3, "moments": 4, "heldout_moments": 1, "shard_pool": 2, "leak": 2, "covariance": 2,
        "covariances": 1,
    }  # fmt: skip
    summed = zarrstore.read(tmp_path / "results/covariances/00.zarr")
    taken = [zarrstore.read(tmp_path / f"results/kept/shards/{s}/trajectory.zarr") for s in summed.attrs["shards"]]
    assert [group.attrs["prompts"] for group in taken] == partition(SHARDED, [], 2)[:2]
    figure = tmp_path / "results/figures/leak.svg"
    assert executed(figure, *arguments()) == {"leaks": 1}
    rows = list(csv.DictReader(figure.with_suffix(".csv").read_text().splitlines()))
    assert [(r["shards"], r["prompts"]) for r in rows if r["feature"] == "mean"] == [("1", "2"), ("2", "4")]
    assert all(0 <= float(r["leak"]) <= 1 for r in rows)

    assert planned("covariances", *arguments()) == {}
    assert planned("trajectories", *arguments()) == {}
    other = planned("covariances", *arguments(prompts_until=0.98))
    assert not {"trajectory", "moments", "heldout_moments", "shard_pool"} & set(other), "shards do not depend on it"
    assert planned("covariances", *arguments(prompts_until=None))["trajectory"] == 3, "the shards that were left out"
    jobs = planned(*arguments())
    assert not {"trajectory", "moments", "leak"} & set(jobs)
    assert {"spectra", "projector", "adapter", "gallery"} <= set(jobs)


def test_another_encoder_in_the_same_place_measures_again(finished):
    encoders = finished.folder / "encoders"
    shutil.copytree(ROOT / "resources/evaluators", encoders, dirs_exist_ok=True)
    arguments = finished.arguments(evaluate={name: str(encoders / name) for name in ("clip", "dino")})
    try:
        assert planned(*arguments) == {}, "the same content at another path"
        weights = encoders / "dino/heads.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        assert set(planned(*arguments)) == MEASURED
        done = snakemake(*arguments)
        assert done.returncode == 0, done.stderr[-6000:]
        assert planned(*arguments) == {}
    finally:
        done = snakemake(*finished.arguments())
        assert done.returncode == 0, done.stderr[-6000:]


def test_stores_of_another_model_sampler_or_prompts_are_refused_by_jobs(finished, tmp_path):
    """Jobs find valid stores of another run in place of their own."""
    run = finished.copy(tmp_path / "run")
    sums = (run.folder / "results/covariances/00.zarr").resolve().parents[1]
    for step, key in enumerate(("model", "sampler", "prompts")):
        path = sums / f"covariances/{step:02d}.zarr"
        group = zarrstore.read(path)
        own = ("identity", "versions", "arrays", "spent", "checksums", "seal")
        attributes = {name: value for name, value in group.attrs.items() if name not in own}
        arrays = {name: group[name][:] for name in group.attrs["arrays"]}
        zarrstore.write(path, arrays, {**group.attrs["identity"], key: "another"}, **attributes)
    wanted = [str(sums / f"projectors/{step:02d}.zarr") for step in range(3)]
    done = snakemake(*wanted, *run.arguments())
    assert done.returncode != 0
    for step, key in enumerate(("model", "sampler", "prompts")):
        assert f"covariances/{step:02d}.zarr: made for {key} 'another', but this run has" in done.stderr
    assert not any(Path(path).exists() for path in wanted), "no older result is left that could be taken for new"


def test_statics_are_stored_once(finished):
    covariances = (finished.folder / "results/covariances/00.zarr").resolve().parent
    counts = [len(zarrstore.read(covariances / f"{step:02d}.zarr").attrs["features"]) for step in range(3)]
    static = [f for f in zarrstore.read(covariances / "00.zarr").attrs["features"] if f["static"]]
    assert len(static) == 1
    assert all(".to_k" in site or ".to_v" in site for site in static[0]["sites"])
    assert counts == [counts[1] + 1, counts[1], counts[1]]


RIVALS = [
    {"name": "ours", "rank": 4, "sweep": [{"steps": 2}, {"steps": 4}]},
    {"name": "prior", "method": "dreambooth-prior", "train": {"learning_rate": 1e-4, "steps": 2}},
    {"name": "corda", "method": "corda", "rank": 4, "train": {"steps": 2}},
    {"name": "replay", "method": "replay", "rank": 4, "train": {"steps": 2}},
]
COMPARISON = {"seeds": [0], "steps": 3, "scales": [0.5, 1.0], "reference": "prior", "methods": RIVALS}


@pytest.fixture(scope="module")
def compared(finished) -> Run:
    """The finished run, with a comparison."""
    arguments = finished.arguments(comparison=COMPARISON, sample={"class_images": 6})
    done = snakemake(str(finished.folder / "results/comparison"), *arguments)
    assert done.returncode == 0, done.stderr[-6000:]
    return finished


def test_the_comparison_has_a_point_for_each_setting_and_scale(compared):
    found = json.loads((compared.folder / "results/comparison/comparison.json").read_text())
    assert {row["curve"] for row in found["methods"]} == {"ours", "prior", "corda", "replay"}
    adapters = ["ours-steps2", "ours-steps4", "prior", "corda", "replay"]
    assert [p["point"] for p in found["points"]] == [name + at for name in adapters for at in ("@0.5", "")]
    drift = {p["point"]: p["drift"] for p in found["points"]}
    assert all(0 < drift[f"{name}@0.5"] < drift[name] for name in adapters)
    assert any(p["pareto"] for p in found["points"])
    assert all(p["step_seconds"] > 0 for p in found["points"])
    prior = next(row for row in found["methods"] if row["curve"] == "prior")
    assert prior["equal"]["ratio"] == 1
    assert prior["subject_seconds"] > 0
    assert prior["model_seconds"] == 0
    learned = list((compared.folder / "results/kept/runs").rglob("adapter.safetensors"))
    assert not [path for path in learned if "@" in str(path)], "nothing is trained for a scale"


@pytest.mark.parametrize("size", browser.SIZES)
def test_the_comparison_has_a_curve_and_a_row_for_each_method(compared, tmp_path, size):
    with browser.opened(compared.folder / "results/comparison/index.html", size, tmp_path / "profile") as driver:
        browser.assert_sound(driver)
        plot = driver.find_element("css selector", "#trade-off svg").get_attribute("textContent")
        rows = driver.find_elements("css selector", "tbody tr")
        assert len(rows) == 4
    assert all(name in plot for name in ("ours", "prior", "corda", "replay", "Pareto front", "photographs"))


def test_a_comparison_leaves_everything_else_as_it_is(compared):
    assert planned(*compared.arguments()) == {}
    again = compared.arguments(comparison=COMPARISON, sample={"class_images": 6})
    assert planned(str(compared.folder / "results/comparison"), *again) == {}


def python_blocks(page: Path) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))


def test_the_python_of_readme_and_docs_runs(finished, tmp_path, monkeypatch):
    """Code blocks run in their order, in a folder with the results of a run."""
    pooled, timestep = (
        finished.folder / f"results/runs/starling/{name}/0/adapter.safetensors" for name in ("pooled", "timestep")
    )
    for name, adapter in (("starling", pooled), ("rex", pooled), ("mug", timestep)):
        place = tmp_path / f"results/runs/{name}/nullbooth/0/adapter.safetensors"
        place.parent.mkdir(parents=True)
        place.symlink_to(adapter)
    for name, adapter in (("rex", pooled), ("mia", timestep)):
        (tmp_path / f"{name}.safetensors").symlink_to(adapter)
    (tmp_path / "resources").symlink_to(ROOT / "resources")
    monkeypatch.chdir(tmp_path)
    names = {}
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    blocks = {page: found for page in pages if (found := python_blocks(page))}
    assert {"README.md", "adapters.md", "lifelong.md", "tutorial.md"} <= {page.name for page in blocks}
    for page, block in blocks.items():
        exec(compile(block, page, "exec"), names)
        names["pipe"]("a red star", num_inference_steps=2)
    assert (tmp_path / "star.png").stat().st_size > 1000


def test_the_report_works_in_a_browser(compared, tmp_path):
    arguments = compared.arguments(comparison=COMPARISON, sample={"class_images": 6})
    targets = [str(compared.folder / "results" / name) for name in ("samples", "comparison")]
    done = snakemake(*targets, *arguments, "--report", str(tmp_path / "report.zip"))
    assert done.returncode == 0, done.stderr[-6000:]
    shutil.unpack_archive(tmp_path / "report.zip", tmp_path)
    with browser.opened(tmp_path / "report/report.html", "laptop", tmp_path / "profile") as driver:

        def click(path: str) -> None:
            WebDriverWait(driver, 20).until(lambda d: [e for e in d.find_elements("xpath", path) if e.is_displayed()])[
                0
            ].click()

        for category in ("Gallery", "Comparison", "Measurements", "Mechanism", "Moments"):
            click(f"//a[contains(., '{category}')]")
            click("//a[@iconname='eye']")
            if category != "Measurements":  # a table, drawn by the report itself
                shown = "//iframe[contains(@src, 'data/raw')] | //img[contains(@src, 'data/raw')]"
                WebDriverWait(driver, 20).until(lambda d, path=shown: d.find_elements("xpath", path))
            driver.get((tmp_path / "report/report.html").as_uri())
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    pages = sorted((tmp_path / "report/data/raw").glob("*/index.html"))
    assert len(pages) == 2
    for page in pages:
        with browser.opened(page, "laptop", tmp_path / "profile") as driver:
            browser.assert_sound(driver)
