"""Memory of jobs from the headers of a model's safetensors files: cheap enough for every reading of the workflow.

Like `shapes_exact`, but without torch: sizes of weights and of protected layers are exact, activations are bounds.
"""

import json
import re
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from nullbooth.models.families import family_of
from nullbooth.models.files import DENOISERS, TEXTS, places_of, shapes_of
from nullbooth.models.parts import has_variant, weight_files
from nullbooth.models.sites_by_name import PROJECTIONS, select
from nullbooth.planning import estimate
from nullbooth.planning.cost import Machine, Model, Reading, Work

_ATTENTION = re.compile(r".*\.(?P<block>attn\d?)\.(?P<linear>.*)")
_FEED_FORWARD = re.compile(r"\.ff(_context)?\.|^single_transformer_blocks\.\d+\.proj_(mlp|out)$")
# Activations, in units of the first layer's for one sample, of UNets of three sizes (embedded, 1.5, XL): 8 to 13 in a
# pass, 87 to 260 in training, which also keeps a copy of the weights in half precision. Of the VAE, bytes per pixel.
PASS, TRAINING, HALF, DECODING = 13, 260, 2, 1600
LAYER = 12  # in training, of each layer of a transformer: 7.5 to 9.2 for FLUX.1 and Stable Diffusion 3.5


def shapes_in(folder: Path, variant: str | None = None) -> dict[str, list[int]]:
    """Shapes of all tensors of one component, by name."""
    found: dict[str, list[int]] = {}
    variant = variant if has_variant(folder, variant) else None
    files = weight_files(folder, "diffusers", variant) or weight_files(folder, "transformers", variant)
    for path in files:
        if path.suffix == ".safetensors":
            found |= shapes_of(path)
    if not found:
        raise ValueError(f"{folder}: no safetensors file of weights in it")
    return found


def count(shapes: dict[str, list[int]]) -> int:
    return sum(map(prod, shapes.values()))


def kinds_by_name(names: Iterable[str]) -> dict[str, str]:
    """The kind of each linear (nullbooth.models.sites.linear_kinds), as far as names tell."""
    names = list(names)
    joint = any(name.endswith(".add_k_proj") for name in names)
    reading, other = ("attn", "attn2") if joint else ("attn2", "attn1")
    kinds = {}
    for name in names:
        if found := _ATTENTION.fullmatch(name):
            if found["linear"] in PROJECTIONS and found["block"] in (reading, other):
                kinds[name] = "cross-attention" if found["block"] == reading else "self-attention"
        elif _FEED_FORWARD.search(name):
            kinds[name] = "feed-forward"
    return kinds


def readings(shapes: dict[str, list[int]], sites: Sequence[str]) -> tuple[Reading, ...]:
    """What the protected layers read: cross-attention's to_k and to_v the prompt; queries, keys and values of one
    stream of one block the same tensor; each other one a tensor of its own. How many rows that has is not in the
    headers, and no matter for memory."""
    weights = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
    weights = {name: shape for name, shape in weights.items() if len(shape) == 2}
    kinds = kinds_by_name(weights)
    joint = any(name.endswith(".add_k_proj") for name in weights)
    readers: dict[str, list[list[int]]] = {}
    for name in select(sites, list(weights), kinds):
        block, _, last = name.rpartition(".")
        prompt = last in ("to_k", "to_v") and kinds.get(name) == "cross-attention" and not joint
        stream = {"to_q": "image", "to_k": "image", "to_v": "image"}
        stream |= {"add_q_proj": "text", "add_k_proj": "text", "add_v_proj": "text"}
        key = "prompt" if prompt else f"{block}.{stream.get(last, last)}"
        readers.setdefault(key, []).append(weights[name])
    return tuple(
        Reading(found[0][1], 0, key == "prompt", len(found), sum(out for out, _ in found))
        for key, found in readers.items()
    )


class Sample(NamedTuple):
    """One sample of a denoiser: numbers of its latent and of what it is given for a prompt, bytes of its widest stream
    in float32, and so many times those in training."""

    latent: int
    condition: int
    stream: float
    kept: float


