"""Accidents in real runs, and the same command again: killed processes, full and read-only disks, damage."""

import json
import math
import operator
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import damage
import pytest
import warm
from running import ROOT, Run, python

from nullbooth.adapters.file import read_adapter
from nullbooth.storage import zarrstore
from nullbooth.storage.atomic import read_json
from nullbooth.storage.pictures import read_drawn

ONE_METHOD = {"methods": [{"name": "pooled", "scope": "pooled", "rank": 4}]}  # the first of config/minimal.yaml
LOGS = "results/logs"
PARTIAL = r"\.partial-[0-9a-f]{8}"

# A moment in the middle of writing the result of each stage: an audit event, and what its path looks like.
STAGES = {
    "trajectory": ("open", rf"trajectory{PARTIAL}\.zarr/latents/c/1"),
    "moments": ("open", rf"moments/01{PARTIAL}\.zarr/.+/c/"),
    "covariance": ("open", rf"covariances/01{PARTIAL}\.zarr/.+/c/"),
    "pool": ("open", rf"covariances/pooled{PARTIAL}\.zarr/.+/c/"),
    "projector": ("open", rf"projectors/pooled{PARTIAL}\.zarr/.+/c/"),
    "adapter": ("os.rename", rf"/adapter{PARTIAL}\.safetensors$"),
    "base_images": ("open", rf"drawn/.+/unrelated/\w+{PARTIAL}/.+-001\.png"),
    "tuned_images": ("open", rf"kept/runs/.+/images/\w+{PARTIAL}/.+-001\.png"),
    "evaluate": ("open", rf"kept/runs/.+/metrics/\w+{PARTIAL}\.json"),
    "gallery": ("open", rf"samples/\w+{PARTIAL}/index\.html"),
}


class Project:
    """A run of the project in a separate folder with links to its files, so that it has separate locks."""

    def __init__(self, folder: Path, run: Run):
        self.run, self.root, self.marks = run, folder / "project", folder / "marks"
        self.output, self.started = folder / "output.txt", []
        for path in (self.root, self.marks):
            path.mkdir()
        for name in ("Snakefile", "config", "nullbooth", "profiles", "resources", "rules", "workflow", "envs"):
            (self.root / name).symlink_to(ROOT / name)

    @property
    def results(self) -> Path:
        return self.run.folder / "results"

    def start(self, *arguments: str, moments: list | None = None, changes: dict | None = None) -> warm.Fork:
        """Start Snakemake as the head of a process group, with its output in a file that orphans do not block.

        moments: (event, pattern, accidents at each hit).
        """
        faults = json.dumps({"marks": str(self.marks), "moments": moments or []})
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests/hooks'}:{self.root}", "FAULTS": faults}
        settings = self.run.arguments(**(changes or {}))
        cores = [] if "--unlock" in arguments else ["--cores", "2"]  # as in the README
        command = ["-m", "snakemake", *cores, *map(str, arguments), *settings]
        with open(self.output, "w") as output:
            self.started.append(warm.leader(python(), command, self.root, environment, output.fileno()))
        return self.started[-1]

    def snakemake(self, *arguments: str, **options) -> tuple[int, str]:
        """Run Snakemake to its end; return exit status and output."""
        status = self.start(*arguments, **options).wait(timeout=600)
        return status, self.output.read_text()

    def unlock(self) -> None:
        status, output = self.snakemake("--unlock")
        assert status == 0, output

    def wait_for_orphans(self) -> None:
        """Wait until all jobs of all runs have ended."""
        for process in self.started:
            while alive(process.pid):
                time.sleep(0.2)

    def hits(self) -> set[str]:
        return {path.name for path in self.marks.iterdir()}

    def leftovers(self) -> list[str]:
        return [str(path) for path in self.results.rglob(damage.LEFTOVERS)]


