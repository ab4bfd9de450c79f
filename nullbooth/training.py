"""DreamBooth training of an adapter, or of whatever a rival of it trains (nullbooth.rivals), by one loop."""

import csv
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from nullbooth.adapter import Adapter
from nullbooth.files import whole
from nullbooth.models import latents_name
from nullbooth.rivals import FineTune
from nullbooth.tensors import load_tensors, save_tensors
from nullbooth.trajectories import unflatten

CHECKPOINT = "nullbooth-checkpoint-1"


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
    distinct_timesteps: int | None = None
    caption_dropout: float = 0.0
    prior_weight: float = 1.0
    checkpoint_every: int = 100
    seed: int = 0


@dataclass(frozen=True)
class TrainData:
    """Cached inputs. latents: `[n, ...]`, scaled; conditions: `[n, ...]` by denoiser keyword; `unconditional`
    has the same keys with one row, used when a caption is dropped.

    Two ways to keep a prior by training on it: `prior` are pictures of the class, learned beside the photographs
    (DreamBooth, arXiv 2208.12242); `class_conditions`, the captions with the class in place of the subject, for which
    the base model's prediction is to be matched.

    constants: what the denoiser is given that is the same for all samples; unit: the denoiser's timestep for 1 of the
    scheduler's (some denoisers count from 0 to 1).
    """

    latents: Tensor
    conditions: dict[str, Tensor]
    unconditional: dict[str, Tensor] = field(default_factory=dict)
    prior: "TrainData | None" = None
    class_conditions: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    unit: float = 1.0


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is of the flow-matching kind: a velocity from data to noise, by straight lines."""
    flow = scheduler.config.get("prediction_type") == "flow_prediction"
    return flow or not hasattr(scheduler, "alphas_cumprod")


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
    alpha = scheduler.alphas_cumprod.to(t.device)[t.long()].float()
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
    adapter: Adapter | FineTune,
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
    """Train `adapter` in place. `folder` takes checkpoints, `loss.csv` (with seconds by step) and TensorBoard events.

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
    done = _resume(folder, run, adapter, optimizer, lr)
    if start := len(done):
        log(f"resumed at step {start} of {s.steps}")
    ours = isinstance(adapter, Adapter)
    if ours:
        adapter.make_room(s.distinct_timesteps or s.batch)

    def draw(index: int) -> dict[str, Any]:
        return _draw(data, scheduler, adapter, s, index * accelerator.num_processes + accelerator.process_index)

    began, upcoming = time.monotonic(), None
    with adapter.attached(denoiser):
        for step in range(start, s.steps):
            at = time.monotonic()
            before = adapter.snapshot() if adapter.scope == "shared" else None
            total = 0.0
            for micro in range(s.accumulation):
                index = (s.seed * 1_000_003 + step) * s.accumulation + micro
                batch = upcoming or draw(index)
                upcoming = draw(index + 1)
                if ours:
                    adapter.prefetch(upcoming["timestep"])
                with accelerator.autocast():
                    if data.class_conditions:
                        with torch.no_grad(), adapter.disabled(denoiser):
                            batch["target"][s.batch :] = _predict(denoiser, batch, data, slice(s.batch, None))
                    loss = _loss(denoiser, scheduler, batch, data, s) / s.accumulation
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
            done.append((total, round(time.monotonic() - at, 4)))
            accelerator.log({"loss": total, "learning rate": lr.get_last_lr()[0]}, step=step + 1)
            n = step + 1
            if n % 20 == 0 or n == s.steps:
                pace = (time.monotonic() - began) / (n - start)
                recent = sum(loss for loss, _ in done[-20:]) / len(done[-20:])
                log(f"step {n}/{s.steps}  loss {recent:.4f}  {pace:.2f} s/step  {pace * (s.steps - n):.0f} s left")
            if n % s.checkpoint_every == 0 and n < s.steps:
                _save_checkpoint(folder, run, done, adapter, optimizer)
            if validate is not None and validate_every and n % validate_every == 0:
                pictures = validate(n)
                accelerator.get_tracker("tensorboard").writer.add_images("validation", pictures, n)
    accelerator.end_training()
    with whole(folder / "loss.csv") as partial, open(partial, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("step", "loss", "seconds"))
        table.writerows((i, *row) for i, row in enumerate(done, 1))


