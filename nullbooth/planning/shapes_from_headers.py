"""Memory of jobs from the headers of a model's safetensors files: fast enough for every start of the workflow.

Unlike `shapes_exact`, it needs no torch. Sizes of weights and sites are exact, those of activations are upper bounds.
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
# Activations, in units of those of the first layer for one sample, of UNets of three sizes (embedded, 1.5, XL): 8 to 13
# in a pass, 87 to 260 in training, which also keeps a half-precision copy of the weights. For the VAE: bytes per pixel.
PASS, TRAINING, HALF, DECODING = 13, 260, 2, 1600
LAYER = 12  # in training, per layer of a transformer: 7.5 to 9.2 for FLUX.1 and Stable Diffusion 3.5


def shapes_in(folder: Path, variant: str | None = None) -> dict[str, list[int]]:
    """Return the shapes of all tensors of a pipeline's part, by name. Raises ValueError without safetensors files."""
    found: dict[str, list[int]] = {}
    variant = variant if has_variant(folder, variant) else None
    files = weight_files(folder, "diffusers", variant) or weight_files(folder, "transformers", variant)
    for path in files:
        if path.suffix == ".safetensors":
            found |= shapes_of(path)
    if not found:
        raise ValueError(f"{folder}: no safetensors file in it; download the model again")
    return found


def count(shapes: dict[str, list[int]]) -> int:
    return sum(map(prod, shapes.values()))


def kinds_by_name(names: Iterable[str]) -> dict[str, str]:
    """Return the kinds of linear layers as nullbooth.models.sites.linear_kinds, from their names alone."""
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
    """Return the features of the sites. to_k and to_v of cross-attention read the prompt; queries, keys and values of a
    stream of a block read the same tensor; every other site reads a tensor of its own. rows is 0: the headers do not
    have it, and memory does not depend on it. Raises ValueError as `select`."""
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
    """Size of one sample of a denoiser: numbers in its latent and in its conditions, bytes of its widest stream in
    float32, and the multiple of these bytes that training keeps."""

    latent: int
    condition: int
    stream: float
    kept: float


def sample_of(config: dict[str, Any], side: int, tokens: int) -> Sample:
    """Return the size of a denoiser's sample of `side` x `side` latents and `tokens` text tokens, from its config."""
    family = family_of(config["_class_name"])
    if family.part == "unet":
        stream = 4.0 * config["block_out_channels"][0] * side**2
        return Sample(config["in_channels"] * side**2, tokens * config["cross_attention_dim"], stream, TRAINING)
    # With joint attention, the stream has both text and picture. Packed latents are already patches.
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
    """Return the number of pixels per side of a latent."""
    return 2 ** (len(vae.get("block_out_channels") or vae["encoder_block_out_channels"]) - 1)


def tokens_of(denoiser: str, clip: int, most: int | None) -> int:
    """Return the number of tokens that a denoiser of this class receives for a prompt. clip: tokens that CLIP reads;
    most: the user's `max_sequence_length` for other text encoders, or None for the pipeline's default."""
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
    """Read the shapes of a local pipeline. resolution: side in pixels, None for the model's own. most: as in tokens_of.
    file: the weights of a single-file model, of which `folder` has the configs. weights: dtype of the loaded weights.
    precision: of passes.

    Raises ValueError or OSError if it is not a pipeline, or if no name in a single file matches a pattern of `sites`.
    """
    folder = Path(folder)
    name = next(name for name in DENOISERS if (folder / name).is_dir())
    config, vae = (json.loads((folder / part / "config.json").read_text(encoding="utf-8")) for part in (name, "vae"))
    texts = [path for path in folder.glob("text_encoder*") if path.is_dir()]
    if file:  # its names of attention layers end like those of diffusers
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
    """Return the host memory in MB to request for jobs of each rule: the estimate plus a quarter."""
    jobs = estimate.jobs(model, work, Machine(1.0, 1.0, gpus))
    return {job.rule: round(1.25 * job.host / 1e6) for job in jobs}
