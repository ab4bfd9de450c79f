"""Nothing is computed twice and no stale result is used: jobs after each change, in real runs and in plans."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from running import ROOT, Run, executed, planned, snakemake

from nullbooth.storage import zarrstore

SUMS = {"covariance", "pool", "projector", "spectra"}
STATISTICS = {"trajectory", "moments", *SUMS}
BASE = {"base_images", "embed_base"}
VIEWS = {"evaluation", "gallery", "samples"}
LATER = {"tuned_images", "evaluate", "mechanism", *VIEWS}


@pytest.fixture
def run(finished) -> Iterator[Run]:
    """The finished run itself, to change and run again; its pages and links are restored afterwards."""
    before = finished.prompts.read_text()
    yield finished
    finished.prompts.write_text(before)
    assert executed(*finished.arguments()) == {}


def covariances(run: Run) -> dict[str, Path]:
    """Return the kept covariances of the present settings, by name."""
    assert executed("covariances", *run.arguments()) == {}
    return {path.name: path.resolve() for path in run.folder.glob("results/covariances/[0-9]*.zarr")}


def first_array(path: Path) -> np.ndarray:
    group = zarrstore.read(path)
    return group[group.attrs["arrays"][0]][:]


def target(run: Run, name: str) -> str:
    return str(run.folder / "results" / name)


# --- changes that are none ----------------------------------------------------------------------------


def test_nothing_runs_twice(finished):
    """Nor in another Python process, where sets have another order: params of jobs must not depend on it."""
    assert planned(*finished.arguments(), fresh=True) == {}


def test_touching_files_runs_nothing(finished):
    for folder in ("config", "resources/subjects/starling", "resources/tinyworld", "workflow/scripts", "nullbooth"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.is_file():
                os.utime(path)
    os.utime(finished.prompts)
    assert planned(*finished.arguments()) == {}


def test_the_same_content_in_new_files_runs_nothing(finished, tmp_path):
    """With new times, as after `git checkout`, and in another folder."""
    subject, model = tmp_path / "photographs", tmp_path / "tinyworld"
    shutil.copytree(ROOT / "resources/subjects/starling/train", subject, copy_function=shutil.copy)
    shutil.copytree(ROOT / "resources/tinyworld", model, copy_function=shutil.copy)
    finished.prompts.write_text(finished.prompts.read_text())
    [starling] = [{"name": "starling", "images": str(subject), "identifier": "vbk", "class": "star"}]
    starling["holdout"] = "resources/subjects/starling/holdout"
    assert set(planned(*finished.arguments(model=str(model), concepts=[starling]))) <= VIEWS


def test_comments_blank_lines_and_order_of_prompts_run_nothing(finished):
    before = finished.prompts.read_text()
    finished.prompts.write_text("# a comment\n\n" + "\n".join(reversed(before.splitlines())) + "\n")
    try:
        assert planned(*finished.arguments()) == {}
    finally:
        finished.prompts.write_text(before)


def test_edited_code_runs_nothing(tmp_path):
    """In a copy of the project, so that code can be edited; Snakemake notices the edit if asked to."""
    project = tmp_path / "project"
    for name in ("rules", "workflow", "nullbooth", "config", "profiles", "resources", "envs"):
        shutil.copytree(ROOT / name, project / name)
    shutil.copy(ROOT / "Snakefile", project)
    arguments = ("--configfile", "config/minimal.yaml", "--config", "precision=fp32", "--", "trajectories")
    assert executed(*arguments, cwd=project) == {"trajectory": 1, "trajectories": 1}
    for path in [*(project / "nullbooth").rglob("*.py"), *(project / "workflow/scripts").glob("*.py")]:
        path.write_text(path.read_text() + "\nEDITED = True\n")
    assert planned(*arguments, cwd=project) == {}
    assert "trajectory" in planned("--rerun-triggers", "code", *arguments, cwd=project)


def test_settings_that_only_save_memory_run_nothing(finished):
    assert planned(*finished.arguments(offload=True)) == {}


# --- changes --------------------------------------------------------------------------------------------


def test_an_added_prompt_costs_only_itself(run):
    """Moments of earlier prompts stay, sums cover all prompts, and going back computes nothing."""
    before = run.prompts.read_text()
    old = {name: first_array(path) for name, path in covariances(run).items()}
    known = set(run.folder.glob("results/kept/shards/*"))
    run.prompts.write_text(before + "a cyan ring\n")
    adapters = target(run, "runs/starling/pooled/0")

    def learned() -> Path:
        return run.folder / "results/runs/starling/pooled/0/adapter.safetensors"

    assert executed(adapters, *run.arguments()) == {
        "trajectory": 1, "moments": 3, "covariance": 3, "pool": 1, "projector": 1, "adapter": 1,
    }  # fmt: skip
    [shard] = set(run.folder.glob("results/kept/shards/*")) - known
    adapter = learned().resolve()
    assert zarrstore.read(shard / "trajectory.zarr").attrs["prompts"] == ["a cyan ring"]
    [added_up] = [
        folder
        for folder in run.folder.glob("results/kept/statistics/*/covariances")
        if shard.name in zarrstore.read(folder / "00.zarr").attrs["shards"]
    ]
    for name, part in old.items():
        np.testing.assert_array_equal(first_array(added_up / name), part + first_array(shard / "moments" / name))

    run.prompts.write_text(before)
    assert set(planned(*run.arguments())) <= VIEWS
    assert executed(adapters, *run.arguments()) == {}
    assert learned().resolve() != adapter, "the plain name is that of now"
    assert adapter.is_file(), "and the other adapter is kept"
    run.prompts.write_text("\n".join(before.splitlines()[1:]) + "\n")
    assert set(planned(*run.arguments())) >= STATISTICS | {"adapter"} | LATER, "a prompt less"
    run.prompts.write_text(before.replace("moon", "small moon"))
    assert set(planned(*run.arguments())) >= STATISTICS | {"adapter"} | LATER, "a prompt changed"


def test_a_changed_weight_runs_everything_and_going_back_nothing(run, tmp_path):
    """Changes one bit, but not size and modification time: the change time reveals it."""
    model = tmp_path / "model"
    shutil.copytree(ROOT / "resources/tinyworld", model)
    arguments = run.arguments(model=str(model))
    assert set(planned(*arguments)) <= VIEWS
    [weights] = (model / "unet").glob("*.safetensors")
    stat, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert set(planned(*arguments)) == STATISTICS | LATER | {"heldout_moments", "adapter", *BASE}
    assert executed(target(run, "covariances/00.zarr"), *arguments) == {
        "trajectory": 1, "moments": 1, "covariance": 1,
    }  # fmt: skip
    content[-1] ^= 1
    weights.write_bytes(content)
    assert set(planned(*arguments)) <= VIEWS


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ({"train": {"steps": 5, "batch": 2}}, {"adapter"} | LATER),
        ({"comparison": {"steps": 5}}, set()),
        ({"seeds": [0, 1]}, {"adapter"} | LATER),
        ({"device": "cpu"}, set()),
        ({"precision": "bf16"}, STATISTICS | {"heldout_moments", "adapter", *BASE} | LATER),
        ({"protect": {"rule": {"energy": 0.01}}}, {"adapter", "spectra"} | LATER),
        ({"protect": {"shard_size": 1}}, set()),
        ({"protect": {"prompts_until": 0.05}}, SUMS | {"adapter"} | LATER),
        ({"validate": {"every": 100}}, set()),
        ({"sample": {"seed": 1}}, {*BASE, "tuned_images", "evaluate"} | VIEWS),
        ({"sampler": {"guidance": 2.0}}, STATISTICS | {"heldout_moments", "adapter", *BASE} | LATER),
        ({"sampler": {"steps": 2}}, STATISTICS | {"heldout_moments", "adapter", *BASE} | LATER),
        (
            {"sampler": {"scheduler": "EulerDiscreteScheduler"}},
            STATISTICS | {"heldout_moments", "adapter", *BASE} | LATER,
        ),
        ({"protect": {"sites": ["*.attn2.to_k", "*.attn2.to_v"]}}, STATISTICS | {"heldout_moments", "adapter"} | LATER),
    ],
)
def test_changes_run_the_jobs_that_depend_on_them(finished, change, runs):
    assert set(planned(*finished.arguments(**changed(finished, change)))) == runs


def changed(run: Run, change: dict) -> dict:
    """Return the settings of a run, with changes merged below their keys."""
    return {k: {**run.settings.get(k, {}), **v} if isinstance(v, dict) else v for k, v in change.items()}


LEARNED = {"adapter": 2, "adapters": 1}
SUMMED = {
    "trajectory": 1, "moments": 3, "covariance": 3, "pool": 1, "projector": 4, "projectors": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "target", "jobs"),
    [
        ({"protect": {"rule": {"energy": 0.01}}}, "adapters", LEARNED),
        ({"train": {"steps": 2, "batch": 2}}, "adapters", LEARNED),
        ({"seeds": [1]}, "adapters", LEARNED),
        ({"sampler": {"steps": 3, "guidance": 2.0}}, "projectors", SUMMED),
    ],
)
def test_runs_do_what_was_planned(run, change, target, jobs):
    """A second run does nothing."""
    arguments = run.arguments(**changed(run, change))
    assert executed(target, *arguments) == jobs
    assert executed(target, *arguments) == {}


def test_another_subject_leaves_the_first_alone(finished):
    quilt = {"name": "quilt", "images": "resources/subjects/quilt/train", "identifier": "vbk", "class": "heart"}
    starling = {**quilt, "name": "starling", "images": "resources/subjects/starling/train", "class": "star"}
    starling["holdout"] = "resources/subjects/starling/holdout"
    jobs = planned(*finished.arguments(concepts=[starling, quilt]))
    assert set(jobs) == {"adapter", *BASE} | LATER
    assert jobs["adapter"] == 2, "one for each method, of the new subject only"


@pytest.mark.parametrize("name", ["00.png", "metadata.jsonl"])
def test_another_photograph_or_caption_trains_again(finished, tmp_path, name):
    """In a copy of the photographs, which by itself runs nothing (see above)."""
    photographs = tmp_path / "photographs"
    shutil.copytree(ROOT / "resources/subjects/starling/train", photographs)
    starling = {"name": "starling", "images": str(photographs), "identifier": "vbk", "class": "star"}
    arguments = finished.arguments(concepts=[{**starling, "holdout": "resources/subjects/starling/holdout"}])
    if name.endswith(".png"):
        shutil.copy(photographs / "01.png", photographs / name)
    else:
        text = (photographs / name).read_text()
        (photographs / name).write_text(text.replace("{subject}", "small {subject}", 1))
    assert set(planned(*arguments)) == {"adapter"} | LATER


def test_other_sampling_prompts_do_not_train(finished, tmp_path):
    prompts = {name: f"config/prompts/minimal_{name}.txt" for name in ("subject", "class", "unrelated")}
    (tmp_path / "subject.txt").write_text("a photo of a {subject} in the snow\n")
    prompts["subject"] = str(tmp_path / "subject.txt")
    jobs = planned(*finished.arguments(sample={"prompts": prompts}))
    assert set(jobs) == {*BASE, "tuned_images", "evaluate"} | VIEWS


def test_other_sampling_prompts_make_another_page_and_the_first_is_kept(finished, tmp_path):
    """Also without Snakemake's records of the results, as after copying them, or in another clone."""
    run = finished.copy(tmp_path / "run")
    samples = run.folder / "results/samples"
    (tmp_path / "subject.txt").write_text("a photo of a {subject} on a cyan background\n")
    files = {group: f"config/prompts/minimal_{group}.txt" for group in ("subject", "class", "unrelated")}
    other = {"sample": {"prompts": {**files, "subject": str(tmp_path / "subject.txt")}}}

    def page() -> str:
        return (samples / "index.html").read_text()

    first = page()
    assert executed(samples, *run.arguments()) == {}
    drawn = {"base_images": 1, "embed_base": 1, "tuned_images": 2, "evaluate": 2, "evaluation": 1, "gallery": 1}
    assert executed(samples, *run.arguments(**other)) == drawn
    assert "on a cyan background" in page()
    assert "on a cyan background" not in first
    assert planned(samples, *run.arguments()) == {}
    assert "on a cyan background" in page(), "a dry run changes nothing"
    assert executed(samples, *run.arguments()) == {}
    assert page() == first
    assert executed(samples, *run.arguments(**other)) == {}
    assert "on a cyan background" in page()
    pictures = finished.folder / "results/runs/starling/pooled/0/images"
    assert sorted(p.name for p in pictures.iterdir()) == sorted(
        p.name for p in (run.folder / "results/runs/starling/pooled/0/images").iterdir()
    )