def alive(group: int) -> bool:
    """Return True if a process group has processes."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def opened(folder: Path, run: Run) -> Iterator[Project]:
    """A project that leaves no process behind."""
    project = Project(folder, run)
    try:
        yield project
    finally:
        for process in filter(lambda process: alive(process.pid), project.started):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def project(tmp_path) -> Iterator[Project]:
    """A project without results."""
    (tmp_path / "run").mkdir()
    with opened(tmp_path, Run(tmp_path / "run")) as project:
        yield project


@pytest.fixture
def done(finished, tmp_path) -> Iterator[Project]:
    """A copy of the finished run."""
    with opened(tmp_path, finished.copy(tmp_path / "run")) as project:
        yield project


def content(path: Path) -> object:
    """Return the contents of a result, without its measured times."""
    if path.suffix == ".zarr":
        group = zarrstore.read(path)
        attributes = {k: v for k, v in group.attrs.items() if k not in ("spent", "seal", "checksums")}
        return attributes, {name: (group[name].dtype, group[name][:].tobytes()) for name in group.attrs["arrays"]}
    if path.suffix == ".safetensors":
        tensors, info = read_adapter(path)
        return info, {name: (t.dtype, t.numpy().tobytes()) for name, t in tensors.items()}
    if path.suffix == ".json":
        return read_json(path)
    return read_drawn(path), {p.name: p.read_bytes() for p in path.glob("*.png")}


def comparable(kept: Path) -> dict[str, Path]:
    """Return stores, adapters, metrics and folders of pictures, by their path under `kept`."""
    found = [
        *kept.rglob("*.zarr"), *kept.rglob("adapter.safetensors"), *(kept / "runs").rglob("metrics/*.json"),
        *(path.parent for path in kept.rglob("images.json")),
    ]  # fmt: skip
    return {str(path.relative_to(kept)): path for path in found}


def like(mine: object, theirs: object) -> bool:
    """Compare up to the last digits of numbers: NumPy's products may be summed in another order."""
    match mine, theirs:
        case dict(), dict():
            return mine.keys() == theirs.keys() and all(like(mine[key], theirs[key]) for key in mine)
        case list(), list():
            return len(mine) == len(theirs) and all(map(like, mine, theirs))
        case float(), float():
            return math.isclose(mine, theirs, rel_tol=1e-9, abs_tol=1e-9)
    return mine == theirs


def assert_same(found: Path, expected: Path) -> None:
    """Check that two runs kept the same results, bit by bit; measurements up to rounding."""
    mine, theirs = comparable(found), comparable(expected)
    assert len(mine) > 15
    assert not set(mine) - set(theirs)
    same = {".json": like}
    assert [
        name
        for name in mine
        if not same.get(Path(name).suffix, operator.eq)(content(mine[name]), content(theirs[name]))
    ] == []


# --- killed -------------------------------------------------------------------------------------------


def test_killed_in_every_stage_and_run_again(project, finished):
    """In each stage, the first attempt of a job is killed, as for lack of memory; at the second, the power fails."""
    moments = [(*moment, ["job", "machine"]) for moment in STAGES.values()]
    attempts, log = [], ""
    for _ in range(len(STAGES) + 1):
        status, output = project.snakemake("--retries", "1", moments=moments, changes=ONE_METHOD)
        log += output
        attempts.append(status)
        if status != -signal.SIGKILL:
            break
        if len(attempts) == 1:
            status, output = project.snakemake(changes=ONE_METHOD)
            assert status != 0
            assert "LockException" in output
            project.unlock()
        else:
            shutil.rmtree(project.root / ".snakemake/locks")
    assert attempts == [-signal.SIGKILL] * len(STAGES) + [0], log[-6000:]
    assert project.hits() == {
        f"{i}-{n}-{what}" for i in range(len(STAGES)) for n, what in enumerate(("job", "machine"))
    }
    assert project.leftovers() == []
    assert (project.results / "samples/index.html").is_file()
    assert_same(project.results / "kept", finished.folder / "results/kept")
    [learned] = (project.results / "logs/adapters").rglob("*.log")
    assert "resumed at step 2 of 4" in learned.read_text()


def test_a_job_killed_for_memory_gets_twice_as_much(project):
    moments = [(*STAGES["trajectory"], ["job", "nothing"])]
    status, output = project.snakemake("--retries", "1", project.results / "trajectories/00.zarr", moments=moments)
    assert status == 0, output
    first, second = ((project.marks / name).read_text() for name in ("0-0-job", "0-1-nothing"))
    assert int(second) == 2 * int(first) > 0