def sample_of(config: dict[str, Any], side: int, tokens: int) -> Sample:
    """A denoiser's sample of `side` x `side` latents and so many tokens of text, by its config."""
    family = family_of(config["_class_name"])
    if family.part == "unet":
        stream = 4.0 * config["block_out_channels"][0] * side**2
        return Sample(config["in_channels"] * side**2, tokens * config["cross_attention_dim"], stream, TRAINING)
    # Attention of text and picture together has both in its stream; packed latents are patches already.
    joint = config.get("joint_attention_dim")
    latent = config["in_channels"] * side**2 // family.square
    patches = side**2 // (family.square if family.pack else config["patch_size"] ** 2)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    layers = config["num_layers"] + config.get("num_single_layers", 0)
    given = tokens * (joint or config["caption_channels"]) + (config.get("pooled_projection_dim") or 0)
    return Sample(latent, given, 4.0 * width * (patches + (tokens if joint else 0)), LAYER * layers)


def latent_side(config: dict[str, Any]) -> int:
    side = config.get("sample_size") or family_of(config["_class_name"]).side
    if side is None:
        raise ValueError(f"{config['_class_name']} has no sample_size; set resolution")
    return side


def scale_factor(vae: dict[str, Any]) -> int:
    """Pixels of a latent's side."""
    return 2 ** (len(vae.get("block_out_channels") or vae["encoder_block_out_channels"]) - 1)


def tokens_of(denoiser: str, clip: int, most: int | None) -> int:
    """Tokens that a denoiser of this class is given for a prompt. clip: what CLIP reads; most: what the user lets
    other text encoders read at most (`max_sequence_length`), None takes the pipeline's own."""
    family = family_of(denoiser)
    if family.tokens is None:
        return clip
    return (most or family.tokens) + (clip if family.behind_clip else 0)


def read(
    folder: Path | str,
    sites: Sequence[str],
    resolution: int | None = None,
    most: int | None = None,
    variant: str | None = None,
    file: Path | None = None,
    weights: str = "fp32",
    precision: str = "bf16",
) -> Model:
    """A local pipeline. resolution: pixels of a picture's side, None takes the model's own; most: of tokens_of; file:
    has the weights, where the folder has only configs; weights, precision: what they are loaded as, and computed with.

    Raises ValueError or OSError if it is something else, or if sites are patterns of names that a single file does not
    have.
    """
    folder = Path(folder)
    name = next(name for name in DENOISERS if (folder / name).is_dir())
    config, vae = (json.loads((folder / part / "config.json").read_text(encoding="utf-8")) for part in (name, "vae"))
    texts = [path for path in folder.glob("text_encoder*") if path.is_dir()]
    if file:  # whose names of attention layers end like those of diffusers
        tensors, decoder = (shapes_of(file, places) for places in (places_of(name), places_of("vae")))
        encoders = [count(shapes_of(file, places)) for places in TEXTS]
    else:
        tensors, decoder = shapes_in(folder / name, variant), shapes_in(folder / "vae", variant)
        encoders = [count(shapes_in(path, variant)) for path in texts]
    clip = max(
        json.loads((path / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings", 0)
        for path in texts
    )
    parameters, scale = count(tensors), scale_factor(vae)
    side = resolution // scale if resolution else latent_side(config)
    sample = sample_of(config, side, tokens_of(config["_class_name"], clip, most))
    pixels = (side * scale) ** 2
    copy = HALF * parameters if weights == "fp32" else 0.0
    return Model(
        name=str(file or folder),
        parameters=parameters,
        text_parameters=sum(encoders),
        largest_text=max(encoders),
        vae_parameters=count(decoder),
        readings=readings(tensors, sites),
        latent=sample.latent,
        condition=sample.condition,
        pixels=pixels,
        calls=0,
        flops=0.0,
        train_flops=0.0,
        decode_flops=0.0,
        text_flops=0.0,
        pass_bytes=(0.0, PASS * sample.stream),
        train_bytes=(copy, sample.kept * sample.stream),
        checkpointed_bytes=(copy, sample.kept * sample.stream),
        decode_bytes=(0.0, DECODING * pixels),
        weights=weights,
        precision=precision,
    )


def memory(model: Model, work: Work, gpus: int) -> dict[str, int]:
    """Memory of the host, MB, that a job of each rule asks for: the estimate and a quarter more."""
    jobs = estimate.jobs(model, work, Machine(1.0, 1.0, gpus))
    return {job.rule: round(1.25 * job.host / 1e6) for job in jobs}
