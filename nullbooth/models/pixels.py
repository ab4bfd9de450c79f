"""Conversion of pictures to tensors, and of tensors to pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

if TYPE_CHECKING:  # imported late below: the workflow lists and checks photographs without torch
    from torch import Tensor
from nullbooth.inputs.photographs import open_image


def load_image(path: Path, size: int | tuple[int, int]) -> "Tensor":
    """Load a photograph as `[3, h, w]` float32 in [-1, 1], centre-cropped and resized to `size`, a side or (h, w)."""
    import numpy as np
    import torch

    height, width = (size, size) if isinstance(size, int) else size
    image = ImageOps.fit(open_image(path), (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def to_pil(x: "Tensor") -> Image.Image:
    """Convert `[3, h, w]` in [-1, 1] to an 8-bit image; values outside are clipped."""
    array = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    return Image.fromarray(array.cpu().numpy())
