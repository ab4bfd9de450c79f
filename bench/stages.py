"""Time and peak memory of each stage at real size, with random weights, real classes and the workflow's scripts.

    python bench/stages.py --size sdxl --prompts 2 --steps 2 --train-steps 2 --folder /tmp/sdxl

Each stage runs in a separate process, as in the workflow. Memory is the most that PyTorch reserves on the GPU, and the
largest resident size on the host. The time of 1,000 prompts and 50 timesteps on one such device is extrapolated: the
start of a job times the number of jobs, and the rest by the number of samples. The model's folder is made once and
kept.
"""

import importlib.util
import json
import re
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import diffusers
import torch
import transformers
from architectures import CLIP_G, CLIP_L, SDXL, VAE
from common import ROOT, UNETS, parser, report

sys.path.insert(0, str(ROOT))
from world import tokenizer as tokens

MADE_OF = {"model": "random"}
STEPS, PROMPTS, SHARD = 50, 1000, 512  # of the extrapolation
NOISE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def text_encoder(cls: type, config: dict) -> torch.nn.Module:
    words = words_of_77()
    ids = dict(bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    return cls(transformers.CLIPTextConfig(**config, **ids))


def words_of_77() -> transformers.PreTrainedTokenizerBase:
    found = tokens.load(ROOT / "resources/tinyworld/tokenizer")
    found.model_max_length = 77
    return found


def build(size: str) -> diffusers.DiffusionPipeline:
    """Build a pipeline of the size of Stable Diffusion 1.5 or XL."""
    vae = diffusers.AutoencoderKL(**VAE, latent_channels=4, sample_size=512)
    clip = text_encoder(transformers.CLIPTextModel, CLIP_L)
    scheduler = diffusers.DDIMScheduler(**NOISE, clip_sample=False, steps_offset=1)
    if size == "sd15":
        unet = diffusers.UNet2DConditionModel(**UNETS["sd15"])
        parts = dict(vae=vae, text_encoder=clip, tokenizer=words_of_77(), unet=unet, scheduler=scheduler)
        unsafe = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        return diffusers.StableDiffusionPipeline(**parts, **unsafe)
    second = text_encoder(transformers.CLIPTextModelWithProjection, CLIP_G)
    return diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=clip,
        text_encoder_2=second,
        tokenizer=words_of_77(),
        tokenizer_2=words_of_77(),
        unet=diffusers.UNet2DConditionModel(**SDXL),
        scheduler=scheduler,
        add_watermarker=False,
    )


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "workflow/scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_stage(args: Namespace) -> None:
    """Run one stage in this process, and print its costs as JSON."""
    folder, began = args.folder, time.perf_counter()
    config = {
        **{
            "model": str(folder / "model"),
            "revision": None,
            "variant": None,
            "model_config": None,
            "weights": "fp32",
            "offload": False,
            "attention": None,
            "device": "auto",
            "precision": args.precision,
        },
        **{
            "resolution": args.resolution,
            "protect": {"batch": args.batch, "pack": None},
            "validate": {"prompts": [], "every": 0},
            "trackers": [],
        },
        "sampler": {"guidance": 3.0, "steps": args.steps},
        "concepts": [{"name": "starling", "images": str(ROOT / "resources/subjects/starling/train")}],
    }
    sampler = {"scheduler": None, "options": {}, "arguments": {}, "steps": args.steps, "guidance": 3.0}
    prompts = [f"a photo of a red star on a blue background, number {i}" for i in range(args.prompts)]
    stores = {name: str(folder / f"{name}.zarr") for name in ("trajectory", "moments", "covariance", "projector")}
    match args.stage:
        case "trajectory":
            script("trajectory").main(stores["trajectory"], prompts, sampler, 0, MADE_OF, config)
        case "moments":
            script("moments").main(stores["moments"], stores["trajectory"], 0, ["cross-attention"], MADE_OF, config)
        case "covariance":
            script("covariance").main(stores["covariance"], [stores["moments"]], {"all": MADE_OF}, MADE_OF)
        case "projector":
            script("projector").main(stores["projector"], stores["covariance"], MADE_OF)
        case "training":
            concept = {"name": "starling", "identifier": "vbk", "class": "star", "prompt": "a photo of a {subject}"}
            options = {"steps": args.train_steps, "batch": args.train_batch, "precision": args.precision, "flip": False}
            options |= {"buckets": False, "gpus": 1, "inversion_steps": 0, "gradient_checkpointing": args.checkpointing}
            # The projectors of one timestep are used for all, because they have the same size.
            script("adapter").main(
                {"adapter": str(folder / "run/adapter.safetensors"), "config": str(folder / "run/config.yaml")},
                [stores["projector"]] * (1 if args.scope == "pooled" else args.steps),
                [],
                None,
                [],
                concept,
                {"method": "nullbooth", "scope": args.scope, "rank": 16, "alpha": None, "prior": None, "train": options}
                | {"rule": {"fraction": 0.25}},
                sampler,
                args.resolution,
                ["cross-attention"],
                MADE_OF,
                config,
            )
    found = {"seconds": time.perf_counter() - began, "host": peak_memory()}
    if torch.cuda.is_available():
        found["card"] = torch.cuda.max_memory_reserved()
    print("TOOK " + json.dumps(found))


