"""Pipelines of all known families: real classes, tiny, with random weights."""

from collections.abc import Callable
from pathlib import Path

import tiny
import torch
from diffusers import (
    AutoencoderDC,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTextModelWithProjection, Gemma2Config, Gemma2Model, T5Config, T5EncoderModel

BETAS = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
UNSAFE = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def stable_diffusion(prediction: str) -> StableDiffusionPipeline:
    """1.x predicts noise. 2.x predicts velocity, and has linear projections into its transformer blocks."""
    two = prediction == "v_prediction"
    return StableDiffusionPipeline(
        vae=tiny.vae(),
        text_encoder=tiny.clip(),
        tokenizer=tiny.tokenizer(),
        unet=tiny.unet(use_linear_projection=two, attention_head_dim=(2, 4) if two else 2),
        scheduler=DDIMScheduler(**BETAS, prediction_type=prediction, clip_sample=False, steps_offset=1),
        **UNSAFE,
    )


def stable_diffusion_xl(second: int = tiny.WIDTH) -> StableDiffusionXLPipeline:
    """Two text encoders; the pooled text of the second, of width `second`, and sizes condition the timestep."""
    return StableDiffusionXLPipeline(
        vae=tiny.vae(),
        text_encoder=tiny.clip(),
        text_encoder_2=tiny.clip(CLIPTextModelWithProjection, 2, second),
        tokenizer=tiny.tokenizer(),
        tokenizer_2=tiny.tokenizer(),
        unet=tiny.unet(
            cross_attention_dim=tiny.WIDTH + second,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + second,
        ),
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def latent_consistency() -> LatentConsistencyModelPipeline:
    """Few steps, with guidance as an embedding instead of a second branch."""
    return LatentConsistencyModelPipeline(
        vae=tiny.vae(),
        text_encoder=tiny.clip(),
        tokenizer=tiny.tokenizer(),
        unet=tiny.unet(time_cond_proj_dim=16),
        scheduler=LCMScheduler(**BETAS),
        **UNSAFE,
    )


def t5(width: int = tiny.WIDTH) -> T5EncoderModel:
    torch.manual_seed(3)
    sizes = dict(d_model=width, d_ff=64, d_kv=16, num_layers=2, num_heads=2)
    return T5EncoderModel(T5Config(vocab_size=len(tiny.tokenizer()), **sizes)).eval()


def gemma() -> Gemma2Model:
    torch.manual_seed(3)
    sizes = dict(hidden_size=tiny.WIDTH, intermediate_size=64, num_hidden_layers=2, head_dim=16)
    heads = dict(num_attention_heads=2, num_key_value_heads=1)
    return Gemma2Model(Gemma2Config(vocab_size=len(tiny.tokenizer()), **sizes, **heads))


def pixart_sigma() -> PixArtSigmaPipeline:
    """T5 as the only text encoder, with masked padding; also predicts the variance."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=4,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=tiny.WIDTH // 2,
        cross_attention_dim=tiny.WIDTH,
        caption_channels=tiny.WIDTH,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        tokenizer=tiny.tokenizer(),
        text_encoder=t5(),
        vae=tiny.vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_schedule="linear"),
    )


def sana() -> SanaPipeline:
    """Linear attention, a feed-forward of convolutions, a language model as text encoder, another kind of VAE."""
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        sample_size=2,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=tiny.WIDTH // 2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=tiny.WIDTH // 2,
        cross_attention_dim=tiny.WIDTH,
        caption_channels=tiny.WIDTH,
    )
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 6,
        decoder_block_types=("ResBlock",) * 6,
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=(8,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        downsample_block_type="conv",
        scaling_factor=0.41407,
    )
    flow = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return SanaPipeline(
        tokenizer=tiny.tokenizer(),
        text_encoder=gemma(),
        vae=vae,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(**flow),
    )


def stable_diffusion_3(five: bool, second: int = tiny.WIDTH) -> StableDiffusion3Pipeline:
    """Text and picture with linears of their own in one attention; 3.5 normalises queries and keys, and its medium size
    has self-attention of the picture beside it. second: width of the second text encoder."""
    torch.manual_seed(0)
    more = dict(qk_norm="rms_norm", dual_attention_layers=(0,)) if five else {}
    transformer = SD3Transformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=tiny.WIDTH // 2,
        joint_attention_dim=tiny.WIDTH + second,
        caption_projection_dim=tiny.WIDTH,
        pooled_projection_dim=tiny.WIDTH + second,
        pos_embed_max_size=8,
        **more,
    )
    words = tiny.tokenizer()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny.vae(shift_factor=0.1),
        text_encoder=tiny.clip(CLIPTextModelWithProjection, 1),
        tokenizer=words,
        text_encoder_2=tiny.clip(CLIPTextModelWithProjection, 2, second),
        tokenizer_2=words,
        text_encoder_3=t5(tiny.WIDTH + second),
        tokenizer_3=words,
    )


def flux() -> FluxPipeline:
    """Latents packed into tokens; blocks with separate layers for text and picture, and blocks that share them."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=tiny.WIDTH,
        pooled_projection_dim=tiny.WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=tiny.vae(shift_factor=0.1),
        text_encoder=tiny.clip(),
        tokenizer=tiny.tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tiny.tokenizer(),
        transformer=transformer,
    )


FAMILIES: dict[str, Callable] = {
    "Stable Diffusion 1": lambda: stable_diffusion("epsilon"),
    "Stable Diffusion 2": lambda: stable_diffusion("v_prediction"),
    "Stable Diffusion XL": stable_diffusion_xl,
    "LCM": latent_consistency,
    "PixArt-Sigma": pixart_sigma,
    "Sana": sana,
    "Stable Diffusion 3": lambda: stable_diffusion_3(five=False),
    "Stable Diffusion 3.5": lambda: stable_diffusion_3(five=True),
    "FLUX.1": flux,
}
# So few tokens and pixels that their features do not span the whole space.
SMALL: dict[str, dict] = {
    "PixArt-Sigma": {"arguments": {"max_sequence_length": 8}},
    "Sana": {"arguments": {"max_sequence_length": 8}},
    "Stable Diffusion 3": {"resolution": 8, "arguments": {"max_sequence_length": 4}},
    "Stable Diffusion 3.5": {"resolution": 8, "arguments": {"max_sequence_length": 4}},
    "FLUX.1": {"resolution": 16, "arguments": {"max_sequence_length": 8}},
}


def save(family: str, folder: Path) -> Path:
    FAMILIES[family]().save_pretrained(folder)
    return folder