@pytest.fixture
def without_a_covariance(run, tmp_path) -> Iterator[Run]:
    """The run without the covariance of timestep 01, which is restored afterwards with its times."""
    place = covariances(run)["01.zarr"]
    away = tmp_path / "01.zarr"
    shutil.move(place, away)
    yield run
    shutil.rmtree(place, ignore_errors=True)
    shutil.move(away, place)


def test_a_deleted_covariance_is_made_again_with_its_dependents(without_a_covariance):
    """Also if the run is stopped in between: results older than their input are stale."""
    run = without_a_covariance
    jobs = planned(*run.arguments())
    assert set(jobs) == SUMS | {"adapter"} | LATER
    assert jobs["covariance"] == 1
    assert jobs["projector"] == 2, "its own and the pooled one"
    assert executed(target(run, "covariances/01.zarr"), *run.arguments()) == {"covariance": 1}
    jobs = planned(*run.arguments())
    assert set(jobs) == (SUMS | {"adapter"} | LATER) - {"covariance"}
    assert jobs["projector"] == 2


def test_trajectories_may_be_deleted_to_save_disk_space(run, tmp_path):
    places = list(run.folder.glob("results/kept/shards/*/trajectory.zarr"))
    for i, place in enumerate(places):
        shutil.move(place, tmp_path / f"{i}.zarr")
    try:
        assert planned(*run.arguments()) == {}
    finally:
        for i, place in enumerate(places):
            shutil.move(tmp_path / f"{i}.zarr", place)


