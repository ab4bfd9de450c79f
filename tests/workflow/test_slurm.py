"""Real runs with the shipped profile on a real SLURM with one node and fake GPUs (tests/support/slurm)."""

import re
import subprocess
import sys
from collections import Counter, defaultdict
from math import ceil
from pathlib import Path

import pytest
import yaml
from running import ROOT, planned, snakemake

PROFILE = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
CANNOT = 77  # exit status of start.sh if the packages cannot be installed
# For a node without slurmdbd and network file system. running.py sets --cores 2, the real number.
THROUGH_SLURM = (
    *("--profile", "profiles/slurm", "--slurm-status-command", "squeue"),
    *("--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "10"),
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run(
        [ROOT / "tests/support/slurm/start.sh", folder], capture_output=True, text=True, timeout=600
    )
    if started.returncode == CANNOT:
        pytest.skip(started.stderr.strip().splitlines()[-1])
    try:
        assert started.returncode == 0, started.stderr
        yield folder
    finally:
        subprocess.run([ROOT / "tests/support/slurm/stop.sh", folder], check=True, timeout=120)
    assert not Path("/etc/slurm/slurm.conf").exists()


def submitted(output: str) -> list[dict[str, str]]:
    """Return what SLURM reports about all jobs of one Snakemake run, whose id is the name of the jobs."""
    name = re.search(r"SLURM run ID: (\S+)", output)[1]
    said = subprocess.run(["scontrol", "-o", "show", "jobs"], capture_output=True, text=True, check=True).stdout
    jobs = [dict(re.findall(r"([\w/]+)=(\S*)", line)) for line in said.splitlines()]
    return sorted((job for job in jobs if job["JobName"] == name), key=lambda job: int(job["JobId"]))


def name_of(job: dict[str, str]) -> str:
    """Return the rule of a job, or its group and the group's rules."""
    return job["Comment"].removeprefix("rule_").split("_wildcards_")[0]


def listing(jobs: list[dict[str, str]]) -> str:
    """Format a line per job: number, state, run time, GPU or none, rule or group."""
    rows = [(j["JobId"], j["JobState"], j["RunTime"], j.get("TresPerJob") or "no GPU", name_of(j)) for j in jobs]
    return "\n".join("{:>4}  {:9}  {}  {:11}  {}".format(*row) for row in rows)


def expected_jobs(jobs: dict[str, int]) -> Counter:
    """Return the number of SLURM jobs by rule or group that the profile makes from jobs by rule."""
    groups, components = PROFILE["groups"], PROFILE["group-components"]
    expected = Counter({rule: count for rule, count in jobs.items() if rule not in groups})
    for group in set(groups.values()):
        members = sorted(rule for rule in jobs if groups.get(rule) == group)
        together = sum(jobs[rule] for rule in members)
        expected[f"{group}_{'_'.join(members)}"] = ceil(together / components.get(group, together))
    return expected


def test_the_profile_keeps_what_the_default_one_says():
    """Snakemake also reads profiles/default, but not with --workflow-profile profiles/slurm."""
    default = yaml.safe_load((ROOT / "profiles/default/config.yaml").read_text())
    assert {key: PROFILE.get(key) for key in default} == default


def test_accounts_and_partitions_stand_in_the_profile_alone():
    files = [
        ROOT / "Snakefile",
        *(p for name in ("rules", "config", "profiles/default") for p in (ROOT / name).glob("*.*")),
    ]
    assert len(files) > 8
    assert [
        p.name for p in files if re.search(r"slurm_(account|partition|extra)|--(account|partition|qos)", p.read_text())
    ] == []
    assert "slurm_account" in (ROOT / "profiles/slurm/config.yaml").read_text()


@pytest.mark.parametrize("option", ["--profile", "--workflow-profile"])
def test_a_dry_run_needs_no_slurm(option, tmp_path):
    assert planned(option, "profiles/slurm", "--config", f"results={tmp_path}")["gallery"] == 1


def test_the_minimal_config_runs_through_slurm(cluster, tmp_path):
    results = cluster / "results"
    arguments = [results / "samples", "--configfile", "config/minimal.yaml", "--config", f"results={results}"]
    wanted = planned(*arguments)
    partitions = tmp_path / "partitions.yaml"
    partitions.write_text(yaml.safe_dump({"partitions": {"cpus": {"max_threads": 16}, "gpus": {"max_gpu": 2}}}))
    own = ["--slurm-logdir", cluster / "logs", "--slurm-partition-config", partitions]
    done = snakemake(*THROUGH_SLURM, *own, *arguments, fresh=True)
    assert done.returncode == 0, done.stderr[-6000:]
    addresses = re.findall(r'src="([^"]+)"', (results / "samples/index.html").read_text())
    assert len(addresses) > 10
    assert all((results / "samples" / address).is_file() for address in addresses)

    jobs = submitted(done.stderr)
    print(listing(jobs))  # pytest -rP shows it
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    assert Counter(map(name_of, jobs)) == expected_jobs(wanted)

    seen = defaultdict(set)
    for line in (cluster / "gpus.txt").read_text().splitlines():
        number, visible = line.split(maxsplit=1)
        seen[number].add(visible)
    on_gpu = {job["JobId"]: name_of(job) for job in jobs if "gpu:1" in job.get("TresPerJob", "")}
    assert set(on_gpu.values()) >= {"trajectory", "moments_moments", "adapter", "base_images", "tuned_images"}
    assert not set(on_gpu.values()) & {"covariance_covariance", "projector_projector", "pages_evaluation_gallery"}
    for job in jobs:
        given = seen[job["JobId"]]
        assert given <= {"0", "1"} if job["JobId"] in on_gpu else given == {"none"}, job
        assert len(given) == 1, "one GPU per job, also for members of a group"
        assert job["Partition"] == ("gpus" if job["JobId"] in on_gpu else "cpus"), job
        members = name_of(job).split("_")[0] if name_of(job).split("_")[0] in PROFILE["group-components"] else None
        assert not members or int(job["NumCPUs"]) <= 4, "members take turns on the CPUs of one job"
    assert set().union(*(seen[number] for number in on_gpu)) == {"0", "1"}, "two jobs at a time took different GPUs"

    assert planned(*arguments) == {}, "results of a cluster are valid without it"


def test_a_job_killed_for_memory_is_retried_with_twice_as_much(cluster, tmp_path):
    """Adds a rule that requests memory like the real ones, and uses as much as only the second attempt has."""
    for name in ("config", "nullbooth", "profiles", "resources", "rules", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "take.py").write_text("import time\ntaken = bytearray(b'x') * 900_000_000\ntime.sleep(5)\n")
    rule = f'''
rule greedy:
    output:
        "<results>/greedy.txt",
    resources:
        mem_mb=memory(700),
        runtime=5,
    shell:
        "{sys.executable} take.py && touch {{output}}"
'''
    (tmp_path / "Snakefile").write_text((ROOT / "Snakefile").read_text() + rule)
    done = snakemake(*THROUGH_SLURM, "--", "results/greedy.txt", cwd=tmp_path, fresh=True)
    assert done.returncode == 0, done.stderr[-6000:]
    killed, retried = submitted(done.stderr)
    assert (killed["MinMemoryNode"], retried["MinMemoryNode"]) == ("700M", "1400M")
    assert killed["JobState"] in ("OUT_OF_MEMORY", "FAILED"), "FAILED without cgroups, where SLURM polls memory"
    assert "exceeded memory limit" in Path(killed["StdOut"]).read_text().lower()
    assert retried["JobState"] == "COMPLETED"
