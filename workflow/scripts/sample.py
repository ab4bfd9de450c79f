"""Rules base_images and tuned_images: draw the prompts of every group from noise that belongs to prompt and number."""

import json
from pathlib import Path

from nullbooth import load_adapter, models
from nullbooth.identity import prompt_seed
from nullbooth.images import to_pil
from nullbooth.progress import log_to, reporter
from nullbooth.sampling import sample


def main(
    out: str, adapter: str | None, prompts: dict, sampler: dict, sampling: dict, identity: dict, config: dict
) -> None:
    device = models.pick_device(config["device"])
    pipeline = models.load_pipeline(config["model"], device, config["revision"])
    models.set_sampler(pipeline, sampler["scheduler"], sampler["options"])
    if adapter is not None:
        load_adapter(pipeline, adapter)
    wanted = [
        {"group": group, "prompt": prompt, "seed": prompt_seed(prompt, sampling["seed"] + k)}
        for group, texts in prompts.items()
        for prompt in texts
        for k in range(sampling["per_prompt"])
    ]
    pictures = sample(
        pipeline,
        [w["prompt"] for w in wanted],
        [w["seed"] for w in wanted],
        steps=sampler["steps"],
        guidance=sampler["guidance"],
        batch=config["sample"]["batch"],
        precision=sampling["precision"],
        progress=reporter("pictures"),
    )
    folder = Path(out)
    folder.mkdir(parents=True)
    for i, (entry, picture) in enumerate(zip(wanted, pictures, strict=True)):
        entry["file"] = f"{entry['group']}-{i:03d}.png"
        to_pil(picture).save(folder / entry["file"])
    (folder / "images.json").write_text(json.dumps({"identity": identity, "images": wanted}, indent=1))


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(snakemake.output[0], snakemake.input.get("adapter"), **snakemake.params, config=snakemake.config)
