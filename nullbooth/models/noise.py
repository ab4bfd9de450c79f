"""Noise and generators that belong to a seed, the same on every device."""

import hashlib


def prompt_seed(prompt: str, seed: int) -> int:
    """A seed that belongs to the prompt itself, so that adding a prompt changes no other trajectory."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt}".encode()).digest()[:4], "big")


def step_generators(seeds: list[int]) -> list:
    """One CPU generator per seed for samplers that add noise at every step; its numbers are not those of the start."""
    import torch

    return [torch.Generator("cpu").manual_seed(seed + (1 << 32)) for seed in seeds]


def seeded_noise(seed: int, shape: tuple[int, ...]):
    """Standard normal float32 noise `[*shape]`, drawn on the CPU so that a seed means the same on every device."""
    import torch

    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
