"""Train the autoencoder of the embedded model: 64x64 pixels to 16x16 latents.

It must reconstruct subjects that the world does not contain, so it is trained on more than the world: permuted and
inverted channels, blends of scenes through random masks, and small discs and bars of any colour.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from world.loop import fit, load_average
from world.scenes import SUBJECTS, _grid, photographs, random_scene, render

CONFIG = dict(
    block_out_channels=(32, 64, 64),
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    layers_per_block=1,
    latent_channels=8,
    norm_num_groups=16,
    sample_size=64,
    mid_block_add_attention=False,
)
KL_WEIGHT = 1e-4


def _rand(b: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(b, 1, 1)


def random_mask(b: int, n: int) -> Tensor:
    """Draw soft bands, checks or rings `[b, 1, n, n]` of random frequency, direction and phase."""
    p = _grid(n)
    angle = _rand(b, 0, 6.28)
    u = p[..., 0] * angle.cos() + p[..., 1] * angle.sin()
    v = p[..., 1] * angle.cos() - p[..., 0] * angle.sin()
    r = ((u - _rand(b, -1, 1)) ** 2 + (v - _rand(b, -1, 1)) ** 2).sqrt()
    frequency = _rand(b, 4, 22)
    waves = torch.stack(
        (
            torch.sin(u * frequency + _rand(b, 0, 6.28)),
            torch.sin(u * frequency) * torch.sin(v * frequency) * 2,
            torch.sin(r * frequency),
        )
    )
    kind = torch.randint(3, (b,))
    return torch.sigmoid(waves[kind, torch.arange(b)] * _rand(b, 4, 14))[:, None]


def sprinkle(x: Tensor, k: int = 5) -> Tensor:
    """Paint `k` small discs or bars of random colours on every image."""
    b, _, n, _ = x.shape
    p = _grid(n)
    for _ in range(k):
        dx, dy = p[..., 0] - _rand(b, -0.9, 0.9), p[..., 1] - _rand(b, -0.9, 0.9)
        bar = torch.maximum(dx.abs() / _rand(b, 0.5, 2.5), dy.abs())
        distance = torch.where(torch.rand(b, 1, 1) < 0.6, (dx * dx + dy * dy).sqrt(), bar)
        mask = torch.sigmoid((_rand(b, 0.04, 0.22) - distance) * 1.6 * n)[:, None]
        x = torch.lerp(x, torch.rand(b, 3, 1, 1), mask)
    return x


def varied(b: int, rng: random.Random) -> Tensor:
    """Return images `[b, 3, 64, 64]` in [0, 1]: a third unchanged from the world, the others altered."""
    x = render([random_scene(rng) for _ in range(b)], rng)
    altered = x[torch.arange(b), torch.stack([torch.randperm(3) for _ in range(b)]).T].transpose(0, 1)
    altered = torch.where(torch.rand(b, 1, 1, 1) < 0.4, 1 - altered, altered)
    blend = torch.lerp(altered, altered.roll(1, 0), random_mask(b, x.shape[-1]))
    altered = torch.where(torch.rand(b, 1, 1, 1) < 0.6, blend, altered)
    altered = torch.where(torch.rand(b, 1, 1, 1) < 0.6, sprinkle(altered), altered)
    return torch.where(torch.arange(b).view(b, 1, 1, 1) < b // 3, x, altered)


def crop(x: Tensor, size: int) -> Tensor:
    i, j = torch.randint(x.shape[-1] - size + 1, (2,)).tolist()
    return x[..., i : i + size, j : j + size]


def subject_psnr(vae: AutoencoderKL) -> dict[str, float]:
    """Return the reconstruction PSNR in dB (peak 1) on photographs of each subject."""
    result = {}
    for name in SUBJECTS:
        x, _ = photographs(name, 10, seed=0)
        with torch.no_grad():
            y = vae.decode(vae.encode(x * 2 - 1).latent_dist.mode()).sample.clamp(-1, 1) / 2 + 0.5
        result[name] = round(-10 * F.mse_loss(y, x).log10().item(), 2)
    return result


def train(out: Path, checkpoint: Path, steps: int, batch: int = 48) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(**CONFIG).to(memory_format=torch.channels_last)
    with torch.no_grad():
        vae.quant_conv.bias[CONFIG["latent_channels"] :] = -4  # log variance: start with little noise

    def loss_of(step: int) -> Tensor:
        crops = step < 0.7 * steps  # four crops cost as much as one whole image, and are more diverse
        rng = random.Random(step)
        x = crop(varied(batch, rng), 32) if crops else varied(batch // 4, rng)
        x = (x * 2 - 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        kl = posterior.kl().float().mean() / (x.shape[-1] / 4) ** 2
        return F.mse_loss(y.float(), x) * 4 + F.l1_loss(y.float(), x) + KL_WEIGHT * kl

    average = fit(
        {"vae": vae}, loss_of, steps=steps, lr=1.5e-3, checkpoint=checkpoint, weight_decay=1e-4, ema_decay=0.995
    )
    vae = load_average(AutoencoderKL(**CONFIG), average["vae"])
    rng = random.Random(1)
    with torch.no_grad():
        x = render([random_scene(rng) for _ in range(512)], rng) * 2 - 1
        z = torch.cat([vae.encode(part).latent_dist.mode() for part in x.split(64)])
    vae.register_to_config(scaling_factor=round(1 / z.std().item(), 5))
    print(f"latent std per channel {z.std((0, 2, 3)).tolist()}, mean {z.mean((0, 2, 3)).tolist()}")
    print(f"PSNR in dB on subjects: {subject_psnr(vae)}")
    vae.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1800)
    args = parser.parse_args()
    train(args.out, args.checkpoint, args.steps)
