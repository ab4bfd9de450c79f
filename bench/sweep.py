"""Table of a finished sweep: fidelity of the subject and drift of other prompts, by method."""

import argparse
import json
from pathlib import Path

COLUMNS = {
    "subject (DINO)": ("tuned", "subject", "dino_fidelity"),
    "subject (CLIP)": ("tuned", "subject", "clip_fidelity"),
    "background kept": ("tuned", "subject", "background_accuracy"),
    "leak into class": ("tuned", "class", "dino_fidelity"),
    "drift (DINO)": ("tuned", "unrelated", "dino_drift"),
    "drift (CLIP)": ("tuned", "unrelated", "clip_drift"),
    "shape right": ("tuned", "unrelated", "shape_accuracy"),
    "color right": ("tuned", "unrelated", "color_accuracy"),
}


def figures(path: Path) -> dict[tuple[str, str, str], float]:
    return {(m["model"], m["group"], m["metric"]): m["value"] for m in json.loads(path.read_text())["metrics"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results/sweep"))
    args = parser.parse_args()
    print("| method | " + " | ".join(COLUMNS) + " |")
    print("|---|" + "---|" * len(COLUMNS))
    base = None
    for path in sorted(args.results.glob("runs/*/*/*/metrics.json")):
        found = figures(path)
        base = found
        name = "/".join(path.parts[-4:-1])
        print(f"| {name} | " + " | ".join(f"{found.get(key, float('nan')):.3f}" for key in COLUMNS.values()) + " |")
    if base:
        for label, model in (("base model", "base"), ("photographs", "photographs")):
            cells = [base.get((model, *key[1:]), float("nan")) for key in COLUMNS.values()]
            print(f"| {label} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