def _draw(data: TrainData, scheduler: Any, adapter: Adapter | FineTune, s: TrainSettings, index: int) -> dict[str, Any]:
    """A batch: `s.batch` photographs, and behind them as many samples of the prior if there is one."""
    generator = torch.Generator("cpu").manual_seed(index)
    rows = torch.randint(len(data.latents), (s.batch,), generator=generator)
    x = data.latents[rows]
    noise = torch.randn(x.shape, generator=generator)
    t = draw_timesteps(scheduler, adapter.timesteps.cpu() / data.unit, s.batch, s.timesteps, generator)
    # The update of scope `shared` can be projected for one timestep only.
    distinct = 1 if adapter.scope == "shared" else s.distinct_timesteps or s.batch
    t = t[torch.arange(s.batch) % distinct]
    dropped = torch.rand(s.batch, generator=generator) < s.caption_dropout
    conditions = {}
    for key, value in data.conditions.items():
        conditions[key] = value[rows].clone()
        if dropped.any():
            conditions[key][dropped] = data.unconditional[key]
    noisy, target = noised(scheduler, x, noise, t)
    device = adapter.timesteps.device
    given = t if data.unit == 1 else t * data.unit
    batch = {"sample": noisy, "timestep": given, "target": target, "conditions": conditions}
    batch = {k: _moved(v, device) for k, v in batch.items()}
    if data.prior is not None:
        other = _draw(data.prior, scheduler, adapter, replace(s, caption_dropout=0.0), index + (1 << 40))
        return _joined(batch, other)
    if data.class_conditions:  # the target is the base model's prediction, which the caller fills in
        spoken = {k: v[rows].to(device) for k, v in data.class_conditions.items()}
        return _joined(batch, {**batch, "conditions": spoken})
    return batch


def _moved(value: Tensor | dict[str, Tensor], device: torch.device) -> Tensor | dict[str, Tensor]:
    return {k: v.to(device) for k, v in value.items()} if isinstance(value, dict) else value.to(device)


def _joined(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Two batches as one, the rows of `b` behind those of `a`."""
    return {k: _joined(v, b[k]) if isinstance(v, dict) else torch.cat((v, b[k])) for k, v in a.items()}


def _predict(denoiser: nn.Module, batch: dict[str, Any], data: TrainData, rows: slice = slice(None)) -> Tensor:
    """The denoiser's prediction, without the variance that some predict in further channels."""
    device = batch["sample"].device
    given = {k: v[rows] for k, v in batch["conditions"].items()} | {k: v.to(device) for k, v in data.constants.items()}
    given |= {latents_name(denoiser): batch["sample"][rows], "timestep": batch["timestep"][rows]}
    return denoiser(**unflatten(given)).sample.float()[:, : batch["sample"].shape[1]]


def _loss(denoiser: nn.Module, scheduler: Any, batch: dict[str, Any], data: TrainData, s: TrainSettings) -> Tensor:
    """Mean square error of the photographs plus `prior_weight` times that of the prior, each a mean over its rows."""
    loss = F.mse_loss(_predict(denoiser, batch, data), batch["target"].float(), reduction="none").flatten(1).mean(1)
    if s.min_snr is not None:
        loss = loss * min_snr_weights(scheduler, batch["timestep"] / data.unit, s.min_snr)
    learned, prior = loss[: s.batch], loss[s.batch :]
    return learned.mean() + s.prior_weight * prior.mean() if len(prior) else learned.mean()


def _schedule(optimizer: torch.optim.Optimizer, s: TrainSettings) -> torch.optim.lr_scheduler.LRScheduler:
    from diffusers.optimization import get_scheduler

    return get_scheduler(s.schedule, optimizer, num_warmup_steps=s.warmup, num_training_steps=s.steps)


def _save_checkpoint(
    folder: Path,
    run: str,
    done: list[tuple[float, float]],
    adapter: Adapter | FineTune,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Parameters, the optimiser's state, losses and seconds so far as one file; the one before is removed."""
    tensors = {"done": torch.tensor(done, dtype=torch.float64)}
    tensors |= {f"adapter.{k}": v.contiguous() for k, v in adapter.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    checkpoints = folder / "checkpoints" / run
    path = checkpoints / f"{len(done):06d}.safetensors"
    save_tensors(path, tensors, {"format": CHECKPOINT})
    for old in _checkpoints(checkpoints)[:-1]:
        old.unlink(missing_ok=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, by their step."""
    return sorted(path for path in folder.glob("*.safetensors") if path.stem.isdigit())


def _resume(
    folder: Path, run: str, adapter: Adapter | FineTune, optimizer: torch.optim.Optimizer, lr: Any
) -> list[tuple[float, float]]:
    """Load the last checkpoint of this run, if there is one, and return losses and seconds of the steps up to it.

    Raises ValueError that names the checkpoint if it is damaged.
    """
    found = _checkpoints(folder / "checkpoints" / run)
    if not found:
        return []
    tensors, _ = load_tensors(
        found[-1], CHECKPOINT, "a checkpoint", "delete it, and training starts from the beginning"
    )
    adapter.load_state_dict({k.removeprefix("adapter."): v for k, v in tensors.items() if k.startswith("adapter.")})
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".", 2)
            states.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    done = [(loss, seconds) for loss, seconds in tensors["done"].tolist()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no optimiser step comes before these
        for _ in done:
            lr.step()
    return done
