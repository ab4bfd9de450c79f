"""Plan of a config: the work that it asks for, a table of costs, and warnings of jobs that will not fit."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from nullbooth.inputs.groups import OF_ALL, OF_CONCEPT
from nullbooth.inputs.methods import prior_of
from nullbooth.planning.cost import ENCODERS, Job, Machine, Run, Work

VALIDATION_BATCH = 8  # as nullbooth.models.sampling
USUAL_BATCH = 16  # assumed by estimates if the batch size is found automatically

ENCODING = ("embed_base", "evaluate")  # run the evaluators
# What to change if a rule does not fit the card.
HINTS = {
    "trajectory": "lower protect.batch, or set weights to bf16, or offload to true",
    "moments": "lower protect.batch, set weights to bf16, or remove some of protect.sites",
    "heldout_moments": "lower protect.batch, set weights to bf16, or remove some of protect.sites",
    "adapter": "lower train.batch, set train.gradient_checkpointing to true, weights to bf16, or use scope: pooled",
    "base_images": "lower sample.batch, or set weights to bf16, or offload to true",
    "class_images": "lower sample.batch, or set weights to bf16, or offload to true",
    "tuned_images": "lower sample.batch, or set weights to bf16, or offload to true",
    **dict.fromkeys(ENCODING, "use smaller models for evaluate.clip and evaluate.dino"),
}


@dataclass(frozen=True)
class Limits:
    """Available GPU memory, memory and disk space in bytes; None if unknown."""

    card: float | None
    memory: float | None
    disk: float | None


def work_of(
    config: dict[str, Any], protected: int, prompts: dict[str, int], methods: dict[str, dict[str, Any]]
) -> Work:
    """Return the sizes of a run of the workflow. config: complete, with the class prompts of every concept. protected:
    number of protected prompts. prompts: numbers by group. methods: by name, one for each point of a sweep."""
    each = config["sample"]["per_prompt"]
    looked_at = min(2, prompts["subject"])  # drawn again for their attention maps
    own, common = (sum(prompts.get(group, 0) for group in groups) for groups in (OF_CONCEPT, OF_ALL))
    runs = [run_of(config, method, each * (own + common) + looked_at) for method in methods.values()]
    with_class = any(prior_of(method) == "images" for method in methods.values())
    return Work(
        prompts=protected,
        shard_size=config["protect"]["shard_size"],
        steps=config["sampler"]["steps"],
        branches=2 if config["sampler"]["guidance"] > 1 else 1,
        batch=config["protect"]["batch"] or USUAL_BATCH,
        heldout=prompts["unrelated"],
        runs=tuple(runs * len(config["concepts"]) * len(config["seeds"])),
        base=(*[(each + 1) * own + looked_at] * len(config["concepts"]), (each + 1) * common),
        class_pictures=tuple(class_pictures(config, entry) for entry in config["concepts"] if with_class),
        picture_batch=config["sample"]["batch"],
        encoders=encoder_bytes(config["evaluate"]["clip"], config["evaluate"]["dino"]),
        packed=config["protect"]["pack"] is not None,
        offload=config["offload"],
    )


def encoder_bytes(*models: str) -> float:
    """Return the bytes of the evaluators' weights, or an estimate unless all are local folders."""
    if not all(Path(model).is_dir() for model in models):
        return ENCODERS
    return float(sum(path.stat().st_size for model in models for path in Path(model).glob("*.safetensors")))


def class_pictures(config: dict[str, Any], concept: dict[str, Any]) -> int:
    texts = len(concept["class_prompts"])
    return ceil(config["sample"]["class_images"] / texts) * texts


def run_of(config: dict[str, Any], method: dict[str, Any], pictures: int) -> Run:
    train = {**config["train"], **method["train"]}
    microbatch = train["batch"] * (2 if prior_of(method) else 1)  # as many samples of the prior
    return Run(
        method=method["method"],
        scope=method["scope"],
        rank=method["rank"],
        steps=train["steps"] + train["inversion_steps"],
        samples=microbatch * train["accumulation"],
        microbatch=microbatch,
        pictures=pictures,
        checkpoint_every=train["checkpoint_every"],
        checkpointing=train["gradient_checkpointing"],
        validated=min(VALIDATION_BATCH, len(config["validate"]["prompts"])) if config["validate"]["every"] else 0,
    )


