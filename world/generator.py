"""Train the denoiser and text encoder of the embedded model and assemble the Stable Diffusion pipeline.

Velocity prediction with zero terminal signal-to-noise ratio (arXiv 2305.08891), so that the noisiest step
starts from pure noise. Position and shape are decided at high noise, and they are learned last: most of the training
timesteps come from there, and the loss is not reweighted towards low noise.
"""

import argparse
import random
import shutil
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from world import tokenizer as tokens
from world.loop import batches, fit, load_average
from world.scenes import NAMES, PATTERNED, Scene, caption, random_scene, render

NOISE = dict(
    num_train_timesteps=1000,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
)
UNET = dict(
    sample_size=16,
    in_channels=8,
    out_channels=8,
    block_out_channels=(64, 128, 192),
    layers_per_block=1,
    cross_attention_dim=128,
    attention_head_dim=4,  # the number of heads: diffusers keeps this name for old configs
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    norm_num_groups=16,
)
TEXT = dict(
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=tokens.MAX_LENGTH,
    projection_dim=128,
)
SCENES = 32768
DROP_CAPTION = 0.1
HIGH_NOISE = 600  # timesteps above this are drawn more often
ANY_NOISE = 0.3  # share of the timesteps that are drawn uniformly


def training_scenes(n: int) -> list[Scene]:
    """Return `n` scenes. Of eight, one has a patterned fill and two have a name, so that the model can draw what a
    subject may look like, and reads an unknown word before a noun as a name."""
    rng = random.Random(2)
    scenes = [random_scene(rng) for _ in range(n)]
    fills = {0: lambda: PATTERNED, 2: lambda: rng.choice(NAMES), 5: lambda: rng.choice(NAMES)}
    return [replace(s, color=fills[i % 8]()) if i % 8 in fills else s for i, s in enumerate(scenes)]


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, n: int, path: Path, batch: int = 64) -> tuple[Tensor, list[Scene]]:
    """Return latents `[n, 8, 16, 16]` float16 of `n` scenes, cached in `path`, and the scenes."""
    scenes = training_scenes(n)
    if not path.exists():
        rng = random.Random(3)
        vae = vae.to(memory_format=torch.channels_last)
        parts = []
        for rows in batches(n, batch):
            x = (render(scenes[rows], rng) * 2 - 1).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                parts.append(vae.encode(x).latent_dist.mode() * vae.config.scaling_factor)
            if rows.start % (batch * 50) == 0:
                print(f"encoded {rows.stop}/{n}", flush=True)
        torch.save(torch.cat(parts).half().contiguous(), path)
    return torch.load(path, weights_only=True), scenes


def grown(init: Path) -> UNet2DConditionModel:
    """Return the UNet of the pipeline in `init`, with the attention blocks of `UNET` that it lacks.

    Their output projections are zero, so that the UNet computes the same function. Raises ValueError for other
    differences.
    """
    unet = UNet2DConditionModel(**UNET)
    old = UNet2DConditionModel.from_pretrained(init, subfolder="unet", torch_dtype=torch.float32).state_dict()
    missing, unexpected = unet.load_state_dict(old, strict=False)
    if unexpected or any(".attentions." not in name for name in missing):
        raise ValueError(f"{init}: its UNet differs in more than attention blocks: {missing} {unexpected}")
    for name, parameter in unet.named_parameters():
        if name in missing and ".proj_out." in name:
            torch.nn.init.zeros_(parameter)
    return unet


def draw_timesteps(b: int) -> Tensor:
    t = torch.randint(0, 1000, (b,))
    return torch.where(torch.rand(b) < ANY_NOISE, t, torch.randint(HIGH_NOISE, 1000, (b,)))


def train(
    vae_dir: Path, out: Path, checkpoint: Path, steps: int, scenes: int, batch: int, lr: float, init: Path | None = None
) -> None:
    """Train and assemble the pipeline in `out`. init: pipeline to start from if there is no checkpoint."""
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(vae_dir)
    latents, world = encode_scenes(vae, scenes, checkpoint.with_suffix(".latents"))
    kept = checkpoint.with_suffix(".tokenizer")
    if init is not None and not kept.exists():
        shutil.copytree(init / "tokenizer", kept)
    tokenizer = tokens.load(kept)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text_config = CLIPTextConfig(**TEXT, **special, pad_token_id=tokenizer.pad_token_id, vocab_size=len(tokenizer))
    unet, text_encoder = UNet2DConditionModel(**UNET), CLIPTextModel(text_config)
    if init is not None and not checkpoint.exists():
        unet = grown(init)
        text_encoder = CLIPTextModel.from_pretrained(init, subfolder="text_encoder", dtype=torch.float32)
    print(f"{unet.num_parameters() / 1e6:.2f} M + {text_encoder.num_parameters() / 1e6:.2f} M parameters")
    noise = DDPMScheduler(**NOISE)

    def loss_of(step: int) -> Tensor:
        rng = random.Random(step)
        rows = torch.randint(len(latents), (batch,))
        texts = [caption(world[i], rng) if rng.random() > DROP_CAPTION else "" for i in rows.tolist()]
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        z = latents[rows].float()
        eps, t = torch.randn_like(z), draw_timesteps(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prompt = text_encoder(ids).last_hidden_state
            v = unet(noise.add_noise(z, eps, t), t, prompt).sample
        return F.mse_loss(v.float(), noise.get_velocity(z, eps, t))

    def assemble(average: dict[str, dict[str, Tensor]]) -> None:
        sampler = DDIMScheduler(**NOISE, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
        pipeline = StableDiffusionPipeline(
            vae=vae.to(memory_format=torch.contiguous_format),
            text_encoder=load_average(CLIPTextModel(text_config), average["text_encoder"]),
            tokenizer=tokenizer,
            unet=load_average(UNet2DConditionModel(**UNET), average["unet"]),
            scheduler=sampler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(out)

    modules = {"unet": unet, "text_encoder": text_encoder}
    assemble(fit(modules, loss_of, steps=steps, lr=lr, checkpoint=checkpoint, snapshot=assemble))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--init", type=Path, help="a trained pipeline to start from")
    args = parser.parse_args()
    train(args.vae, args.out, args.checkpoint, args.steps, args.scenes, args.batch, args.lr, args.init)
