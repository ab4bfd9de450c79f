"""Measure how well the embedded model follows held-out captions. Writes resources/model_card.json.

The captions describe scenes that the generator was not trained on. The judge is the DINO-shaped evaluator, whose own
accuracy on true scenes is reported too.
"""

import argparse
import json
import random
from pathlib import Path

import torch

from nullbooth.evaluation.attributes import attribute_accuracy, only_named
from nullbooth.evaluation.encoders import load_encoder
from nullbooth.evaluation.intervals import bootstrap_mean
from nullbooth.inputs.photographs import list_images
from nullbooth.models.loading import ModelSource, load_pipeline
from nullbooth.models.noise import prompt_seed
from nullbooth.models.pixels import load_image, to_pil
from nullbooth.models.sampling import sample
from nullbooth.storage.progress import reporter
from world.generator import SCENES, training_scenes
from world.scenes import SUBJECTS, Scene, caption, random_scene, render


def held_out(n: int) -> list[Scene]:
    """Return `n` scenes whose full captions the generator never saw."""
    seen = set(training_scenes(SCENES))
    rng = random.Random(12345)
    found: list[Scene] = []
    while len(found) < n:
        scene = random_scene(rng)
        if scene not in seen:
            found.append(scene)
            seen.add(scene)
    return found


def drawn_accuracy(resources: Path, n: int, steps: int, guidance: float, sheet: Path | None) -> dict:
    """Return the accuracy of every attribute on pictures drawn for held-out captions, with 95% intervals."""
    pipeline = load_pipeline(ModelSource(str(resources / "tinyworld")), torch.device("cpu"))
    prompts = [caption(scene) for scene in held_out(n)]
    seeds = [prompt_seed(prompt, 0) for prompt in prompts]
    drawn = sample(
        pipeline, prompts, seeds, steps=steps, guidance=guidance, batch=50, precision="bf16", progress=reporter("drawn")
    )
    if sheet is not None:
        rows = [torch.cat(list(drawn[i : i + 12]), 2) for i in range(0, 96, 12)]
        to_pil(torch.cat(rows, 1)).save(sheet)
    hits = attribute_accuracy(load_encoder(str(resources / "evaluators/dino")), drawn, prompts)
    return {name: bootstrap_mean(values) for name, values in only_named(hits).items()}


def judge_accuracy(resources: Path, n: int = 2000) -> dict:
    """Return the accuracy of the judge itself on true scenes that it was not trained on."""
    rng = random.Random(54321)
    scenes = [random_scene(rng) for _ in range(n)]
    x = torch.cat([render(scenes[i : i + 100], rng) for i in range(0, n, 100)]) * 2 - 1
    hits = attribute_accuracy(load_encoder(str(resources / "evaluators/dino")), x, [caption(s) for s in scenes])
    return {name: bootstrap_mean(values) for name, values in only_named(hits).items()}


@torch.no_grad()
def reconstruction_psnr(resources: Path) -> dict[str, float]:
    """Return the PSNR in dB of the autoencoder on all photographs of each subject."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(resources / "tinyworld", subfolder="vae")
    result = {}
    for name in SUBJECTS:
        paths = [p for part in ("train", "holdout") for p in list_images(resources / "subjects" / name / part)]
        x = torch.stack([load_image(path, 64) for path in paths])
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        result[name] = round(-10 * (((x - y) / 2) ** 2).mean().log10().item(), 2)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resources", type=Path, default=Path("resources"))
    parser.add_argument("--out", type=Path, default=Path("resources/model_card.json"))
    parser.add_argument("--captions", type=int, default=300)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    card = {
        "captions": args.captions,
        "steps": args.steps,
        "guidance": args.guidance,
        "drawn": drawn_accuracy(args.resources, args.captions, args.steps, args.guidance, args.sheet),
        "judge on true scenes": judge_accuracy(args.resources),
        "PSNR of subjects in dB": reconstruction_psnr(args.resources),
    }
    args.out.write_text(json.dumps(card, indent=1) + "\n")
    for part in ("drawn", "judge on true scenes"):
        print(part, {name: round(f["value"], 3) for name, f in card[part].items()})
    print("PSNR", card["PSNR of subjects in dB"])
