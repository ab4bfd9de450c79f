"""Tables of docs/scaling.md: four model families, 1,000 and 100,000 protected prompts, 1, 8 and 64 GPUs.

    python bench/scaling.py    # rewrites them between their marks in docs/scaling.md and README.md

Computed by nullbooth.planning for A100 cards, from the shapes in bench/architectures.json, with one subject.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import yaml

from nullbooth.planning import cost, estimate
from nullbooth.planning.cost import Job, Model, Reading, Run, Work
from nullbooth.planning.plan import amount, duration, hours, total, wall_seconds

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, README = ROOT / "docs" / "scaling.md", ROOT / "README.md"
SHAPES = Path(__file__).with_name("architectures.json")
GIB = 2**30
PEAK, CARD = 312e12, "A100 with 80 GB"  # bfloat16 without sparsity
GPUS = (1, 8, 64)
SHARDS = {1_000: 8, 100_000: 64}
# Usual timesteps and branches of guidance of each model; prompts per pass, pictures per training step.
SAMPLING = {
    "Stable Diffusion 1.5": (50, 2, 16, 8),
    "Stable Diffusion XL": (50, 2, 4, 4),
    "Stable Diffusion 3.5 large": (28, 2, 2, 1),
    "FLUX.1-dev": (28, 1, 2, 1),
}
STAGES = {
    "trajectories": ("trajectory", "heldout_trajectory"),
    "moments of shards": ("moments",),
    "covariances": ("covariance", "pool", "heldout_moments"),
    "projectors": ("projector",),
}


# Settings for cards, which docs/scaling.md prints for copying. `protect.batch` would be found automatically.
CARDS = {
    12: {
        "weights": "bf16",
        "offload": True,
        "protect": {"batch": 4},
        "train": {"batch": 1, "accumulation": 4, "gradient_checkpointing": True},
        "sample": {"batch": 1},
    },
    24: {
        "weights": "bf16",
        "offload": True,
        "protect": {"batch": 2},
        "train": {"batch": 1, "accumulation": 4, "gradient_checkpointing": True},
        "sample": {"batch": 2},
    },
    80: {
        "weights": "bf16",
        "protect": {"batch": 4},
        "train": {"batch": 4, "gradient_checkpointing": True},
        "sample": {"batch": 4},
    },
}


def models(weights: str = "fp32") -> dict[str, Model]:
    """Read the shapes of all families that bench/architectures.py wrote for weights of this dtype."""
    found = {}
    for entry in json.loads(SHAPES.read_text()):
        lists = {key: tuple(value) for key, value in entry.items() if key.endswith("_bytes")}
        model = Model(**{**entry, **lists, "readings": tuple(Reading(**r) for r in entry["readings"])})
        if model.weights == weights:
            found[model.name] = model
    return found


def work(name: str, prompts: int, shards: int) -> Work:
    steps, branches, batch, trained = SAMPLING[name]
    run = Run(samples=trained, microbatch=trained)
    return Work(prompts, -(-prompts // shards), steps, branches, batch, runs=(run,), base=(18, 24), picture_batch=batch)


def jobs(model: Model, prompts: int, gpus: int, shards: int, **changes: object) -> list[Job]:
    return estimate.jobs(model, replace(work(model.name, prompts, shards), **changes), cost.card(PEAK, gpus))


def markdown(rows: Iterable[dict[str, str]]) -> str:
    rows = list(rows)
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shapes_row(model: Model) -> dict[str, str]:
    steps, branches, *_ = SAMPLING[model.name]
    moving = [r for r in model.readings if not r.static]
    return {
        "model": model.name,
        "denoiser": f"{model.parameters / 1e9:.3f} billion",
        "text encoders": f"{model.text_parameters / 1e9:.2f} billion",
        "one pass of one sample": f"{model.flops / 1e12:.2f} TFLOP",
        "training": f"{model.train_flops / 1e12:.2f} TFLOP",
        "distinct features": str(len(model.readings)),
        "widths": ", ".join(map(str, sorted({r.width for r in model.readings}))),
        "products of one sample": f"{sum(2 * r.rows * r.width**2 for r in moving) / 1e12:.2f} TFLOP",
        "moments of a step": amount(sum(r.packed for r in moving)),
        "timesteps, branches": f"{steps}, {branches}",
    }


def time_row(model: Model, prompts: int) -> dict[str, str]:
    found = [jobs(model, prompts, n, SHARDS[prompts]) for n in GPUS]
    times = {
        f"{n} GPU{'s' * (n > 1)}": duration(wall_seconds(f, cost.card(PEAK, n)))
        for n, f in zip(GPUS, found, strict=True)
    }
    return {
        "model": model.name,
        "prompts": f"{prompts:,}",
        "shards": str(SHARDS[prompts]),
        "jobs": f"{sum(job.count for job in found[0]):,}",
        "GPU hours": f"{hours(found[0], True):,.1f}",
        "core hours": f"{hours(found[0], False):,.1f}",
        **times,
    }


def space_row(model: Model, prompts: int) -> dict[str, str]:
    found = jobs(model, prompts, 1, SHARDS[prompts])
    parts = {stage: amount(total([j for j in found if j.rule in rules], "disk")) for stage, rules in STAGES.items()}
    return {
        "model": model.name,
        "prompts": f"{prompts:,}",
        **parts,
        "all": amount(total(found, "disk")),
        "files": f"{total(found, 'files'):,.0f}",
    }


MEMORY = ("trajectory", "moments", "adapter", "tuned_images", "covariance", "pool", "projector", "heldout_moments")


def memory_row(model: Model) -> dict[str, str]:
    by_rule = {job.rule: job for job in jobs(model, 1_000, 1, 8)}
    cells = {}
    for rule in MEMORY:
        job = by_rule[rule]
        cells[rule] = f"{amount(job.card)} + {amount(job.host)}" if job.gpu else amount(job.host)
    return {"model": model.name, **cells}


def scope_row(model: Model) -> dict[str, str]:
    steps, _, _, batch = SAMPLING[model.name]
    cells = {}
    for scope in ("pooled", "timestep"):
        run = Run(scope=scope, samples=batch, microbatch=batch)
        found = {job.rule: job for job in jobs(model, 1_000, 1, 8, runs=(run,))}
        cells[f"adapter, {scope}"] = f"{amount(found['adapter'].card)}"
        cells[f"projectors, {scope}"] = amount(estimate.projector_bytes(model, run, steps))
    return {"model": model.name, **cells}


def on_card(name: str, gigabytes: int) -> dict[str, Job]:
    """Return the jobs by rule with the settings for a card."""
    settings = CARDS[gigabytes]
    train, batch = settings["train"], settings["train"]["batch"]
    run = Run(
        samples=batch * train.get("accumulation", 1), microbatch=batch, checkpointing=train["gradient_checkpointing"]
    )
    usual = work(name, 1_000, 8)
    changed = replace(
        usual,
        batch=settings["protect"]["batch"],
        picture_batch=settings["sample"]["batch"],
        runs=(run,),
        offload=settings.get("offload", False),
    )
    found = estimate.jobs(models(settings["weights"])[name], changed, cost.card(PEAK, 1))
    return {job.rule: job for job in found}


FITTED = {"trajectory": "trajectory", "moments": "moments", "adapter": "training", "tuned_images": "pictures"}


def fitting_row(gigabytes: int, name: str) -> dict[str, str]:
    found = on_card(name, gigabytes)
    cells = {}
    for rule, what in FITTED.items():
        fits = found[rule].card <= gigabytes * GIB
        cells[what] = amount(found[rule].card) + ("" if fits else ", does not fit")
    return {"card": f"{gigabytes} GB", "model": name, **cells}


def fits(gigabytes: int, name: str) -> str:
    """Return the cell of the summary that says whether all stages fit the card, or which do not."""
    found = on_card(name, gigabytes)
    over = [what for rule, what in FITTED.items() if found[rule].card > gigabytes * GIB]
    return "yes" if not over else "no" if len(over) == len(FITTED) else f"but for {' and '.join(over)}"


def summary_row(name: str) -> dict[str, str]:
    return {"model": name, **{f"{gigabytes} GB": fits(gigabytes, name) for gigabytes in CARDS}}


def snippet(gigabytes: int) -> str:
    return f"```yaml\n{yaml.safe_dump(CARDS[gigabytes], sort_keys=False)}```"


def shards_row(model: Model, shards: int) -> dict[str, str]:
    found, machine = jobs(model, 100_000, 64, shards), cost.card(PEAK, 64)
    return {
        "shards": str(shards),
        "jobs": f"{sum(job.count for job in found):,}",
        "64 GPUs": duration(wall_seconds(found, machine)),
        "moments of shards": amount(total([j for j in found if j.rule == "moments"], "disk")),
        "files": f"{total(found, 'files'):,.0f}",
        "memory of a trajectory job": amount(next(j for j in found if j.rule == "trajectory").host),
    }


PUBLISHED = (  # model, card, its peak, seconds, samples through the denoiser, pictures decoded, source
    (
        "Stable Diffusion 1.5",
        "A100, batch 16",
        312e12,
        1 / 3.04,
        32,
        0,
        "diffusers documentation, torch 2.0, not compiled",
    ),
    ("Stable Diffusion XL", "A100, batch 1", 312e12, 3.31, 60, 1, "PyTorch blog, Accelerating Generative AI III"),
    ("FLUX.1-dev", "L20, batch 1", 119.5e12, 26.36, 28, 1, "diffusers documentation, ParaAttention, baseline"),
)


def published_row(model: Model, card: str, peak: float, seconds: float, n: int, pictures: int, whose: str) -> dict:
    rate = (n * model.flops + pictures * model.decode_flops) / seconds
    return {
        "model": model.name,
        "card": card,
        "published": f"{n} samples in {seconds:.2f} s",
        "that is": f"{rate / 1e12:.0f} TFLOP/s",
        "of its peak": f"{rate / peak:.0%}",
        "from": whose,
    }


def tables() -> dict[str, str]:
    """Return all tables by the name of their mark."""
    known = models()
    sizes = [(model, prompts) for model in known.values() for prompts in SHARDS]
    return {
        "shapes": markdown(map(shapes_row, known.values())),
        "published": markdown(published_row(known[name], *rest) for name, *rest in PUBLISHED),
        "time": markdown(time_row(*size) for size in sizes),
        "space": markdown(space_row(*size) for size in sizes),
        "memory": markdown(map(memory_row, known.values())),
        "scopes": markdown(map(scope_row, known.values())),
        "fitting": markdown(fitting_row(gigabytes, name) for gigabytes in CARDS for name in known),
        **{f"card {gigabytes}": snippet(gigabytes) for gigabytes in CARDS},
        "shards": markdown(shards_row(known["Stable Diffusion XL"], n) for n in (8, 64, 512)),
    }


def summary() -> dict[str, str]:
    """Return the table of README.md by the name of its mark."""
    return {"cards": markdown(map(summary_row, models()))}


def filled(text: str, found: dict[str, str]) -> str:
    """Replace all marked tables of a document. Raises ValueError unless each mark is there once."""
    for name, table in found.items():
        mark = re.compile(rf"(<!-- {name}: [^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
        text, n = mark.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
        if n != 1:
            raise ValueError(f"{DOCUMENT}: {n} marks for the table {name}; write exactly one")
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(), tables()))
    README.write_text(filled(README.read_text(), summary()))
