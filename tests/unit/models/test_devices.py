"""Jobs on one machine take different GPUs. `nvidia-smi` is a fake script; the jobs are real processes."""

import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from nullbooth.models import devices
from nullbooth.models.precision import pick_device

ROOT = Path(__file__).parents[3]
GPUS = ["GPU-5c89852c-d268", "GPU-8932f937-d72c"]
SLICED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89852c-d268)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4)
  MIG 3g.20gb     Device  1: (UUID: MIG-cba663e8-9bed)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-8932f937-d72c)
"""
TAKE = """
import os, sys, time
from nullbooth.models import devices
count = int(sys.argv[1])
taken = devices.take(pause=0.05, say=lambda text: print(text, flush=True), count=count)
print("sees", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Make `nvidia-smi -L` print this. UUIDs are unique to the test, because locks hold for the whole machine."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)

    def say(number: int) -> list[str]:
        uuids = [f"GPU-{os.getpid()}-{tmp_path.name}-{i}" for i in range(number)]
        lines = "".join(f"echo 'GPU {i}: Pretended (UUID: {uuid})'\n" for i, uuid in enumerate(uuids))
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{lines}")
        (tmp_path / "nvidia-smi").chmod(0o755)
        return uuids

    return say


@pytest.fixture
def job():
    """Start a job that takes GPUs, in a given folder if any, and keeps them until it is killed."""
    started = []

    def start(count: int = 1, **options) -> subprocess.Popen:
        command = [sys.executable, "-c", TAKE, str(count)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, **pipes, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("allowed", "meant"),
    [
        (None, {GPUS[0]: GPUS[0], GPUS[1]: GPUS[1]}),
        ("1", {GPUS[1]: "1"}),
        ("1,0", {GPUS[1]: "1", GPUS[0]: "0"}),
        (" 0 , 1", {GPUS[0]: "0", GPUS[1]: "1"}),
        ("GPU-8932", {GPUS[1]: "GPU-8932"}),
        ("GPU-", {}),  # begins both
        ("0,7,1", {GPUS[0]: "0"}),
        ("0,-1,1", {GPUS[0]: "0"}),
        ("NoDevFiles", {}),  # as SLURM writes none
        ("", {}),
    ],
)
def test_only_allowed_gpus_are_chosen_from(allowed, meant):
    assert devices.choices(GPUS, allowed) == meant


def test_gpus_are_listed_by_uuid_and_slices_for_their_gpu(tmp_path, pretend):
    uuids = pretend(3)
    assert devices.listed() == uuids
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<END\n{SLICED}END\n")
    assert devices.listed() == ["MIG-c6d4f1ef-42e4", "MIG-cba663e8-9bed", "GPU-8932f937-d72c"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert devices.listed() == []


def test_jobs_side_by_side_take_different_gpus_and_the_next_one_waits(pretend, job):
    uuids = pretend(2)
    first, second = job(), job()
    taken = {process: process.stdout.readline().strip() for process in (first, second)}
    assert sorted(taken.values()) == [f"GPU: {uuid}" for uuid in uuids]
    assert second.stdout.readline() == f"sees {taken[second].removeprefix('GPU: ')}\n"
    third = job()
    assert third.stdout.readline() == (
        f"waiting for a GPU: other jobs of NullBooth on this machine have {uuids[0]}, {uuids[1]}\n"
    )
    os.kill(second.pid, signal.SIGKILL)
    assert third.stdout.readline().strip() == taken[second], "the killed job's GPU is free again"
    assert first.poll() is None


def test_a_job_takes_several_gpus_or_none(pretend, job):
    """A job that waits for two GPUs holds none, so that another job can take the free one."""
    uuids = pretend(3)
    one = job()
    assert one.stdout.readline() == f"GPU: {uuids[0]}\n"
    first = job(count=2)
    assert first.stdout.readline() == f"GPU: {uuids[1]}, {uuids[2]}\n"
    assert first.stdout.readline() == f"sees {uuids[1]},{uuids[2]}\n"
    two = job(count=2)
    assert two.stdout.readline().startswith("waiting for a GPU: ")
    os.kill(one.pid, signal.SIGKILL)
    single = job()
    said = single.stdout.readline()
    while said.startswith("waiting"):  # while the other job tries to take two
        said = single.stdout.readline()
    assert said == f"GPU: {uuids[0]}\n"
    os.kill(first.pid, signal.SIGKILL)
    assert two.stdout.readline() == f"GPU: {uuids[1]}, {uuids[2]}\n"


def test_more_gpus_than_there_are_are_refused(pretend, monkeypatch):
    pretend(2)
    monkeypatch.setattr(devices, "_held", {})
    with pytest.raises(RuntimeError, match=r"train\.gpus: 3: this machine has 2; use fewer"):
        devices.take(count=3)
    assert not devices._held


@pytest.mark.parametrize(("rank", "device"), [("1", "cuda:1"), ("", "cuda")])
def test_processes_of_one_training_have_a_gpu_each(monkeypatch, rank, device):
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device(device)
    assert pick_device("cuda") == torch.device(device)
    assert pick_device("cpu") == torch.device("cpu")


def test_a_job_takes_one_gpu_however_often_it_asks(pretend, monkeypatch):
    uuids = pretend(2)
    monkeypatch.setattr(devices, "_held", {})
    said = []
    assert devices.take(say=said.append) == uuids[0]
    assert devices.take(say=said.append) == uuids[0]
    assert said == [f"GPU: {uuids[0]}"]


def test_a_gpu_that_slurm_or_the_user_chose_is_used(pretend, job):
    uuids = pretend(3)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "2,1"}
    one, other = job(env=environment), job(env=environment)
    said = sorted(process.stdout.readline() for process in (one, other))
    assert said == [f"GPU: {uuid}\n" for uuid in uuids[1:]]
    assert {one.stdout.readline(), other.stdout.readline()} == {"sees 1\n", "sees 2\n"}
    assert job(env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}).stdout.readline() == "sees \n"


