"""Public configs of four model families, and their shapes for the cost model, without any weights.

    python bench/architectures.py    # rewrites bench/architectures.json in a minute or two

Configs are those of stable-diffusion-v1-5, stable-diffusion-xl-base-1.0, stable-diffusion-3.5-large and FLUX.1-dev;
missing keys have the default of the class.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from common import UNETS
from torch import nn

from nullbooth.models.sites import find_sites
from nullbooth.planning.cost import Model
from nullbooth.planning.shapes_exact import (
    Inputs,
    count,
    decoder_shapes,
    denoiser_shapes,
    flux_inputs,
    sd3_inputs,
    unet_inputs,
)
from nullbooth.planning.shapes_from_headers import tokens_of

STORED = Path(__file__).with_suffix(".json")
SDXL = dict(
    sample_size=128,
    block_out_channels=(320, 640, 1280),
    layers_per_block=2,
    cross_attention_dim=2048,
    attention_head_dim=(5, 10, 20),
    transformer_layers_per_block=(1, 2, 10),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
SD35_LARGE = dict(
    sample_size=128,
    num_layers=38,
    num_attention_heads=38,
    caption_projection_dim=2432,
    pos_embed_max_size=192,
    qk_norm="rms_norm",
)
VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
)
VAE16 = dict(VAE, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
CLIP_G = dict(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
)
T5_XXL = dict(
    d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, feed_forward_proj="gated-gelu", vocab_size=32128
)
SD3_TOKENS, FLUX_TOKENS = tokens_of("SD3Transformer2DModel", 77, None), tokens_of("FluxTransformer2DModel", 77, None)


def clip(**config: Any) -> nn.Module:
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))


def clip_projected(**config: Any) -> nn.Module:
    return transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config))


def t5(**config: Any) -> nn.Module:
    return transformers.T5EncoderModel(transformers.T5Config(**config))


def texts(*parts: tuple[Callable[..., nn.Module], dict, int]) -> dict[str, float]:
    """Return the parameters of all text encoders and of the largest, and FLOPs of one prompt, each with its tokens."""
    sizes = [(count(build(**config)), tokens) for build, config, tokens in parts]
    counts = {"text_parameters": sum(n for n, _ in sizes), "largest_text": max(n for n, _ in sizes)}
    return counts | {"text_flops": sum(2.0 * n * tokens for n, tokens in sizes)}


FAMILIES: dict[str, tuple[type, dict, Inputs, dict, int, list]] = {
    "Stable Diffusion 1.5": (
        *(diffusers.UNet2DConditionModel, UNETS["sd15"], unet_inputs(77, 64), VAE | {"latent_channels": 4}, 64),
        [(clip, CLIP_L, 77)],
    ),
    "Stable Diffusion XL": (
        *(diffusers.UNet2DConditionModel, SDXL, unet_inputs(77, 128), VAE | {"latent_channels": 4}, 128),
        [(clip, CLIP_L, 77), (clip_projected, CLIP_G, 77)],
    ),
    "Stable Diffusion 3.5 large": (
        *(diffusers.SD3Transformer2DModel, SD35_LARGE, sd3_inputs(SD3_TOKENS, 128), VAE16, 128),
        [(clip_projected, CLIP_L, 77), (clip_projected, CLIP_G, 77), (t5, T5_XXL, 256)],
    ),
    "FLUX.1-dev": (
        *(diffusers.FluxTransformer2DModel, {"guidance_embeds": True}, flux_inputs(FLUX_TOKENS, 128), VAE16, 128),
        [(clip, CLIP_L, 77), (t5, T5_XXL, FLUX_TOKENS)],
    ),
}


def build(name: str) -> nn.Module:
    """Build a family's denoiser on the meta device."""
    cls, config, *_ = FAMILIES[name]
    with torch.device("meta"):
        return cls(**config).eval().requires_grad_(False)


def shapes(name: str, weights: str = "fp32", precision: str = "bf16") -> Model:
    _, _, inputs, vae, side, encoders = FAMILIES[name]
    with torch.device("meta"):
        decoder, text = diffusers.AutoencoderKL(**vae).eval().requires_grad_(False), texts(*encoders)
    return Model(
        name=name,
        **text,
        **denoiser_shapes(build(name), inputs, find_sites, precision, weights),
        **decoder_shapes(decoder, side, precision),
    )


if __name__ == "__main__":
    STORED.write_text(
        json.dumps([asdict(shapes(name, weights)) for weights in ("fp32", "bf16") for name in FAMILIES], indent=1)
        + "\n"
    )
