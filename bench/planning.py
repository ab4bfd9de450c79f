"""Time that Snakemake takes to plan this workflow: dry runs with many jobs, each in a separate process.

    python bench/planning.py --shards 50 --seeds 440

Each adapter (one for each of `--seeds`) needs five jobs; each shard has a job for every timestep. `--there` then makes
all results, empty, with Snakemake's own records of them (`snakemake --touch`), and plans again: the time to find that
there is nothing to do. `--profile N` shows the N functions that take most of the time. Planning has one thread: on a
busy machine, rely on the processor seconds.
"""

import os
import pstats
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from common import ROOT, parser, report

MINIMAL = ROOT / "config" / "minimal.yaml"


def settings(folder: Path, shards: int, steps: int, seeds: int) -> Path:
    """Write a config that extends config/minimal.yaml, with as many protected prompts as shards; return its path."""
    prompts = folder / "protected.txt"
    prompts.write_text("".join(f"a red circle, number {i}\n" for i in range(shards)))
    path = folder / "settings.yaml"
    changes = {
        "results": str(folder / "results"),
        "sampler": {"steps": steps},
        "protect": {"prompts": str(prompts), "shard_size": 1},
        "seeds": list(range(seeds)),
        "methods": [{"name": "pooled", "scope": "pooled"}],
    }
    path.write_text(yaml.safe_dump(changes))
    return path


def command(path: Path, *arguments: str, profile: Path | None = None) -> list[str]:
    traced = ["-m", "cProfile", "-o", str(profile)] if profile else []
    chosen = ["--nolock", "--cores", "2", "--configfile", str(MINIMAL), str(path)]
    # Targets are rules, because the paths of results depend on the config.
    return [sys.executable, *traced, "-m", "snakemake", *chosen, *arguments, "--", "samples", "projectors"]


def timed(arguments: list[str]) -> tuple[str, dict[str, float]]:
    """Run a command; return its output, and its wall time, processor time and peak memory."""
    with tempfile.TemporaryFile("w+") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            arguments, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        output.seek(0)
        text = output.read()
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(arguments)}\n{text[-3000:]}")
    used = usage.ru_utime + usage.ru_stime
    return text, {"seconds": seconds, "processor seconds": used, "peak MiB": usage.ru_maxrss / 1024}


def jobs_in(text: str) -> int:
    """Return the number of jobs that a dry run announces; 0 if there is nothing to do."""
    found = re.findall(r"^total +(\d+)$", text, re.MULTILINE)
    return int(found[0]) if found else 0


def make_results(announced: str, listed: str) -> None:
    """Make all outputs of a summary, empty, and the links that a dry run announces."""
    for name, target in re.findall(r"^Job \d+: (\S+) is (\S+)$", announced, re.MULTILINE):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(target)
    for line in listed.split("output_file", 1)[1].splitlines()[1:]:
        path = Path(line.split("\t")[0])
        if path.is_symlink():
            continue
        if path.suffix == ".zarr" or not path.suffix:
            path.mkdir(parents=True, exist_ok=True)
        elif not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def show_profile(path: Path, lines: int) -> None:
    pstats.Stats(str(path)).strip_dirs().sort_stats("tottime").print_stats(lines)
    pstats.Stats(str(path)).strip_dirs().sort_stats("cumulative").print_stats(2 * lines)


def main(args) -> None:
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        path = settings(folder, args.shards, args.steps, args.seeds)
        text, row = timed(command(path, "--dry-run", "--quiet", "rules", "host"))
        rows.append({"variant": "nothing there", "jobs": jobs_in(text), **row})
        if args.there:
            make_results(timed(command(path, "--dry-run"))[0], timed(command(path, "--summary"))[0])
            timed(command(path, "--touch", "--forceall"))
            text, row = timed(command(path, "--dry-run", "--quiet", "rules", "host"))
            rows.append({"variant": "all there", "jobs": jobs_in(text), **row})
        if args.profile:
            timed(command(path, "--dry-run", "--quiet", "rules", profile=folder / "profile"))
            show_profile(folder / "profile", args.profile)
    args.folder = None
    report("planning", rows, args)


if __name__ == "__main__":
    p = parser(__doc__, sizes=())
    p.add_argument("--shards", type=int, default=50)
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--seeds", type=int, default=600)
    p.add_argument("--there", action="store_true", help="plan again when all results exist")
    p.add_argument("--profile", type=int, metavar="N", help="show the N functions that take longest")
    p.add_argument("--folder", type=Path, help="parent of the temporary folder for the results of --there")
    main(p.parse_args())
