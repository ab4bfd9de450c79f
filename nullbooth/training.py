"""DreamBooth training of an adapter: the denoiser is frozen, only the adapter's factors learn."""

import csv
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nullbooth.adapter import Adapter
from nullbooth.trajectories import unflatten


@dataclass(frozen=True)
class TrainSettings:
    """Defaults are those of config/config.yaml, where each is explained."""

    steps: int = 300
    batch: int = 8
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    warmup: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    accumulation: int = 1
    gradient_checkpointing: bool = False
    precision: str = "fp32"
    min_snr: float | None = None
    timesteps: str = "all"
    caption_dropout: float = 0.0
    checkpoint_every: int = 100
    seed: int = 0


@dataclass(frozen=True)
class TrainData:
    """Cached inputs. latents: `[n, ...]`, scaled; conditions: `[n, ...]` by denoiser keyword; `unconditional`
    has the same keys with one row, used when a caption is dropped."""

    latents: Tensor
    conditions: dict[str, Tensor]
    unconditional: dict[str, Tensor] = field(default_factory=dict)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is of the flow-matching kind (no betas, a velocity from data to noise)."""
    return not hasattr(scheduler, "alphas_cumprod")


def noised(scheduler: Any, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents and the target that the scheduler's prediction type asks for.

    Flow matching (arXiv 2403.03206): x_t = (1 - s) x + s n with s = t / num_train_timesteps, target n - x.
    """
    if is_flow(scheduler):
        s = (t / scheduler.config.num_train_timesteps).view(-1, *[1] * (x.ndim - 1)).to(x)
        return (1 - s) * x + s * noise, noise - x
    noisy = scheduler.add_noise(x, noise, t)
    match scheduler.config.prediction_type:
        case "epsilon":
            return noisy, noise
        case "v_prediction":
            return noisy, scheduler.get_velocity(x, noise, t)
        case "sample":
            return noisy, x
    raise ValueError(f"scheduler: unknown prediction_type {scheduler.config.prediction_type!r}")


def min_snr_weights(scheduler: Any, t: Tensor, gamma: float) -> Tensor:
    """Min-SNR-gamma (arXiv 2303.09556) loss weights `[b]` for the scheduler's prediction type."""
    if is_flow(scheduler):
        raise ValueError("train.min_snr: a flow-matching scheduler has no signal-to-noise weights; leave it null")
    alpha = scheduler.alphas_cumprod.to(t.device)[t].float()
    snr = alpha / (1 - alpha)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    return snr.clamp(max=gamma) / divisor[scheduler.config.prediction_type].clamp(min=1e-8)


def draw_timesteps(scheduler: Any, cached: Tensor, n: int, mode: str, generator: torch.Generator) -> Tensor:
    """`n` training timesteps: of the whole schedule (`all`), or only those with a projector (`cached`)."""
    if mode == "cached":
        t = cached[torch.randint(len(cached), (n,), generator=generator)]
    else:
        t = torch.randint(scheduler.config.num_train_timesteps, (n,), generator=generator).double()
    return t if is_flow(scheduler) else t.round().long()


