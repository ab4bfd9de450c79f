"""Where models compute, and with which numbers."""

import os
import platform

import torch

from nullbooth.models import devices

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is a GPU that no other job has, held until this process ends, or the CPU where there is no GPU.

    Anything else is obeyed as it is. Call it before CUDA is used: CUDA then sees that GPU alone.
    Raises RuntimeError where there is a GPU that PyTorch was built for and cannot use.
    """
    rank = os.environ.get("LOCAL_RANK", "")  # of one of several processes that share a training
    if name != "auto":
        return torch.device(f"cuda:{rank}" if rank and name == "cuda" else name)
    taken = devices.take() if torch.backends.cuda.is_built() else None
    usable = torch.cuda.is_available()
    if taken and not usable:
        raise RuntimeError(
            f"device: auto: there is a GPU, {taken}, that PyTorch {torch.__version__} cannot use; does the driver "
            f"suit its CUDA {torch.version.cuda}? To do without a GPU, set device: cpu"
        )
    if usable and not taken:
        print("nvidia-smi names no GPU, so none is locked: other jobs may use the same one")
    return torch.device((f"cuda:{rank}" if rank else "cuda") if usable else "cpu")


def half_is_fast(device: torch.device) -> bool:
    """Whether a device has arithmetic of half precision: without it (x86 before AVX-512), a processor takes ten times
    as long as in float32."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return device.type != "cpu" or not x86 or "AVX512" in torch.backends.cpu.get_cpu_capability()


def computed_in(device: torch.device, precision: str, weights: torch.dtype = torch.float32) -> str:
    """The precision that passes are computed in: `precision`, or float32 where that is faster, and exacter. weights:
    their type; what is in half precision already is computed so."""
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r}: use one of {', '.join(DTYPES)}")
    return precision if weights != torch.float32 or half_is_fast(device) else "fp32"


def autocast(device: torch.device, precision: str):
    """Mixed precision as a context: `fp32` (off), `bf16` or `fp16`."""
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r}: use one of {', '.join(DTYPES)}")
    on = precision != "fp32"
    return torch.autocast(device.type, DTYPES[precision] if on else None, enabled=on)


def passes_in(device: torch.device, precision: str, weights: torch.dtype = torch.float32):
    """The context that passes of a denoiser run in: mixed precision, as `computed_in` says."""
    if (used := computed_in(device, precision, weights)) != precision:
        print(f"precision: {precision}: this processor is faster in fp32, which is exacter too, and is used")
    return autocast(device, used)