def peak_memory() -> int:
    """Return the largest resident size of this process in bytes. getrusage would start with that of its parent."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def took(args: Namespace, stage: str, **changes) -> dict[str, float]:
    """Run a stage in a separate process; return its costs."""
    given = {**vars(args), **changes, "stage": stage, "out": None}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in given.items() if value not in (None, False)]
    flags = [flag.removesuffix("=True") for flag in flags]
    done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOOK ")]
    if done.returncode or not lines:
        raise SystemExit(f"{stage}: {done.stdout[-2000:]}{done.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("TOOK "))


def main(args: Namespace) -> None:
    if args.stage:
        run_stage(args)
        return
    if not (args.folder / "model/model_index.json").is_file():
        build(args.size).save_pretrained(args.folder / "model")
    rows, n = [], args.prompts
    for stage in ("trajectory", "moments", "covariance", "projector", "training"):
        first = took(args, stage)
        row = {"stage": stage, "seconds": first["seconds"], "host GB": first["host"] / 1e9}
        if "card" in first:
            row["card GB"] = first["card"] / 1e9
        each = first["seconds"]
        if stage in ("trajectory", "moments"):  # a run with twice the prompts separates the start from the rest
            each = (took(args, stage, prompts=2 * n)["seconds"] - first["seconds"]) / n
            start = first["seconds"] - n * each
            jobs = -(-PROMPTS // SHARD) * (STEPS if stage == "moments" else 1)
            steps = STEPS / args.steps if stage == "trajectory" else STEPS
            row |= {"a prompt": each, "1,000 prompts, 50 timesteps: h": (jobs * start + PROMPTS * steps * each) / 3600}
        elif stage == "training":
            row |= {"a prompt": None, "1,000 prompts, 50 timesteps: h": None}
        else:
            row |= {"a prompt": None, "1,000 prompts, 50 timesteps: h": STEPS * each / 3600}
        rows.append(row)
        print(row, flush=True)
    report("stages at real size", rows, args)


if __name__ == "__main__":
    p = parser(__doc__, sizes=("sd15", "sdxl"))
    p.add_argument("--folder", type=Path, required=True, help="for the model and the results")
    p.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="bf16")
    p.add_argument("--prompts", type=int, default=2)
    p.add_argument("--steps", type=int, default=2, help="of the sampler, and projectors in training")
    p.add_argument("--batch", type=int, help="protected prompts per pass; by default as many as fit")
    p.add_argument("--resolution", type=int, help="pixels of a side; the model's own by default")
    p.add_argument("--scope", choices=("pooled", "timestep"), default="timestep")
    p.add_argument("--train-steps", type=int, default=2)
    p.add_argument("--train-batch", type=int, default=1)
    p.add_argument("--checkpointing", action="store_true")
    p.add_argument("--stage", choices=("trajectory", "moments", "covariance", "projector", "training"))
    main(p.parse_args())