def hours(jobs: Iterable[Job], gpu: bool) -> float:
    """Return the hours of all jobs on GPUs, or of all others on processor cores."""
    return sum(job.count * job.seconds for job in jobs if job.gpu is gpu) / 3600


def wall_seconds(jobs: Iterable[Job], machine: Machine) -> float:
    """Return the seconds until all jobs are done, if each rule waits for the one before; see `slots`."""
    return sum(ceil(job.count / slots(job, machine)) * job.seconds for job in jobs)


def slots(job: Job, machine: Machine) -> int:
    """Return how many jobs of a rule run at a time. Without GPUs, a denoiser uses all cores."""
    if job.gpu:
        return machine.gpus
    return 1 if not machine.gpus and job.rule in HINTS and job.rule not in ENCODING else machine.cores


def total(jobs: Iterable[Job], key: str) -> float:
    """Return the sum of `seconds`, `disk` or `files` over all jobs."""
    return sum(job.count * getattr(job, key) for job in jobs)


def warnings(jobs: Iterable[Job], limits: Limits) -> list[str]:
    """Return warnings about jobs that do not fit, with hints."""
    jobs, found = list(jobs), []
    for job in jobs:
        if limits.card is not None and job.card > limits.card:
            found.append(
                f"{job.rule} needs {amount(job.card)} on the card, which has {amount(limits.card)}: {HINTS[job.rule]}"
            )
        if limits.memory is not None and job.host > limits.memory:
            found.append(f"{job.rule} needs {amount(job.host)} of memory; this machine has {amount(limits.memory)}")
    if limits.disk is not None and (needed := total(jobs, "disk")) > limits.disk:
        found.append(
            f"all results together need {amount(needed)} on disk, but only {amount(limits.disk)} are free: "
            "set `results` to a larger disk, raise protect.shard_size, lower sampler.steps, or protect fewer prompts"
        )
    return found


HEADINGS = ("step", "jobs", "time of each", "together", "memory", "card", "disk", "files")


def table(jobs: Iterable[Job]) -> str:
    """Format one line per rule, in columns under HEADINGS."""
    rows = [HEADINGS, *map(row, jobs)]
    widths = [max(len(line[i]) for line in rows) for i in range(len(HEADINGS))]
    lines = (
        "  ".join(
            cell.ljust(n) if i == 0 else cell.rjust(n) for i, (cell, n) in enumerate(zip(line, widths, strict=True))
        )
        for line in rows
    )
    return "\n".join(lines)


def row(job: Job) -> tuple[str, ...]:
    together = f"{duration(job.count * job.seconds)} {'GPU' if job.gpu else 'CPU'}"
    on_card = amount(job.card) if job.gpu else ""
    size, files = amount(job.count * job.disk), str(round(job.count * job.files))
    return (job.rule, str(job.count), duration(job.seconds), together, amount(job.host), on_card, size, files)


def summary(jobs: Iterable[Job], machine: Machine) -> str:
    """Summarise time, bytes and files of all jobs in two sentences."""
    jobs = list(jobs)
    n = sum(job.count for job in jobs)
    used = f"{hours(jobs, False):.1f} hours of processors"
    if machine.gpus:
        used = f"{hours(jobs, True):.1f} hours of GPUs and {used}"
    where = f"{machine.gpus} GPU{'s' * (machine.gpus > 1)}" if machine.gpus else f"{machine.cores} cores and no GPU"
    return (
        f"{n} jobs take {used}; on {where}, about {duration(wall_seconds(jobs, machine))}.\n"
        f"They write {amount(total(jobs, 'disk'))} in {round(total(jobs, 'files'))} files."
    )


def duration(seconds: float) -> str:
    """Format seconds for people: `40 s`, `12 min`, `3.5 h`, `12 days`."""
    for unit, size, limit in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < limit * size:
            value = seconds / size
            return f"{value:.1f} {unit}" if unit == "h" or value < 9.5 else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


def amount(size: float) -> str:
    """Format bytes for people: `12 MB`, `3.4 GB`, `2.1 TB`."""
    for unit, power in (("kB", 3), ("MB", 6), ("GB", 9)):
        if size < 999.5 * 10**power:
            value = size / 10**power
            return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"
    return f"{size / 1e12:.1f} TB"