def train(
    denoiser: nn.Module,
    adapter: Adapter,
    data: TrainData,
    scheduler: Any,
    settings: TrainSettings,
    folder: Path,
    *,
    run: str = "",
    validate: Callable[[int], Tensor] | None = None,
    validate_every: int = 0,
    log: Callable[[str], None] = print,
) -> None:
    """Train `adapter` in place. `folder` takes checkpoints, `loss.csv` and TensorBoard events.

    Every step draws its images, noise and timesteps from a generator seeded by the step, so that a run resumed
    from its last checkpoint ends in the weights of an uninterrupted one.
    """
    s = settings
    if adapter.scope == "shared" and s.accumulation > 1:
        raise ValueError("train.accumulation: scope shared projects each update for one timestep, so it must be 1")
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(s.precision, s.precision),
        cpu=adapter.timesteps.device.type == "cpu",
        log_with="tensorboard",
        project_dir=folder,
    )
    accelerator.init_trackers("tensorboard")
    if s.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    parameters = [p for p in adapter.parameters() if p.requires_grad]
    optimizer = accelerator.prepare_optimizer(
        torch.optim.AdamW(parameters, s.learning_rate, weight_decay=s.weight_decay)
    )
    lr = _schedule(optimizer, s)
    losses = _resume(folder, run, adapter, optimizer, lr)
    if start := len(losses):
        log(f"resumed at step {start} of {s.steps}")
    began = time.monotonic()
    with adapter.attached(denoiser), open(folder / "loss.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerows([("step", "loss"), *enumerate(losses, 1)])
        for step in range(start, s.steps):
            before = adapter.snapshot() if adapter.scope == "shared" else None
            total = 0.0
            for micro in range(s.accumulation):
                index = (s.seed * 1_000_003 + step) * s.accumulation + micro
                batch = _draw(
                    data, scheduler, adapter, s, index * accelerator.num_processes + accelerator.process_index
                )
                with accelerator.autocast():
                    loss = _loss(denoiser, scheduler, batch, s) / s.accumulation
                accelerator.backward(loss)
                total += loss.item()
            if accelerator.num_processes > 1:  # the adapter acts through hooks, where DDP does not see it
                for p in parameters:
                    p.grad = accelerator.reduce(p.grad, "mean")
            accelerator.clip_grad_norm_(parameters, s.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            lr.step()
            if before is not None:
                adapter.project_updates(before, adapter.nearest(batch["timestep"])[0])
            if not torch.isfinite(torch.tensor(total)):
                raise FloatingPointError(f"the loss is {total} at step {step + 1}: lower train.learning_rate")
            losses.append(total)
            table.writerow((step + 1, total))
            accelerator.log({"loss": total, "learning rate": lr.get_last_lr()[0]}, step=step + 1)
            done = step + 1
            if done % 20 == 0 or done == s.steps:
                pace = (time.monotonic() - began) / (done - start)
                recent = sum(losses[-20:]) / len(losses[-20:])
                log(
                    f"step {done}/{s.steps}  loss {recent:.4f}  {pace:.2f} s/step  {pace * (s.steps - done):.0f} s left"
                )
            if done % s.checkpoint_every == 0 and done < s.steps:
                file.flush()
                _save_checkpoint(folder, run, losses, adapter, optimizer)
            if validate is not None and validate_every and done % validate_every == 0:
                pictures = validate(done)
                accelerator.get_tracker("tensorboard").writer.add_images("validation", pictures, done)
    accelerator.end_training()


def _draw(data: TrainData, scheduler: Any, adapter: Adapter, s: TrainSettings, index: int) -> dict[str, Any]:
    generator = torch.Generator("cpu").manual_seed(index)
    rows = torch.randint(len(data.latents), (s.batch,), generator=generator)
    x = data.latents[rows]
    noise = torch.randn(x.shape, generator=generator)
    t = draw_timesteps(scheduler, adapter.timesteps.cpu(), s.batch, s.timesteps, generator)
    if adapter.scope == "shared":
        t = t[:1].expand(s.batch)  # the update of a batch can be projected for one timestep only
    dropped = torch.rand(s.batch, generator=generator) < s.caption_dropout
    conditions = {}
    for key, value in data.conditions.items():
        conditions[key] = value[rows].clone()
        if dropped.any():
            conditions[key][dropped] = data.unconditional[key]
    device = adapter.timesteps.device
    noisy, target = noised(scheduler, x, noise, t)
    return {
        "sample": noisy.to(device),
        "timestep": t.to(device),
        "target": target.to(device),
        "conditions": {k: v.to(device) for k, v in conditions.items()},
    }


def _loss(denoiser: nn.Module, scheduler: Any, batch: dict[str, Any], s: TrainSettings) -> Tensor:
    prediction = denoiser(batch["sample"], batch["timestep"], **unflatten(batch["conditions"])).sample
    loss = F.mse_loss(prediction.float(), batch["target"].float(), reduction="none").flatten(1).mean(1)
    if s.min_snr is not None:
        loss = loss * min_snr_weights(scheduler, batch["timestep"], s.min_snr)
    return loss.mean()


def _schedule(optimizer: torch.optim.Optimizer, s: TrainSettings) -> torch.optim.lr_scheduler.LRScheduler:
    from diffusers.optimization import get_scheduler

    return get_scheduler(s.schedule, optimizer, num_warmup_steps=s.warmup, num_training_steps=s.steps)


def _save_checkpoint(
    folder: Path, run: str, losses: list[float], adapter: Adapter, optimizer: torch.optim.Optimizer
) -> None:
    """Parameters, the optimiser's state and the losses so far as one safetensors file; the one before it is removed."""
    tensors = {"losses": torch.tensor(losses, dtype=torch.float64)}
    tensors |= {f"adapter.{k}": v.contiguous() for k, v in adapter.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    checkpoints = folder / "checkpoints" / run
    checkpoints.mkdir(parents=True, exist_ok=True)
    path = checkpoints / f"{len(losses):06d}.safetensors"
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)
    for old in sorted(checkpoints.glob("*.safetensors"))[:-1]:
        old.unlink()


def _resume(folder: Path, run: str, adapter: Adapter, optimizer: torch.optim.Optimizer, lr: Any) -> list[float]:
    """Load the last checkpoint of this run, if there is one, and return the losses up to it."""
    found = sorted((folder / "checkpoints" / run).glob("*.safetensors"))
    if not found:
        return []
    with safe_open(found[-1], "pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    adapter.load_state_dict({k.removeprefix("adapter."): v for k, v in tensors.items() if k.startswith("adapter.")})
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".", 2)
            states.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    losses = tensors["losses"].tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no optimiser step comes before these
        for _ in losses:
            lr.step()
    return losses
