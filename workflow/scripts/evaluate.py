"""Rule evaluate: subject fidelity, drift from the base model, and, where the encoder has heads, attributes."""

import json
from pathlib import Path

import torch
from PIL import Image

from nullbooth import metrics
from nullbooth.images import list_images, load_image
from nullbooth.progress import log_to


def read_group(folders: list[str], group: str) -> tuple[list[dict], torch.Tensor]:
    """Entries and pictures `[n, 3, h, w]` in [-1, 1] of one group of prompts."""
    found = []
    for folder in map(Path, folders):
        listed = json.loads((folder / "images.json").read_text())["images"]
        found += [(entry, folder / entry["file"]) for entry in listed if entry["group"] == group]
    with Image.open(found[0][1]) as first:
        size = (first.height, first.width)
    return [entry for entry, _ in found], torch.stack([load_image(path, size) for _, path in found])


def main(out: str, tuned: str, base: list[str], encoders: dict, identity: dict, concept: dict) -> None:
    clip, dino = metrics.load_encoder(encoders["clip"]), metrics.load_encoder(encoders["dino"])
    photographs = list_images(concept["holdout"] or concept["images"])
    reference = {
        name: metrics.embed_images(encoder, torch.stack([load_image(path, encoder.size) for path in photographs]))
        for name, encoder in (("clip", clip), ("dino", dino))
    }
    rows = []

    def row(model: str, group: str, metric: str, values) -> None:
        rows.append({"model": model, "group": group, "metric": metric, **metrics.bootstrap_mean(values)})

    if concept["holdout"]:  # what real pictures of the subject reach: the scale of the fidelity
        for name, encoder in (("clip", clip), ("dino", dino)):
            x = torch.stack([load_image(path, encoder.size) for path in list_images(concept["images"])])
            features = metrics.embed_images(encoder, x)
            row("photographs", "subject", f"{name}_fidelity", metrics.subject_fidelity(features, reference[name]))
    for group in ("subject", "class", "unrelated"):
        entries, x = read_group([tuned], group)
        base_entries, y = read_group(base, group)
        if [(e["prompt"], e["seed"]) for e in entries] != [(e["prompt"], e["seed"]) for e in base_entries]:
            raise ValueError(f"{tuned} and {base[0]} do not show the same {group} prompts and seeds: draw both again")
        prompts = [entry["prompt"] for entry in entries]
        features = {}
        for name, encoder in (("clip", clip), ("dino", dino)):
            features[name] = {m: metrics.embed_images(encoder, z) for m, z in (("tuned", x), ("base", y))}
            row("tuned", group, f"{name}_drift", metrics.paired_drift(features[name]["tuned"], features[name]["base"]))
            for model in ("base", "tuned"):
                fidelity = metrics.subject_fidelity(features[name][model], reference[name])
                row(model, group, f"{name}_fidelity", fidelity)
        row("tuned", group, "pixel_mse", ((x - y) ** 2).mean((1, 2, 3)) / 4)
        spoken = prompts
        if group == "subject":  # the encoder does not know the identifier: what it can judge is the class
            spoken = [" ".join(word for word in p.split() if word != concept["identifier"]) for p in prompts]
        texts = metrics.embed_texts(clip, spoken)
        for model, z in (("base", y), ("tuned", x)):
            row(model, group, "clip_text", (features["clip"][model] * texts).sum(1))
            if dino.heads is not None:
                for name, hits in metrics.attribute_accuracy(dino, z, prompts).items():
                    row(model, group, f"{name}_accuracy", hits)
    Path(out).write_text(json.dumps({"encoders": encoders, "identity": identity, "metrics": rows}, indent=1))


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(snakemake.output[0], snakemake.input.tuned, snakemake.input.base, **snakemake.params)
