"""A pipeline of each family that the workflow knows: the real classes, tiny, with random weights."""

from collections.abc import Callable
from pathlib import Path

import tiny
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTextModelWithProjection

BETAS = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
UNSAFE = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def stable_diffusion(prediction: str) -> StableDiffusionPipeline:
    """1.x predicts the noise; 2.x the velocity, and has linear projections into its transformer blocks."""
    two = prediction == "v_prediction"
    return StableDiffusionPipeline(
        vae=tiny.vae(),
        text_encoder=tiny.clip(),
        tokenizer=tiny.tokenizer(),
        unet=tiny.unet(use_linear_projection=two, attention_head_dim=(2, 4) if two else 2),
        scheduler=DDIMScheduler(**BETAS, prediction_type=prediction, clip_sample=False, steps_offset=1),
        **UNSAFE,
    )


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """Two text encoders side by side; the pooled text of the second, and sizes, beside the timestep."""
    return StableDiffusionXLPipeline(
        vae=tiny.vae(),
        text_encoder=tiny.clip(),
        text_encoder_2=tiny.clip(CLIPTextModelWithProjection, 2),
        tokenizer=tiny.tokenizer(),
        tokenizer_2=tiny.tokenizer(),
        unet=tiny.unet(
            cross_attention_dim=2 * tiny.WIDTH,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + tiny.WIDTH,
        ),
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def latent_consistency() -> LatentConsistencyModelPipeline:
    """Few steps, and the guidance as an embedding in place of a second branch."""
    return LatentConsistencyModelPipeline(
        vae=tiny.vae(),
        text_encoder=tiny.clip(),
        tokenizer=tiny.tokenizer(),
        unet=tiny.unet(time_cond_proj_dim=16),
        scheduler=LCMScheduler(**BETAS),
        **UNSAFE,
    )


FAMILIES: dict[str, Callable] = {
    "Stable Diffusion 1": lambda: stable_diffusion("epsilon"),
    "Stable Diffusion 2": lambda: stable_diffusion("v_prediction"),
    "Stable Diffusion XL": stable_diffusion_xl,
    "LCM": latent_consistency,
}


def save(family: str, folder: Path) -> Path:
    FAMILIES[family]().save_pretrained(folder)
    return folder
