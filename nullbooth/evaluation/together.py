"""Pictures of two subjects, each prompt in its own half, with all adapters loaded."""

import json

from nullbooth.adapters.loaded import load_tuned
from nullbooth.models.noise import prompt_seed
from nullbooth.models.pixels import to_pil
from nullbooth.models.sampling import sample_halves, without_halves
from nullbooth.storage.atomic import whole
from nullbooth.storage.digests import digest
from nullbooth.storage.progress import reporter

EACH = 3  # pictures of each pair, from different noise


def draw_together(
    out: str, adapters: list[str], pairs: list[list[str]], sampler: dict, sampling: dict, identity: dict, config: dict
) -> None:
    """Draw pairs of prompts to the folder `out` with `images.json`; none if the pipeline cannot draw halves."""
    pipeline = load_tuned(config, sampler, adapters, identity["model"])
    report = reporter("pictures")
    listed: list[dict] = []
    if why := without_halves(pipeline):
        print(f"no pictures of two subjects: {why}")
        pairs = []
    with whole(out) as folder:
        folder.mkdir()
        for left, right in pairs:
            for k in range(EACH):
                seed = prompt_seed(f"{left}|{right}", sampling["seed"] + k)
                picture = sample_halves(
                    pipeline,
                    left,
                    right,
                    seed,
                    steps=sampler["steps"],
                    guidance=sampler["guidance"],
                    precision=sampling["precision"],
                    resolution=sampling["resolution"],
                    arguments=sampler["arguments"],
                )
                name = f"{len(listed):03d}.png"
                to_pil(picture).save(folder / name)
                prompt = f"{left} | {right}"
                listed.append({"group": "together", "prompt": prompt, "seed": seed, "file": name})
                report(len(listed), EACH * len(pairs))
        found = {"identity": {**identity, "sampler": digest(sampler)}, "images": listed}
        (folder / "images.json").write_text(json.dumps(found, indent=1))
