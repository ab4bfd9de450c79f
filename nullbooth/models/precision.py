"""Device and precision that models compute in."""

import os
import platform

import torch

from nullbooth.models import devices

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """Return the device by its name in the config. `auto` locks a free GPU until this process ends; CPU without GPUs.

    Call this before CUDA is used, because CUDA then sees the locked GPU alone. Any other name is used as it is.
    Raises RuntimeError if PyTorch is built for CUDA, but cannot use the GPU.
    """
    rank = os.environ.get("LOCAL_RANK", "")  # of this process, if several share a training
    if name != "auto":
        return torch.device(f"cuda:{rank}" if rank and name == "cuda" else name)
    taken = devices.take() if torch.backends.cuda.is_built() else None
    usable = torch.cuda.is_available()
    if taken and not usable:
        raise RuntimeError(
            f"device: auto: PyTorch {torch.__version__} cannot use the GPU {taken}; does the driver suit its CUDA "
            f"{torch.version.cuda}? To run without a GPU, set device: cpu"
        )
    if usable and not taken:
        print("nvidia-smi lists no GPU, so none is locked: other jobs may use the same GPU")
    return torch.device((f"cuda:{rank}" if rank else "cuda") if usable else "cpu")


def half_is_fast(device: torch.device) -> bool:
    """Check that a device computes fast in half precision; x86 processors without AVX-512 are ten times slower than in
    float32."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return device.type != "cpu" or not x86 or "AVX512" in torch.backends.cpu.get_cpu_capability()


def computed_in(device: torch.device, precision: str, weights: torch.dtype = torch.float32) -> str:
    """Return the precision of passes: `precision`, or `fp32` where that is faster. weights: their dtype; half weights
    always compute in `precision`. Raises ValueError."""
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r}: use one of {', '.join(DTYPES)}")
    return precision if weights != torch.float32 or half_is_fast(device) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of mixed precision: `fp32` (off), `bf16` or `fp16`. Raises ValueError for any other."""
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r}: use one of {', '.join(DTYPES)}")
    on = precision != "fp32"
    return torch.autocast(device.type, DTYPES[precision] if on else None, enabled=on)


def passes_in(device: torch.device, precision: str, weights: torch.dtype = torch.float32) -> torch.autocast:
    """Return the context of mixed precision for passes of a denoiser, with the precision of `computed_in`."""
    if (used := computed_in(device, precision, weights)) != precision:
        print(f"precision: {precision}: using fp32, which is faster on this processor, and more accurate")
    return autocast(device, used)
