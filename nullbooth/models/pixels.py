"""Pictures as tensors, and tensors as pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

if TYPE_CHECKING:  # late below: the workflow lists and checks photographs without torch
    from torch import Tensor
from nullbooth.inputs.photographs import open_image


def load_image(path: Path, size: int | tuple[int, int]) -> "Tensor":
    """A photograph (`open_image`) as float32 `[3, h, w]` in [-1, 1], centre-cropped and resized."""
    import numpy as np
    import torch

    height, width = (size, size) if isinstance(size, int) else size
    image = ImageOps.fit(open_image(path), (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def to_pil(x: "Tensor") -> Image.Image:
    """`[3, h, w]` in [-1, 1] as an 8-bit image."""
    array = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    return Image.fromarray(array.cpu().numpy())