# --- files that nobody made ---------------------------------------------------------------------------


def test_files_of_file_managers_and_nfs_among_the_results_change_nothing(finished, tmp_path):
    """With such files in every folder, nothing runs again, and stages that read folders still work if forced."""
    run = finished.copy(tmp_path / "visited")
    folders = [run.folder / "results", *(p for p in (run.folder / "results").rglob("*") if p.is_dir())]
    for folder in folders:
        if not folder.is_symlink():
            for name in (".DS_Store", "._.DS_Store", "Thumbs.db", "desktop.ini", ".nfs0000000000a1b2c300000001"):
                (folder / name).write_bytes(b"\x00\x05\x16\x07")
    assert planned(*run.arguments()) == {}
    forced = (
        "covariance",
        "pool",
        "projector",
        "adapter",
        "tuned_images",
        "evaluate",
        "mechanism",
        "spectra",
        "gallery",
    )
    jobs = executed("samples", *run.arguments(), "--forcerun", *forced)
    assert jobs.keys() >= set(forced)
    run.prompts.write_text(run.prompts.read_text() + "a small cyan triangle\n")
    assert executed("covariances", *run.arguments()) == {
        "trajectory": 1,
        "moments": 3,
        "covariance": 3,
        "covariances": 1,
    }


# --- a store for a group ------------------------------------------------------------------------------


