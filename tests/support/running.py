"""Runs of the workflow for tests: configs that extend config/minimal.yaml, and the jobs that ran."""

import atexit
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType

import warm
import yaml
from snakemake.api import OutputSettings, ResourceSettings, SnakemakeApi
from snakemake.settings.enums import Quietness

ROOT = Path(__file__).parents[2]
# Settings that every config needs.
NEEDED = {
    "model": "m",
    "protect": {"prompts": "p.txt"},
    "concepts": [{"name": "dog", "images": "dog", "class": "dog"}],
    "methods": [{"name": "ours"}],
    "sample": {"prompts": {"subject": "s.txt", "class": "c.txt", "unrelated": "u.txt"}},
    "evaluate": {"clip": "c", "dino": "d"},
}
WIDE = ("trajectory", "adapter", "base_images", "class_images", "tuned_images")  # take all cores


CORES = 7  # of `rules`: a number that no rule requests itself


@cache
def python() -> Path:
    """Return a program that starts like Python, but with libraries loaded; one for all tests."""
    folder = Path(tempfile.mkdtemp(prefix="nullbooth-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return warm.start(folder)


def snakemake(
    *arguments: str, cwd: Path = ROOT, fresh: bool = False, **environment: str
) -> subprocess.CompletedProcess:
    """Run Snakemake to its end. fresh: in a new Python process like users, where sets have another order."""
    program = sys.executable if fresh else python()
    threads = [] if fresh else ["--set-threads", *(f"{rule}=1" for rule in WIDE)]  # so that two forks run at a time
    command = [program, "-m", "snakemake", *threads, "--nolock", "--cores", "2", *map(str, arguments)]
    environ = {**os.environ, "PYTHONPATH": str(cwd), **environment}
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=1200)


def executed(*arguments: str, **options) -> dict[str, int]:
    """Run Snakemake, which must succeed; return the number of finished jobs by rule."""
    done = snakemake(*arguments, **options)
    assert done.returncode == 0, done.stderr[-6000:]
    return dict(Counter(re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)", done.stderr, re.MULTILINE)))


def planned(*arguments: str, **options) -> dict[str, int]:
    """Return the number of jobs by rule that Snakemake would run."""
    done = snakemake("--dry-run", *arguments, **options)
    assert done.returncode == 0, done.stderr + done.stdout
    text = done.stdout + done.stderr
    if "Nothing to be done" in text:
        return {}
    table = text.split("Job stats:")[1].split("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


@cache
def rules() -> list:
    """Return all rules of the workflow as Snakemake's objects, with default settings and CORES cores."""
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
        opened = api.workflow(
            resource_settings=ResourceSettings(cores=CORES), snakefile=ROOT / "Snakefile", workdir=ROOT
        )
        return list(opened._workflow.rules)


def script(name: str) -> ModuleType:
    """Import a script of the workflow as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "workflow/scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Run:
    """A config that extends config/minimal.yaml, with results and prompts in a separate folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.prompts = folder / "protected.txt"
        self.prompts.write_text((ROOT / "config/prompts/minimal.txt").read_text())
        self.settings = {
            "results": str(folder / "results"),
            "precision": "fp32",
            "protect": {"prompts": str(self.prompts)},
        }

    def arguments(self, **changes) -> list[str]:
        path = self.folder / "settings.yaml"
        path.write_text(yaml.safe_dump({**self.settings, **changes}))
        return ["--configfile", "config/minimal.yaml", str(path)]

    def copy(self, folder: Path) -> "Run":
        """Return a run with the same settings and copies of all results, with their links and times."""
        folder.mkdir()
        copied = Run(folder)
        copied.settings = {**self.settings, **copied.settings}
        shutil.copytree(self.folder / "results", folder / "results", symlinks=True)
        return copied