def test_a_job_outlives_its_snakemake_and_meets_the_next_run(project, finished):
    """The folder stays locked. After unlocking, the old and a new job may write the same store."""
    target = project.results / "trajectories/00.zarr"
    status, output = project.snakemake(target, moments=[(*STAGES["trajectory"], ["snakemake"])])
    assert status == -signal.SIGKILL
    assert alive(project.started[0].pid), "the job is still alive, while it writes its store"
    assert len(project.leftovers()) == 1
    status, output = project.snakemake(target)
    assert status != 0
    assert "LockException" in output
    assert "--unlock" in output
    project.unlock()
    assert alive(project.started[0].pid)
    status, output = project.snakemake(target)
    assert status == 0, output
    project.wait_for_orphans()
    kept = target.resolve().relative_to(project.results)
    assert content(project.results / kept) == content(finished.folder / "results" / kept)
    assert project.leftovers() == []


def test_a_second_snakemake_is_refused_and_the_first_unharmed(project, finished):
    target = project.results / "trajectories/00.zarr"
    first = project.start(target)
    while not list(project.results.glob("logs/trajectories/*.log")):
        assert first.poll() is None
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGSTOP)  # so that it is still at work, however slow the second is
    status, output = project.snakemake(target)
    os.killpg(first.pid, signal.SIGCONT)
    assert status != 0
    assert "Directory cannot be locked" in output
    assert first.wait(timeout=600) == 0
    kept = target.resolve().relative_to(project.results)
    assert content(project.results / kept) == content(finished.folder / "results" / kept)


@pytest.mark.parametrize("how", ["ctrl-c", "interrupt"])
def test_an_interrupted_run_leaves_nothing_half_written(project, finished, how):
    """Ctrl-C reaches Snakemake and all its jobs; `kill -INT` and job managers reach only Snakemake."""
    target = project.results / "trajectories/00.zarr"
    status, output = project.snakemake(target, moments=[(*STAGES["trajectory"], [how])])
    project.wait_for_orphans()
    print(output)
    assert status not in (0, -signal.SIGKILL), output
    assert project.hits() == {f"0-0-{how}"}
    for path in comparable(project.results / "kept").values():
        content(path)  # raises if it is incomplete
    status, output = project.snakemake(target)
    assert status == 0, output
    kept = target.resolve().relative_to(project.results)
    assert content(project.results / kept) == content(finished.folder / "results" / kept)
    assert project.leftovers() == []


# --- no room, no right to write -----------------------------------------------------------------------


def test_a_full_disk_is_reported_and_nothing_is_lost(done, tmp_path):
    page = (done.results / "samples").resolve().relative_to(done.results)
    size = 4 * sum(path.stat().st_size for path in done.results.rglob("*") if path.is_file())
    with damage.mounted(tmp_path / "disk", f"-osize={size}"):
        shutil.move(done.results, tmp_path / "disk/results")
        done.results.symlink_to(tmp_path / "disk/results")
        shutil.rmtree(done.results / page)
        with damage.full_disk(tmp_path / "disk", 300 << 10):
            status, output = done.snakemake()
            print(output)
            assert status != 0
            assert "No space left on device: free some space and run the same command again" in output
            assert str(page) in output
            assert not (done.results / page).exists()
            assert done.leftovers() == []
        status, output = done.snakemake()
        assert status == 0, output
        assert (done.results / "samples/index.html").is_file()


def test_a_folder_that_cannot_be_written_is_refused_at_once(done, tmp_path):
    with damage.mounted(tmp_path / "disk", "-osize=64m"):
        shutil.move(done.results, tmp_path / "disk/results")
        done.results.symlink_to(tmp_path / "disk/results")
        shutil.rmtree((done.results / "samples").resolve())
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        status, output = done.snakemake()
        print(output)
        assert status != 0
        assert f"config: results: {done.results} cannot be written to; name another folder" in output
        assert "Traceback" not in output
        assert done.snakemake("--dry-run")[0] == 0
