"""The job that solves the edits of a config, in order, for all cross-attention keys and values."""

import json

import yaml

from nullbooth.adapters.file import AdapterInfo, write_adapter
from nullbooth.editing.features import TextFeatures, solve_edits
from nullbooth.inputs.edits import edits_of
from nullbooth.models import loading
from nullbooth.models.precision import pick_device
from nullbooth.storage.atomic import write_text
from nullbooth.storage.progress import reporter


def write_edits(out: dict, recipe: dict, config: dict) -> None:
    """Write the adapter of the edits, facts about it as JSON, and the recipe as YAML. out: paths by kind."""
    device = pick_device(config["device"])
    pipeline = loading.load_pipeline(loading.ModelSource.of(config), device, config["offload"])
    edits, [(rule, value)] = edits_of(recipe["edits"]), recipe["rule"].items()
    texts = TextFeatures(pipeline, recipe["resolution"], recipe["arguments"])
    protected = [*recipe["protected"], ""]  # and the unconditional branch of guidance
    report = reporter("prompts")
    tensors, about = solve_edits(texts, edits, recipe["templates"], protected, (rule, value), recipe["l2"], report)
    for found in about["features"].values():
        print(f"free directions: {found['free']:.0f} of {found['directions']}; the change has rank {found['rank']}")
    for found in about["edits"]:
        print(f"{found['from']!r} to {found['to']!r}: {found['reached']:.0%} of the way, in features of the templates")
    info = AdapterInfo(
        scope="edit",
        rank=max(found["rank"] for found in about["features"].values()),
        timesteps=(0.0,),
        denoiser=type(texts.denoiser).__name__,
        model=recipe["identity"]["model"],
        prompt="; ".join(f"{edit.source} -> {edit.target or 'nothing'}" for edit in edits),
        rule=f"{rule}: {value}, l2: {recipe['l2']}",
    )
    write_adapter(out["edit"], tensors, info)
    write_text(out["about"], json.dumps(about, indent=1))
    write_text(out["config"], yaml.safe_dump(recipe, sort_keys=False))
