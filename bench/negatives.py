"""Negative prompts after training: drift with and without `protect.negatives`, on the embedded model.

Draws config/prompts/unrelated.txt with the base model, and with adapters learned with and without `protect.negatives`,
all with the same negative prompt:

    snakemake -- adapters
    snakemake --config results=results/negatives \\
        'protect={negatives: config/prompts/negatives_embedded.txt}' -- adapters
    PYTHONPATH=. python bench/negatives.py --without results --with results/negatives

`unseen` is not protected. `other noise` is the drift between two pictures of the base model from different noise, as a
scale for the others. Intervals are over prompts and subjects, with one training each.
"""

from pathlib import Path

import numpy as np
import torch
from common import ROOT, parser, report

from nullbooth.adapters.loaded import load_adapter
from nullbooth.evaluation.encoders import embed_images, load_encoder
from nullbooth.evaluation.intervals import bootstrap_mean
from nullbooth.evaluation.measure import paired_drift, possible
from nullbooth.inputs.prompts import read_prompts
from nullbooth.models.loading import ModelSource, load_pipeline
from nullbooth.models.noise import prompt_seed
from nullbooth.models.sampling import sample
from nullbooth.models.schedulers import set_sampler

NEGATIVES = {
    "none": "",
    "protected": "low quality, worst quality",
    "unseen": "blurry, low quality, deformed",
    "unseen, of its world": "a yellow triangle",
}


def draw(pipeline: object, prompts: list[str], negative: str, seed: int = 0) -> torch.Tensor:
    seeds = [prompt_seed(prompt, seed) for prompt in prompts]
    arguments = {"negative_prompt": negative} if negative else {}
    return sample(pipeline, prompts, seeds, steps=50, guidance=3.0, batch=16, arguments=arguments)


def main(folders: dict[str, Path], concepts: list[str], method: str) -> list[dict]:
    """Return the rows of the table. folders: results by kind of statistics."""
    pipeline = load_pipeline(ModelSource(str(ROOT / "resources/tinyworld")), torch.device("cpu"))
    set_sampler(pipeline, None, {})
    encoder = load_encoder(str(ROOT / "resources/evaluators/dino"))
    prompts, rows = read_prompts(ROOT / "config/prompts/unrelated.txt"), []
    for name, negative in NEGATIVES.items():
        base = embed_images(encoder, draw(pipeline, prompts, negative))
        other = embed_images(encoder, draw(pipeline, prompts, negative, seed=1))
        found = {"other noise": paired_drift(other, base).numpy()}
        for kind, folder in folders.items():
            drifts = []
            for concept in concepts:
                adapter = load_adapter(pipeline, folder / "runs" / concept / method / "0/adapter.safetensors")
                drifts.append(paired_drift(embed_images(encoder, draw(pipeline, prompts, negative)), base).numpy())
                adapter.unload()
            found[kind] = np.concatenate(drifts)
        for kind, values in found.items():
            interval = bootstrap_mean(values, within=possible("dino_drift"))
            shown = {key: round(interval[key], 4) for key in ("value", "low", "high")}
            rows.append({"negative prompt": name, "statistics": kind, **shown})
    return rows


if __name__ == "__main__":
    p = parser(__doc__, sizes=())
    p.add_argument(
        "--with", type=Path, default=ROOT / "results/negatives", help="results with negative prompts protected"
    )
    p.add_argument("--without", type=Path, default=ROOT / "results", help="results without")
    p.add_argument("--concepts", nargs="+", default=["quilt", "muppet"])
    p.add_argument("--method", default="nullbooth")
    given = p.parse_args()
    places = {kind: vars(given)[kind] for kind in ("without", "with")}
    report("negatives", main(places, given.concepts, given.method), given)
