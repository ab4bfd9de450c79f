"""LPIPS, with weights from a safetensors file."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

# AlexNet's five convolutions: name, stride, padding, pooling before it.
_ALEXNET = (
    ("features.0", 4, 2, False),
    ("features.3", 1, 2, True),
    ("features.6", 1, 1, True),
    ("features.8", 1, 1, False),
    ("features.10", 1, 1, False),
)


def load_lpips(path: Path | str) -> dict[str, Tensor]:
    """Load the weights of `lpips` from a safetensors file. Raises ValueError if one is missing."""
    from safetensors.torch import load_file

    weights = load_file(path)
    needed = [f"{name}.{part}" for name, *_ in _ALEXNET for part in ("weight", "bias")]
    needed += [f"lin{k}.model.1.weight" for k in range(len(_ALEXNET))]
    if missing := [name for name in needed if name not in weights]:
        raise ValueError(
            f"evaluate.lpips: {path} has no {missing[0]}; it must hold torchvision's AlexNet and the heads of lpips"
        )
    return weights


@torch.no_grad()
def lpips(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """LPIPS distance `[n]` (arXiv 1801.03924, AlexNet, version 0.1) of images `[n, 3, h, w]` in [-1, 1].

    weights: the trunk with torchvision's names (`features.0.weight`, ...) and the heads with those of the lpips package
    (`lin0.model.1.weight`, ...). Pictures below 64 pixels are enlarged, because the trunk needs at least 31.
    """
    mean = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    std = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    total = torch.zeros(len(x))
    if min(x.shape[-2:]) < 64:
        x, y = (F.interpolate(z, (64, 64), mode="bicubic", antialias=True) for z in (x, y))
    x, y = (x - mean) / std, (y - mean) / std
    for k, (name, stride, padding, pooled) in enumerate(_ALEXNET):
        if pooled:
            x, y = F.max_pool2d(x, 3, 2), F.max_pool2d(y, 3, 2)
        w, b = weights[f"{name}.weight"], weights[f"{name}.bias"]
        x, y = (F.relu(F.conv2d(z, w, b, stride, padding)) for z in (x, y))
        unit = [z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10) for z in (x, y)]
        total += F.conv2d((unit[0] - unit[1]) ** 2, weights[f"lin{k}.model.1.weight"]).mean((1, 2, 3))
    return total
