"""Saved adapters of random weights, and pictures drawn with them."""

from dataclasses import replace
from pathlib import Path

import families
import torch

from nullbooth.adapters.file import AdapterInfo, read_adapter, write_adapter
from nullbooth.learning.adapter import Adapter
from nullbooth.learning.inversion import Word
from nullbooth.models.loading import denoiser_of
from nullbooth.models.sites import find_sites

KEPT = 1e-5  # largest relative change of outputs by float32 rounding


CHANGED = 1e-2


def info_of(adapter: Adapter, **changes) -> AdapterInfo:
    given = dict(
        scope=adapter.scope,
        rank=adapter.rank,
        timesteps=tuple(adapter.timesteps.tolist()),
        denoiser="UNet2DConditionModel",
        model="abc",
        prompt="a photo of a sks star",
        rule="energy: 1e-7",
    )
    return AdapterInfo(**(given | changes))


def saved(adapter: Adapter, folder):
    path = folder / "adapter.safetensors"
    adapter.save(path, info_of(adapter))
    return path


def adapter_of(pipeline, path: Path, timesteps: int = 1, rank: int | str = 3) -> Path:
    """Save an adapter with a random change of every site; return its path."""
    denoiser, generator = denoiser_of(pipeline), torch.Generator().manual_seed(0)
    tensors = {}
    for name, linear in find_sites(denoiser).items():
        out, width = linear.weight.shape
        if rank == "full":
            tensors[f"{name}.delta"] = 0.05 * torch.randn(out, width, generator=generator)
        else:
            tensors[f"{name}.down"] = 0.2 * torch.randn(timesteps, rank, width, generator=generator)
            tensors[f"{name}.up"] = 0.2 * torch.randn(out, rank, generator=generator)
    times = tuple(float(t) for t in range(timesteps))
    scope = "pooled" if timesteps == 1 else "timestep"
    write_adapter(path, tensors, AdapterInfo(scope, rank, times, type(denoiser).__name__, "m", "a vbk star", "r"))
    return path


def draw(pipeline, family: str, prompt: str = "a red star") -> torch.Tensor:
    small = families.SMALL.get(family, {})
    side = small.get("resolution") or {"Sana": 64}.get(family, 16)
    options = {"height": side, "width": side, **small.get("arguments", {})}
    options |= {"use_resolution_binning": False} if family in ("Sana", "PixArt-Sigma") else {}
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(prompt, num_inference_steps=3, generator=generator, output_type="pt", **options).images


def saved_with_word(pipeline, path, word, **changes):
    """Save an adapter with a learned word; return its path."""
    tensors, info = read_adapter(adapter_of(pipeline, path))
    vectors = {key: value + 0.5 for key, value in Word(pipeline, word).tensors().items()}
    write_adapter(path, tensors | vectors, replace(info, identifier=word, **changes))
    return path
