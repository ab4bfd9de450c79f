"""Common parts of the benchmarks: UNets with random weights, inputs, interleaved timing, tables."""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from nullbooth.models.sites_by_name import Feature

ROOT = Path(__file__).resolve().parents[1]
TINYWORLD = ROOT / "resources" / "tinyworld"
UNETS = {
    "sd15": dict(  # stable-diffusion-v1-5, unet/config.json
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ),
    "tiny": dict(  # for smoke tests; its ratios mean nothing
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
    ),
}
TIMESTEPS = tuple(float(t) for t in range(980, -1, -20))  # 50 cached ones, as a sampler of 1000 would visit them
MIB = 2**20


def parser(doc: str, sizes: tuple[str, ...] = ("sd15", "tiny"), **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser with the arguments of all benchmarks."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if sizes:
        p.add_argument("--size", choices=sizes, default=sizes[0])
    p.add_argument("--out", type=Path, help="JSON lines are appended to this file")
    p.add_argument("--repeats", type=int, default=5, help="rounds of A B A B..., after one that is not counted")
    p.set_defaults(**defaults)
    return p


def denoiser_arguments(p: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the arguments of benchmarks that run a denoiser."""
    p.add_argument("--latents", type=int, help="height and width of the latents; the model's own by default")
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="autocast")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    return p


def build_unet(size: str, device: str = "cpu") -> UNet2DConditionModel:
    """Build a frozen UNet with random weights; on the device `meta` it has shapes but no memory."""
    if size == "embedded" and not TINYWORLD.is_dir():
        raise SystemExit("--size embedded needs the model in resources/tinyworld")
    config = UNet2DConditionModel.load_config(TINYWORLD / "unet") if size == "embedded" else UNETS[size]
    with torch.device(device):
        return UNet2DConditionModel.from_config(config).eval().requires_grad_(False)


def twin(module: nn.Module) -> nn.Module:
    """Copy a module with its own hooks and shared weights, which needs no memory; both can be timed in turn."""
    return copy.deepcopy(module, {id(p): p for p in module.parameters()})


def named_features(sites: dict[str, nn.Linear]) -> list[Feature]:
    """Return the result of find_features for a UNet without running it: to_k and to_v all read the prompt."""
    prompt = [name for name in sites if name.endswith(("to_k", "to_v"))]
    own = [Feature(name, (name,), sites[name].in_features, False) for name in sites if name not in prompt]
    return [Feature(prompt[0], tuple(prompt), sites[prompt[0]].in_features, True), *own]


def denoiser_inputs(unet: UNet2DConditionModel, batch: int, latents: int | None, timestep: float) -> dict[str, Tensor]:
    """Return random arguments of one denoiser call, with prompts of 77 tokens."""
    side, device = latents or unet.config.sample_size, unet.device
    return {
        "sample": torch.randn(batch, unet.config.in_channels, side, side, device=device),
        "timestep": torch.tensor(timestep, device=device),
        "encoder_hidden_states": torch.randn(batch, 77, unet.config.cross_attention_dim, device=device),
    }


def seconds(run: Callable[[], object]) -> float:
    """Return the wall time of one call, with the GPU's queue emptied before and after."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


def side_by_side(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of functions called in turn, A B A B..., and the median of their ratios to the first.

    The first round is a warm-up. Slow drift of the machine affects all functions of a round alike, but not the ratios.
    """
    rounds = [{name: seconds(run) for name, run in functions.items()} for _ in range(repeats + 1)][1:]
    first = next(iter(functions))
    return {
        name: {
            "seconds": statistics.median(r[name] for r in rounds),
            "ratio": statistics.median(r[name] / r[first] for r in rounds),
        }
        for name in functions
    }


def peak_memory(run: Callable[[], Any], device: str = "cpu") -> tuple[float, Any]:
    """Return the peak MiB that a call adds to this process (Linux only) or to tensors on the GPU, and its result."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        return (torch.cuda.max_memory_allocated() - before) / MIB, result
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    result = run()
    return _status("VmHWM") - before, result


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def report(name: str, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Print rows as a markdown table, and append them to `--out` with the arguments and what they were measured on."""
    settings = {key: value for key, value in vars(args).items() if key != "out" and value is not None}
    print(f"\n### {name}: " + ", ".join(f"{key} {value}" for key, value in settings.items()) + "\n")
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(_cell(value) for value in row.values()) + " |", flush=True)
    if args.out:
        where = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        with open(args.out, "a") as file:
            file.writelines(json.dumps({"benchmark": name, **settings, **where, **row}) + "\n" for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)