def test_locks_do_not_depend_on_the_folder_of_temporary_files(pretend, job, tmp_path):
    """Two runs with different folders and TMPDIR, and one GPU."""
    uuids = pretend(1)
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    runs = [job(cwd=folder, env={**os.environ, "TMPDIR": str(folder)}) for folder in folders]
    said = [process.stdout.readline() for process in runs]
    assert sorted(line.split(":")[0] for line in said) == ["GPU", "waiting for a GPU"]
    holder, waiter = sorted(runs, key=lambda process: said[runs.index(process)])
    holder.kill()
    assert waiter.stdout.readline() == f"GPU: {uuids[0]}\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("holder", "other"), [(0, 65534), (65534, 0), (65534, 65533)])
def test_locks_hold_between_users(pretend, holder, other):
    [uuid] = pretend(1)
    lock = "import os, sys; sys.path.insert(0, sys.argv[1]); from nullbooth.models.devices import lock; os.setuid({}); "
    keep = lock.format(holder) + "print(lock(sys.argv[2]), flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", keep, ROOT, uuid], **pipes) as first:
        assert first.stdout.readline() == "True\n"
        ask = [sys.executable, "-c", lock.format(other) + "print(lock(sys.argv[2]))", ROOT, uuid]
        assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == "False\n"
        first.kill()
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == "True\n"


def test_two_snakemakes_never_run_two_jobs_on_one_gpu(pretend, tmp_path):
    """Each Snakemake counts only its own jobs, and takes both GPUs for free."""
    uuids = pretend(2)
    rules = f"""
rule all:
    input: expand("{{i}}.txt", i=range(3))
rule gpu:
    output: "{{i}}.txt"
    resources: gpu=1
    shell: '{sys.executable} -c "import time; from nullbooth.models.devices import take; taken = take(pause=0.05,'
           ' say=str); began = time.monotonic(); time.sleep(1); print(taken, began, time.monotonic())" >{{output}}'
"""
    runs = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "Snakefile").write_text(rules)
        command = [sys.executable, "-m", "snakemake", "--cores", "4", "--resources", "gpu=2", "--quiet", "all"]
        runs.append(subprocess.Popen(command, cwd=tmp_path / name))
    assert [run.wait() for run in runs] == [0, 0]
    jobs = [path.read_text().split() for path in tmp_path.glob("*/*.txt")]
    assert len(jobs) == 6
    assert {uuid for uuid, *_ in jobs} == set(uuids)
    for uuid in uuids:
        times = sorted((float(began), float(ended)) for taken, began, ended in jobs if taken == uuid)
        assert all(before[1] <= after[0] for before, after in pairwise(times)), times


def test_a_named_device_is_used_and_not_locked(pretend, monkeypatch):
    pretend(1)
    monkeypatch.setattr(devices, "_held", {})
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert pick_device("cpu") == torch.device("cpu")
    assert not devices._held
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_auto_takes_a_gpu_and_is_the_cpu_only_where_there_is_none(pretend, monkeypatch):
    uuids = pretend(1)
    monkeypatch.setattr(devices, "_held", {})
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=rf"device: auto: .*{uuids[0]}.*device: cpu"):
        pick_device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
    assert list(devices._held) == uuids
    assert os.environ["CUDA_VISIBLE_DEVICES"] == uuids[0]
    monkeypatch.setattr(devices, "_held", {})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")


def test_snakemake_gets_the_number_of_allowed_gpus(monkeypatch):
    there = []
    monkeypatch.setattr(Path, "glob", lambda *_: iter(there))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert devices.count() == 0, "fake GPUs of SLURM do not count"
    there = ["nvidia0", "nvidia1", "nvidia2"]
    assert devices.count() == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.count() == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert devices.count() == 3


def test_no_script_uses_cuda_before_it_takes_a_gpu():
    """CUDA reads CUDA_VISIBLE_DEVICES once: if an import already used CUDA, the choice would have no effect."""
    code = """
import runpy, sys, traceback
from pathlib import Path
import torch
def refuse(*_):
    raise AssertionError("asked")
for name in ("is_available", "device_count", "init", "_lazy_init"):
    setattr(torch.cuda, name, refuse)
for script in sorted(Path("workflow/scripts").glob("*.py")):
    runpy.run_path(str(script), run_name="imported")
print("imported")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout == "imported\n", done.stderr[-3000:]
