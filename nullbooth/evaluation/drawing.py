"""Folders of pictures, drawn from noise that depends only on prompt and number, with attention maps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nullbooth.adapters.loaded import load_tuned
from nullbooth.models import loading
from nullbooth.models.attention_maps import overlay, recording_attention, without_maps, word_tokens
from nullbooth.models.noise import prompt_seed
from nullbooth.models.pixels import to_pil
from nullbooth.models.sampling import sample
from nullbooth.storage.atomic import whole
from nullbooth.storage.digests import digest
from nullbooth.storage.progress import reporter


def attention_maps(
    folder: Path, pipeline: Any, wanted: list[dict], words: list[str], draw: Callable[[list[dict]], torch.Tensor]
) -> list[dict]:
    """Draw `wanted` again, save an attention map for each of `words` in a prompt, and return a list of the files."""
    denoiser = loading.denoiser_of(pipeline)
    with recording_attention(denoiser, len(wanted), denoiser.config.sample_size) as maps:
        pictures = draw(wanted)
    shown = []
    for i, (entry, picture, found) in enumerate(zip(wanted, pictures, maps.mean(), strict=True)):
        for k, word in enumerate(words):
            tokens = word_tokens(pipeline.tokenizer, entry["prompt"], word)
            if not tokens or tokens[-1] >= len(found):  # not in this prompt, or truncated by the text encoder
                continue
            heat, name = found[tokens].mean(0), f"attention-{i}-{k}.png"
            to_pil(overlay(picture, heat)).save(folder / name)
            shown.append({"prompt": entry["prompt"], "seed": entry["seed"], "word": word, "file": name})
    return shown


def draw_prompts(
    out: str, adapters: list[str], prompts: dict, sampler: dict, sampling: dict, identity: dict, config: dict
) -> None:
    """Draw prompts, by group, to the folder `out` with `images.json` and, if `sampling` names words, attention maps."""
    pipeline = load_tuned(config, sampler, adapters, identity["model"], sampling.get("scale", 1.0))

    def draw(wanted: list[dict], progress: Callable[[int, int], None] = lambda done, total: None) -> torch.Tensor:
        return sample(
            pipeline,
            [w["prompt"] for w in wanted],
            [w["seed"] for w in wanted],
            steps=sampler["steps"],
            guidance=sampler["guidance"],
            batch=config["sample"]["batch"],
            precision=sampling["precision"],
            resolution=sampling["resolution"],
            arguments=sampler["arguments"],
            progress=progress,
        )

    wanted = [
        {"group": group, "prompt": prompt, "seed": prompt_seed(prompt, sampling["seed"] + k)}
        for group, texts in prompts.items()
        for prompt in texts
        for k in range(sampling["per_prompt"])
    ]
    pictures = draw(wanted, reporter("pictures"))
    with whole(out) as folder:
        folder.mkdir()
        for i, (entry, picture) in enumerate(zip(wanted, pictures, strict=True)):
            entry["file"] = f"{entry['group']}-{i:03d}.png"
            to_pil(picture).save(folder / entry["file"])
        found = {"identity": {**identity, "sampler": digest(sampler)}, "images": wanted}
        if (words := sampling.get("attention")) and (why := without_maps(loading.denoiser_of(pipeline))):
            print(f"no attention maps: {why}")
        elif words:
            looked_at = [w for w in wanted if w["group"] == "subject"][:: sampling["per_prompt"]][:2]
            found["attention"] = attention_maps(folder, pipeline, looked_at, words, draw)
        (folder / "images.json").write_text(json.dumps(found, indent=1))
