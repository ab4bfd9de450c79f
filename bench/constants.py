"""Measure the constants of nullbooth.planning.cost, in processor seconds of one core, which other load hardly changes.

OMP_NUM_THREADS=1 python bench/constants.py --size sd15    # ten minutes; copy values that differ to planning/cost.py
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import ROOT, TINYWORLD, build_unet, denoiser_inputs, parser, report
from projectors import spectrum_matrix
from torch.utils.flop_counter import FlopCounterMode

from nullbooth.models.precision import autocast
from nullbooth.statistics.moments import Moment
from nullbooth.statistics.projector import decompose
from nullbooth.storage import zarrstore

WIDTHS = (320, 640, 1280, 2048, 3072)
BATCHES = (1, 4, 16, 64)


def core_seconds(run: Callable[[], object], repeats: int) -> float:
    """Return the median processor seconds of one call, after a warm-up."""
    run()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return statistics.median(times)


@torch.no_grad()
def pass_rate(size: str, batch: int, precision: str, repeats: int) -> dict:
    """Measure the FLOP/s of denoiser passes."""
    unet = build_unet(size, "meta")
    with FlopCounterMode(display=False) as counter:
        unet(**{k: v.to("meta") for k, v in denoiser_inputs(build_unet(size, "meta"), batch, None, 1.0).items()})
    flops = counter.get_total_flops()
    real = build_unet(size)
    inputs = denoiser_inputs(real, batch, None, 1.0)
    with autocast(torch.device("cpu"), precision):
        seconds = core_seconds(lambda: real(**inputs), repeats)
    return {"what": f"passes, {size}, batch {batch}, {precision}", "value": flops / seconds / 1e9, "unit": "GFLOP/s"}


def product_rate(dtype: torch.dtype, n: int, repeats: int) -> dict:
    a = torch.randn(n, n).to(dtype)
    seconds = core_seconds(lambda: a @ a, repeats)
    return {"what": f"product {dtype} {n}", "value": 2 * n**3 / seconds / 1e9, "unit": "GFLOP/s"}


def collected(width: int, batches: int) -> np.ndarray:
    """Return a packed moment of correlated features, the sum of `batches` batches."""
    mixing, moment = torch.randn(width, width) * torch.logspace(0, -3, width), Moment.zero(width)
    for _ in range(batches):
        moment.add(torch.randn(width, width) @ mixing)
    return zarrstore.pack_symmetric(moment.total.numpy())


def store_rows(repeats: int) -> list[dict]:
    """Measure compression and speed of stores, with arrays of the kinds that the workflow writes."""
    arrays = {f"moments of {n} batches": collected(640, n) for n in BATCHES}
    w, u = decompose(spectrum_matrix(1280))
    arrays |= {
        "vectors": u,
        "values": w,
        "latents": np.random.default_rng(0).standard_normal((64, 4, 64, 64), np.float32),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, array in arrays.items():
            path = Path(folder) / "x.zarr"
            wrote = core_seconds(lambda path=path, array=array: zarrstore.write(path, {"x": array}, {}), repeats)
            read = core_seconds(lambda path=path: zarrstore.read(path)["x"][:], repeats)
            kept = sum(p.stat().st_size for p in (path / "x" / "c").rglob("*") if p.is_file()) / array.nbytes
            rows.append({"what": f"kept of {name}", "value": kept, "unit": "share"})
            rows.append({"what": f"writing {name}", "value": array.nbytes / wrote / 1e6, "unit": "MB/s"})
            rows.append({"what": f"reading {name}", "value": array.nbytes / read / 1e6, "unit": "MB/s"})
    return rows


CPU = "import torch; from nullbooth.models import loading; cpu = torch.device('cpu')"
LOADED = CPU + "; loading.load_{}(loading.ModelSource('{}'), cpu)"
STARTS = {
    "NumPy and Zarr": "from nullbooth.statistics import projector; from nullbooth.storage import zarrstore",
    "torch": "import torch; from nullbooth.statistics import moments; from nullbooth.storage import zarrstore",
    "diffusers, denoiser": LOADED.format("denoiser", TINYWORLD),
    "diffusers, pipeline": LOADED.format("pipeline", TINYWORLD),
}
PEAK = "; print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"


def start_rows(repeats: int) -> list[dict]:
    """Measure processor seconds and memory of processes that only start."""
    rows = []
    for name, code in STARTS.items():
        used = []
        for _ in range(repeats):
            command = [sys.executable, "-c", code + PEAK]
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            peak = int(process.stdout.read()) / 1024
            _, _, usage = os.wait4(process.pid, 0)
            used.append((usage.ru_utime + usage.ru_stime, peak))
        rows.append({"what": f"starting {name}", "value": statistics.median(u[0] for u in used), "unit": "s"})
        rows.append({"what": f"memory of {name}", "value": statistics.median(u[1] for u in used), "unit": "MiB"})
    return rows


def eigh_rows(repeats: int) -> list[dict]:
    rows = []
    for n in WIDTHS:
        c = spectrum_matrix(n)
        rows.append({"what": f"eigh {n}", "value": core_seconds(lambda c=c: decompose(c), repeats), "unit": "s"})
        rows.append(
            {"what": f"eigvalsh {n}", "value": core_seconds(lambda c=c: np.linalg.eigvalsh(c), repeats), "unit": "s"}
        )
    return rows


def main(args) -> None:
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise SystemExit("set OMP_NUM_THREADS=1: processor seconds are those of one core")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = start_rows(args.repeats) + eigh_rows(args.repeats) + store_rows(args.repeats)
    a = np.random.default_rng(0).standard_normal((1280, 1280))
    seconds = core_seconds(lambda: a @ a, args.repeats)
    rows.append({"what": "product of NumPy, float64 1280", "value": 2 * 1280**3 / seconds / 1e9, "unit": "GFLOP/s"})
    for dtype in (torch.float32, torch.bfloat16):
        rows.append(product_rate(dtype, 2048, args.repeats))
    for size, batch in (("embedded", 32), ("embedded", 2), (args.size, 2)):
        rows += [pass_rate(size, batch, precision, args.repeats) for precision in ("fp32", "bf16")]
    report("constants", rows, args)


if __name__ == "__main__":
    main(parser(__doc__, sizes=("sd15", "tiny"), repeats=3).parse_args())
