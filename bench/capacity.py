"""Number of subjects that the embedded model can learn one after another, each with earlier ones protected, until all
free directions are used or --subjects are learned.

Each subject is a shape of the world with a fill that no caption names, its own identifier, and five photographs. The
workflow learns them (`lifelong: sequence`). Each is measured when it is learned, and again after all are learned. LoRA
learns the same sequence for comparison. Writes capacity.json and capacity.svg to the folder.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from common import ROOT, parser, report
from matplotlib import pyplot as plt

from nullbooth import load_adapter
from nullbooth.evaluation import figures
from nullbooth.evaluation.encoders import embed_images, load_encoder
from nullbooth.evaluation.intervals import bootstrap_mean
from nullbooth.evaluation.lifelong import capacity, free_counts
from nullbooth.evaluation.measure import paired_drift, subject_fidelity
from nullbooth.inputs.photographs import list_images
from nullbooth.inputs.prompts import read_prompts
from nullbooth.models.loading import ModelSource, load_pipeline
from nullbooth.models.noise import prompt_seed
from nullbooth.models.pixels import load_image, to_pil
from nullbooth.models.sampling import sample
from world.scenes import COLORS, NAMES, POSITIONS, SHAPES, Scene, caption, render

CONTEXTS = ("a photo of a {} on a red background", "a photo of a {} on a cyan background")
CONTEXTS += ("a photo of a {} on a dotted blue background", "a photo of a large {} on a striped green background")
RANK, ENERGY = 16, 1e-3  # as in the config
METHODS = {
    "nullbooth": {"name": "nullbooth", "lifelong": "sequence", "rank": RANK, "rule": {"energy": ENERGY}},
    "lora": {"name": "lora", "method": "lora", "lifelong": "sequence", "train": {"learning_rate": 5.0e-4}},
}


def make_subjects(folder: Path, n: int) -> list[dict]:
    """Write photographs of `n` subjects, five for training and three held out; return their entries for a config."""
    letters, entries = random.Random(11), []
    while len(entries) < n:
        word = "".join(letters.choices("bcdfghjklmnpqrtvwxyz", k=3))
        if word in NAMES or any(word == entry["identifier"] for entry in entries):
            continue
        shape, rng = SHAPES[len(entries) % len(SHAPES)], random.Random(word)
        grounds = rng.sample(list(COLORS), 8)
        scenes = [Scene(shape, f"#{word}", g, "plain", "large", rng.choice(list(POSITIONS))) for g in grounds]
        place = folder / "subjects" / word
        for i, (scene, picture) in enumerate(zip(scenes, render(scenes, rng), strict=True)):
            part = place / ("train" if i < 5 else "holdout")
            part.mkdir(parents=True, exist_ok=True)
            to_pil(picture * 2 - 1).save(part / f"{i}.png")
            if i < 5:
                text = caption(scene).replace(f"#{word} {shape}", "{subject}").replace("large ", "")
                (part / f"{i}.txt").write_text(f"a photo of {text}")
        entry = {"name": word, "identifier": word, "class": shape}
        entries.append(entry | {"images": str(place / "train"), "holdout": str(place / "holdout")})
    return entries


def learn(folder: Path, entries: list[dict], args) -> Path:
    """Learn the subjects with the workflow; return its results folder."""
    config = {
        "results": str(folder / "results"),
        "concepts": entries,
        "methods": [METHODS[name] for name in args.methods],
        "sampler": {"steps": args.steps},
        "train": {"steps": args.train_steps},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--nolock", "--configfile", folder / "config.yaml"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    targets = ["adapters", folder / "results/projectors/pooled.zarr"]
    subprocess.run([*command, "--", *targets], cwd=ROOT, env=environ, check=True)
    return folder / "results"


class Judge:
    def __init__(self, steps: int):
        self.pipeline = load_pipeline(ModelSource(str(ROOT / "resources/tinyworld")), torch.device("cpu"))
        self.steps = steps
        self.dino = load_encoder(str(ROOT / "resources/evaluators/dino"))
        self.unrelated = read_prompts(ROOT / "config/prompts/unrelated.txt")
        self.base = self.draw(self.unrelated)

    def draw(self, prompts: list[str]) -> torch.Tensor:
        seeds = [prompt_seed(prompt, 0) for prompt in prompts]
        drawn = sample(self.pipeline, prompts, seeds, steps=self.steps, guidance=3.0, batch=16)
        return embed_images(self.dino, drawn)

    def fidelity(self, entry: dict) -> list[float]:
        photographs = torch.stack([load_image(path, self.dino.size) for path in list_images(entry["holdout"])])
        drawn = self.draw([context.format(f"{entry['identifier']} {entry['class']}") for context in CONTEXTS])
        return subject_fidelity(drawn, embed_images(self.dino, photographs)).tolist()

    def drift(self) -> list[float]:
        return paired_drift(self.draw(self.unrelated), self.base).tolist()


def measure(judge: Judge, results: Path, method: str, entries: list[dict]) -> list[dict]:
    """Return a row per subject: fidelity when learned and in the end, and the drift of other prompts when learned."""
    loaded, rows = [], []
    for known, entry in enumerate(entries, 1):
        before = bootstrap_mean(judge.fidelity(entry)) if not rows else None
        loaded.append(load_adapter(judge.pipeline, results / "runs" / entry["name"] / method / "0/adapter.safetensors"))
        row = {"method": method, "known": known, "subject": entry["name"], "learned": judge.fidelity(entry)}
        rows.append(row | {"drift": judge.drift(), "base": before})
    for row, entry in zip(rows, entries, strict=True):
        row["kept"] = judge.fidelity(entry)
    for adapter in reversed(loaded):
        adapter.unload()
    return rows


def main(args) -> None:
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = make_subjects(folder, args.subjects)
    results, judge = learn(folder, entries, args), Judge(args.steps)
    found = [row for method in args.methods for row in measure(judge, results, method, entries)]
    for row in found:
        run = (results / "runs" / row["subject"] / row["method"] / "0/adapter.safetensors").resolve().parent
        place = run / "projectors/pooled.zarr"
        place = place if place.is_dir() else results / "projectors/pooled.zarr"  # the first subject has no earlier ones
        row["room"] = free_counts(str(place), "energy", ENERGY) if row["method"] == "nullbooth" else None
        row["free"] = row["room"] and row["room"]["mean"]
    if rooms := [row["room"] for row in found if row["room"]]:
        print(f"after {len(rooms)} subjects: {capacity(rooms, RANK)['said']}")
    (folder / "capacity.json").write_text(json.dumps(found, indent=1))
    table = [
        {
            "method": row["method"],
            "subjects known": row["known"],
            "fidelity when learned": round(bootstrap_mean(row["learned"])["value"], 2),
            "in the end": round(bootstrap_mean(row["kept"])["value"], 2),
            "drift of other prompts": round(bootstrap_mean(row["drift"])["value"], 4),
            "free directions": row["free"] and round(row["free"], 3),
        }
        for row in found
    ]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8))
    for i, method in enumerate(args.methods):
        rows = [row for row in found if row["method"] == method]
        for k, (key, label) in enumerate((("learned", "when learned"), ("kept", "in the end"))):
            points = [(row["known"], bootstrap_mean(row[key])) for row in rows]
            figures.with_bars(axes[0], points, **figures.style(2 * i + k), label=f"{method}, {label}")
        drifts = [(row["known"], bootstrap_mean(row["drift"])) for row in rows]
        figures.with_bars(axes[1], drifts, **figures.style(2 * i), label=method)
        if rows[0]["free"] is not None:
            axes[2].plot([row["known"] for row in rows], [row["free"] for row in rows], **figures.style(2 * i))
    for ax, label in zip(axes, ("fidelity (DINO)", "drift of other prompts", "share of free directions"), strict=True):
        ax.set_xlabel("subjects")
        ax.set_ylabel(label)
    axes[0].legend(fontsize=8)
    axes[1].legend(fontsize=8)
    axes[2].set_ylim(0, None)
    figures.save(figure, folder / "capacity.svg", folder / "capacity.png")
    report("capacity", table, args)


if __name__ == "__main__":
    p = parser(__doc__, sizes=())
    p.add_argument("--folder", required=True, help="for subjects and results; an interrupted run resumes")
    p.add_argument("--subjects", type=int, default=10)
    p.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    p.add_argument("--steps", type=int, default=20, help="of the sampler")
    p.add_argument("--train-steps", type=int, default=150)
    main(p.parse_args())