def test_a_shared_cache_serves_other_results_folders(tmp_path):
    """A second run reuses the first one's results, each timestep its own; another sampler computes new ones."""
    (tmp_path / "cache").mkdir()
    cached = ("--cache", "trajectory", "moments", "covariance", "pool", "projector")
    runs = []
    for name, change in {"first": {}, "second": {}, "third": {"sampler": {"steps": 3, "guidance": 2.0}}}.items():
        (tmp_path / name).mkdir()
        runs.append(run := Run(tmp_path / name))
        wanted = [target(run, f"projectors/{step}.zarr") for step in ("00", "01", "pooled")]
        executed(*wanted, *run.arguments(**change), *cached, SNAKEMAKE_OUTPUT_CACHE=str(tmp_path / "cache"))
    logs = [list((run.folder / "results/logs").rglob("*.log")) for run in runs]
    assert [sum(path.stat().st_size > 0 for path in paths) for paths in logs] == [11, 0, 11]
    stored = [[zarrstore.read(r.folder / f"results/projectors/{s}.zarr") for s in ("00", "01", "pooled")] for r in runs]
    for first, second, third in zip(*stored, strict=True):
        assert first.attrs["timestep"] == second.attrs["timestep"]
        assert first.attrs["identity"] != third.attrs["identity"]
        for name in first:
            np.testing.assert_array_equal(first[name][:], second[name][:])
    assert stored[1][0].attrs["timestep"] > stored[1][1].attrs["timestep"]


def keys_of(**settings) -> set[str]:
    """Return the names under which adapters would be kept."""
    given = [f"{key}={value}" for key, value in settings.items()]
    arguments = ["--configfile", "config/minimal.yaml", "--config", "results=none-such", *given]
    done = snakemake("--dry-run", *arguments, "--", "adapters")
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"kept/runs/starling/\w+/0/(\w+)/adapter\.safetensors", done.stdout + done.stderr))


def test_pictures_that_a_method_learns_from_are_part_of_its_recipe():
    """Otherwise a killed training would resume from a checkpoint made with other pictures."""
    prior, plain = "[{name: p, method: dreambooth-prior}]", "[{name: p, method: lora, rank: 4}]"
    few, guided = "{class_images: 3}", "{steps: 3, guidance: 5.0}"
    assert len(keys_of(methods=prior)) == 1
    assert keys_of(methods=prior) != keys_of(methods=prior, sample=few)
    assert keys_of(methods=prior) != keys_of(methods=prior, sampler=guided)
    assert keys_of(methods=plain) == keys_of(methods=plain, sample=few) == keys_of(methods=plain, sampler=guided)
