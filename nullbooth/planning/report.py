"""Report of the estimated costs of a config, printed before anything runs."""

import os
import shutil
import time

import torch

from nullbooth.models.precision import DTYPES, computed_in, pick_device
from nullbooth.planning import cost, estimate, plan
from nullbooth.planning.shapes_exact import pipeline_shapes
from nullbooth.storage.atomic import existing

GIB = 2**30


def product_rate(device: torch.device, precision: str) -> float:
    """Measure the FLOP/s of a large product on the GPU, or on one core."""
    n = 8192 if device.type == "cuda" else 1024
    dtype = DTYPES[precision]
    a = torch.randn(n, n, device=device).to(dtype)
    clock, wait = (time.perf_counter, torch.cuda.synchronize) if device.type == "cuda" else (time.process_time, int)
    for repeats in (1, 5):  # the first is a warm-up
        wait()
        began = clock()
        for _ in range(repeats):
            a @ a
        wait()
        seconds = (clock() - began) / repeats
    return 2 * n**3 / seconds


def machine_of(settings: dict, device: torch.device, precision: str) -> cost.Machine:
    """Return the machine described by the settings of `plan`, or this one, measured."""
    cores = len(os.sched_getaffinity(0))
    if settings["tflops"] is not None:
        return cost.card(1e12 * settings["tflops"], settings["gpus"] or 1, cores)
    rate, single = product_rate(device, precision), product_rate(device, "fp32")
    if device.type == "cuda":
        return cost.Machine(cost.UTILISATION * rate, single, settings["gpus"] or torch.cuda.device_count(), cores)
    return cost.Machine(cost.CORE_UTILISATION[precision] * rate * cores, single * cores, 0, cores)


def card_memory(settings: dict, device: torch.device) -> float | None:
    if settings["gpu_memory_gb"] is not None:
        return settings["gpu_memory_gb"] * GIB
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def print_plan(work: cost.Work, config: dict) -> None:
    settings, device = config["plan"], pick_device(config["device"])
    precision = computed_in(device, config["precision"], DTYPES[config["weights"]])
    machine = machine_of(settings, device, precision)
    model = pipeline_shapes(
        config["model_config"] or config["model"],
        config["revision"],
        tuple(config["protect"]["sites"]),
        config["precision"],
        config["weights"],
        config["resolution"],
        config["sampler"]["arguments"].get("max_sequence_length"),
    )
    jobs = estimate.jobs(model, work, machine)
    folder = existing(config["results"])
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = plan.Limits(card_memory(settings, device), memory, shutil.disk_usage(folder).free)
    millions, features = model.parameters / 1e6, len(model.readings)
    print(f"\n{config['model']}: {millions:.1f} million parameters, {features} protected features")
    of_pack = f", of {config['protect']['pack']}" if work.packed else f", shards: {work.shards}"
    print(f"protected prompts: {work.prompts}{of_pack}, timesteps: {work.steps}, adapters: {len(work.runs)}")
    if config["protect"]["prompts_until"] and work.shards > 1 and not work.packed:
        print("protect.prompts_until may need fewer shards: this estimate is for all of them")
    print(f"\n{plan.table(jobs)}\n\n{plan.summary(jobs, machine)}")
    if config["edits"] or any(method["lifelong"] for method in config["methods"]):
        print("Not counted: edits, and pictures and measurements of subjects after later ones were learned (lifelong)")
    for warning in plan.warnings(jobs, limits):
        print(f"Warning: {warning}")
    print("Estimates for a run without earlier results; docs/scaling.md explains them.")
