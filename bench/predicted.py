"""Comparison of the estimates of nullbooth.planning.estimate with the costs of a finished run of the embedded model.

    snakemake --cores 2 --configfile mine.yaml -- samples projectors
    python bench/predicted.py --configfile mine.yaml

Processor time and memory come from Snakemake's benchmarks. Jobs with a shared cache have no benchmarks: for these, only
disk and files are compared. A rule's disk space is that of the folders that it writes.
"""

import csv
import os
from argparse import Namespace
from pathlib import Path

import torch
import yaml
from common import ROOT, parser, report

from nullbooth.inputs.photographs import captions, list_images
from nullbooth.inputs.prompts import read_prompts
from nullbooth.inputs.settings import complete, sweep_points
from nullbooth.planning import estimate
from nullbooth.planning.cost import CORE_UTILISATION, Job, Machine, Work
from nullbooth.planning.plan import work_of
from nullbooth.planning.shapes_exact import pipeline_shapes

BENCHMARKS = {  # rule: pattern of its benchmarks
    "adapter": "adapters/**/*.tsv",
    "base_images": "images/base/*/*.tsv",
    "tuned_images": "images/*/*/*/*/*.tsv",
    "embed_base": "images/embeddings/**/*.tsv",
    "evaluate": "metrics/**/*.tsv",
    "heldout_moments": "moments/heldout.tsv",
    "mechanism": "mechanism/**/*.tsv",
    "spectra": "spectra.tsv",
    "gallery": "gallery.tsv",
}
FOLDERS = {  # rule: pattern of its outputs
    "trajectory": "kept/shards/*/trajectory.zarr",
    "moments": "kept/shards/*/moments/*.zarr",
    "covariance": "kept/statistics/*/covariances/[0-9]*.zarr",
    "pool": "kept/statistics/*/covariances/pooled.zarr",
    "projector": "kept/statistics/*/projectors/*.zarr",
    "heldout_moments": "kept/shards/*/all.zarr",
}
CORE_RATES = {"bf16": 204e9, "fp32": 89e9}  # FLOP/s of a large product on one core, from bench/constants.py


def planned(config: dict) -> Work:
    """Return the sizes of the run, as in rules/plan.smk."""
    counts = {group: len(read_prompts(path)) for group, path in config["sample"]["prompts"].items()}
    protected = read_prompts(config["protect"]["prompts"])
    counts["protected"] = min(len(protected), config["sample"]["protected"])
    for entry in config["concepts"]:
        entry["class_prompts"] = sorted({*captions(list_images(entry["images"]), entry["prompt"]), entry["prompt"]})
    methods = {point["name"]: point for entry in config["methods"] for point in sweep_points(entry)}
    return work_of(config, len(protected), counts, methods)


def measured(folder: Path, pattern: str) -> tuple[float, float]:
    """Return the mean processor seconds and the largest memory of a rule's benchmarks."""
    rows = [row for path in folder.glob(pattern) for row in csv.DictReader(path.open(), delimiter="\t")]
    if not rows:
        raise SystemExit(f"{folder}/{pattern}: no benchmarks; has the run finished?")
    return sum(float(row["cpu_time"]) for row in rows) / len(rows), max(float(row["max_rss"]) for row in rows) * 2**20


def written(folder: Path, pattern: str) -> tuple[int, int]:
    """Return the bytes and files of all folders that a rule wrote."""
    paths = [Path(at) / name for place in folder.glob(pattern) for at, _, names in os.walk(place) for name in names]
    return sum(path.stat().st_size for path in paths), len(paths)


def time_rows(jobs: dict[str, Job], folder: Path) -> list[dict]:
    rows = []
    for rule, pattern in BENCHMARKS.items():
        seconds, memory = measured(folder / "benchmarks", pattern)
        job = jobs[rule]
        rows.append(
            {"rule": rule, "estimated s": job.seconds, "measured s": seconds, "estimated MB": job.host / 1e6}
            | {"measured MB": memory / 1e6}
        )
    return rows


def size_rows(jobs: dict[str, Job], folder: Path) -> list[dict]:
    rows = []
    for rule, pattern in FOLDERS.items():
        size, files = written(folder, pattern)
        job, other = jobs[rule], 2 if rule == "heldout_moments" else 1  # log and benchmark are elsewhere
        rows.append(
            {"rule": rule, "estimated MB": job.count * (job.disk - 1e3) / 1e6, "measured MB": size / 1e6}
            | {"ratio": job.count * (job.disk - 1e3) / size}
            | {"estimated files": round(job.count * (job.files - other)), "files": files}
        )
    return rows


def main(args: Namespace) -> None:
    torch.set_num_threads(1)
    schema = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text())
    settings = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config = complete(merged(settings, yaml.safe_load(args.configfile.read_text())), schema)
    precision = config["precision"]
    rate = CORE_RATES[precision]
    machine = Machine(CORE_UTILISATION[precision] * rate, CORE_RATES["fp32"], 0, 1)
    model = pipeline_shapes(config["model"], None, tuple(config["protect"]["sites"]), precision)
    jobs = {job.rule: job for job in estimate.jobs(model, planned(config), machine)}
    args.configfile = str(args.configfile)
    report("predicted: processor time and memory of a job", time_rows(jobs, Path(config["results"])), args)
    report("predicted: disk and files of a rule", size_rows(jobs, Path(config["results"])), args)


def merged(a: dict, b: dict) -> dict:
    """Merge the settings `b` into `a`, like Snakemake."""
    both = {key: merged(a[key], b[key]) for key in a.keys() & b.keys() if isinstance(a[key], dict)}
    return {**a, **b, **both}


if __name__ == "__main__":
    p = parser(__doc__, sizes=())
    p.add_argument("--configfile", type=Path, required=True)
    main(p.parse_args())
