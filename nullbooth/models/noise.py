"""Seeds of prompts, and noise and generators that are the same on every device."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def prompt_seed(prompt: str, seed: int) -> int:
    """Return a seed in [0, 2**32) from the prompt's text, so that adding a prompt changes no other trajectory."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt}".encode()).digest()[:4], "big")


def step_generators(seeds: list[int]) -> list:
    """Return a CPU generator per seed for samplers that add noise at every step; it never repeats the initial noise."""
    import torch

    return [torch.Generator("cpu").manual_seed(seed + (1 << 32)) for seed in seeds]


def seeded_noise(seed: int, shape: tuple[int, ...]) -> "Tensor":
    """Return standard normal noise `[*shape]` float32, drawn on the CPU so that it is the same on every device."""
    import torch

    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
