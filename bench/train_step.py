"""Cost of a training step: forward, backward, AdamW.

    lora        peft, same rank and sites
    pooled      nullbooth.learning.adapter.Adapter, one projector per site
    timestep    nullbooth.learning.adapter.Adapter, 50 projectors per site, a different timestep for every sample
    dreambooth  the whole UNet learns, with as many class images for prior preservation

All variants share one UNet's weights and have the same inputs. Projectors are random orthonormal bases, 60 % free.
Bars: pooled at most 1.05 times lora, timestep at most 1.15 times.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from common import (
    TIMESTEPS,
    build_unet,
    denoiser_arguments,
    denoiser_inputs,
    named_features,
    parser,
    report,
    side_by_side,
    twin,
)
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from nullbooth.learning.adapter import Adapter
from nullbooth.models.precision import autocast
from nullbooth.models.sites import find_sites
from nullbooth.statistics.projector import Projector

VARIANTS = ("lora", "pooled", "timestep", "dreambooth")
BARS = {"pooled": 1.05, "timestep": 1.15}
FREE = 0.6


@cache
def orthonormal(n: int, k: int) -> np.ndarray:
    """Return random orthonormal columns `[n, k]` float32."""
    return np.linalg.qr(np.random.default_rng(n).standard_normal((n, k)))[0].astype(np.float32)


def random_projector(n: int, rng: np.random.Generator) -> Projector:
    """Return one of many projectors from the same basis, by flipping signs of rows, which keeps it orthonormal."""
    kept = n - int(FREE * n)
    signs = rng.choice(np.float32([-1, 1]), (n, 1))
    return Projector(orthonormal(n, kept) * signs, np.ones(kept, np.float32), True, float(n - kept))


def random_projectors(sites: dict[str, nn.Linear], steps: int) -> dict[str, list[Projector]]:
    """Return projectors as site_projectors does: sites of one feature share a list, static features have one."""
    rng, found = np.random.default_rng(0), {}
    for feature in named_features(sites):
        some = [random_projector(feature.width, rng) for _ in range(1 if feature.static else steps)]
        found |= dict.fromkeys(feature.sites, some)
    return found


def with_lora(unet: nn.Module, rank: int) -> list[nn.Parameter]:
    """Wrap the sites with peft's LoRA; return the trained parameters."""
    sites = list(find_sites(unet))
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=sites, init_lora_weights="gaussian"))
    wrapped = sum(isinstance(module, LoraLayer) for module in unet.modules())
    assert wrapped == len(sites), f"peft wrapped {wrapped} modules in place of {len(sites)}"
    return [p for p in unet.parameters() if p.requires_grad]


def with_adapter(unet: nn.Module, scope: str, rank: int, stack: ExitStack) -> list[nn.Parameter]:
    """Attach an adapter until `stack` closes; return the trained parameters."""
    sites = find_sites(unet)
    projectors = random_projectors(sites, len(TIMESTEPS) if scope == "timestep" else 1)
    adapter = Adapter(sites, projectors, list(TIMESTEPS), scope, rank).to(unet.device)
    stack.enter_context(adapter.attached(unet))
    return list(adapter.parameters())


def step_of(unet: nn.Module, learning: list[nn.Parameter], batch: dict[str, Tensor], precision: str) -> Callable:
    """Return a function that runs one training step. As variants share weights, it first freezes all others."""
    optimizer = torch.optim.AdamW(learning, 1e-5)
    target = torch.randn_like(batch["sample"])

    def step() -> None:
        unet.requires_grad_(False)
        for p in learning:
            p.requires_grad_(True)
        timestep = torch.randint(1000, (len(target),), device=target.device)
        with autocast(unet.device, precision):
            prediction = unet(**{**batch, "timestep": timestep}).sample
        F.mse_loss(prediction.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main(args) -> None:
    torch.manual_seed(0)
    base, steps, counts = build_unet(args.size, args.device), {}, {}
    batch = denoiser_inputs(base, 2 * args.batch, args.latents, 0.0)
    with ExitStack() as stack:
        for name in args.variants:
            unet = twin(base)
            if name == "lora":
                learning = with_lora(unet, args.rank)
            elif name == "dreambooth":
                learning = list(unet.parameters())
            else:
                learning = with_adapter(unet, name, args.rank, stack)
            rows = 2 * args.batch if name == "dreambooth" else args.batch
            inputs = {key: value[:rows] for key, value in batch.items() if value.ndim}
            steps[name] = step_of(unet, learning, inputs, args.precision)
            counts[name] = sum(p.numel() for p in learning)
        times = side_by_side(steps, args.repeats)
    rows = [{"variant": n, "parameters": counts[n], **row, "bar": BARS.get(n)} for n, row in times.items()]
    report("train_step", rows, args)


if __name__ == "__main__":
    p = denoiser_arguments(parser(__doc__, sizes=("sd15", "embedded", "tiny")))
    p.add_argument("--batch", type=int, default=2)
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="ratios are relative to the first")
    main(p.parse_args())
