"""Loading diffusers pipelines, or just their denoiser. Imports are late: a small job should start fast."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

DENOISERS = ("unet", "transformer")


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def autocast(device: torch.device, precision: str):
    """Mixed precision as a context: `fp32` (off), `bf16` or `fp16`."""
    dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in dtypes:
        raise ValueError(f"precision {precision!r}: use one of {', '.join(dtypes)}")
    return torch.autocast(device.type, dtypes[precision], enabled=dtypes[precision] is not None)


def load_pipeline(model: str, device: torch.device, revision: str | None = None, dtype: torch.dtype = torch.float32):
    """A text-to-image pipeline from a folder or the Hub, safetensors only, silent, on `device`."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(
        model, revision=revision, torch_dtype=dtype, use_safetensors=True, local_files_only=Path(model).exists()
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def load_denoiser(
    model: str, device: torch.device, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The denoiser alone, without text encoder and VAE, frozen and in evaluation mode."""
    import diffusers

    index = Path(model) / "model_index.json"
    if not index.is_file():
        from huggingface_hub import hf_hub_download

        index = Path(hf_hub_download(model, "model_index.json", revision=revision))
    components = json.loads(index.read_text())
    for name in DENOISERS:
        if name in components:
            cls = getattr(diffusers, components[name][1])
            denoiser = cls.from_pretrained(
                model, subfolder=name, revision=revision, torch_dtype=dtype, use_safetensors=True
            )
            return denoiser.to(device).eval().requires_grad_(False)
    raise ValueError(f"{index}: no component named {' or '.join(DENOISERS)}; is this a text-to-image pipeline?")


def denoiser_of(pipeline: Any) -> nn.Module:
    """The UNet or transformer of a pipeline."""
    for name in DENOISERS:
        if (module := getattr(pipeline, name, None)) is not None:
            return module
    raise ValueError(f"{type(pipeline).__name__} has no component named {' or '.join(DENOISERS)}")


def set_sampler(pipeline: Any, name: str | None, options: dict[str, Any] | None = None) -> None:
    """Replace the pipeline's scheduler by another class of diffusers, from the same config plus `options`."""
    import diffusers

    if name is None and not options:
        return
    cls = type(pipeline.scheduler) if name is None else getattr(diffusers, name, None)
    if cls is None or not hasattr(cls, "set_timesteps"):
        raise ValueError(f"sampler.scheduler: {name!r} is not a scheduler class of diffusers")
    pipeline.scheduler = cls.from_config(pipeline.scheduler.config, **(options or {}))
