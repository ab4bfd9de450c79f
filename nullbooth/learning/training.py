"""The training loop of DreamBooth, for any `Trainable`."""

import csv
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn

from nullbooth.learning.checkpoints import Learning, resume, save_checkpoint
from nullbooth.learning.objective import draw_timesteps, is_flow, min_snr_weights, noised
from nullbooth.learning.optimizers import make_optimizer, make_schedule
from nullbooth.learning.replay import Replay
from nullbooth.learning.trainable import Trainable
from nullbooth.models.calls import unflatten
from nullbooth.models.loading import latents_name
from nullbooth.models.precision import computed_in
from nullbooth.storage.atomic import whole

if TYPE_CHECKING:
    from diffusers import ModelMixin


@dataclass(frozen=True)
class TrainSettings:
    """Settings of training. config/config.yaml has the same defaults and explains them."""

    steps: int = 300
    batch: int = 8
    learning_rate: float = 2e-3
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    accumulation: int = 1
    gradient_checkpointing: bool = False
    precision: str = "fp32"
    min_snr: float | None = None
    offset_noise: float = 0.0
    ema: float | None = None
    timesteps: str = "all"
    distinct_timesteps: int | None = None
    caption_dropout: float = 0.0
    prior_weight: float = 1.0
    checkpoint_every: int = 100
    seed: int = 0


@dataclass(frozen=True)
class TrainData:
    """Cached inputs of pictures of one shape. latents: `[n, ...]`, scaled; conditions: `[n, ...]` by denoiser keyword;
    unconditional: the same keys with one row, used for dropped captions.

    Three ways to preserve a prior: `prior`, pictures of the class, learned together with the photographs (DreamBooth,
    arXiv 2208.12242); `class_conditions`, conditions for captions with the class instead of the subject, at which the
    base model's prediction is the target; `replay`, samples of the protected prompts, with the same target.

    live: computes conditions of rows `[b]` with gradients, while text encoders are trained; constants: denoiser inputs
    shared by all samples; unit: the denoiser's timestep for timestep 1 of the scheduler (some denoisers count from 0 to
    1).
    """

    latents: Tensor
    conditions: dict[str, Tensor]
    unconditional: dict[str, Tensor] = field(default_factory=dict)
    prior: "TrainData | None" = None
    class_conditions: dict[str, Tensor] = field(default_factory=dict)
    replay: Replay | None = None
    constants: dict[str, Tensor] = field(default_factory=dict)
    unit: float = 1.0
    live: Callable[[Tensor], dict[str, Tensor]] | None = None


def train(
    denoiser: "ModelMixin",
    trained: Trainable,
    buckets: Sequence[TrainData],
    scheduler: Any,
    settings: TrainSettings,
    folder: Path,
    *,
    run: str = "",
    validate: Callable[[int], Tensor] | None = None,
    validate_every: int = 0,
    trackers: Sequence[str] = ("tensorboard",),
    log: Callable[[str], None] = print,
) -> None:
    """Train `trained` in place. Checkpoints, `loss.csv` (with seconds) and files of trackers go to `folder`.

    buckets: one per shape of latents; each batch comes from one. trackers: tensorboard, wandb. validate: draws pictures
    `[n, 3, h, w]` in [0, 1] at a training step. Raises ValueError for unsuitable settings and FloatingPointError for a
    loss that is not finite.

    Each training step draws its images, noise and timesteps from a generator seeded by the step, so that a run resumed
    from its last checkpoint ends with the weights of an uninterrupted one. Several processes (accelerate) take one
    batch each in parallel, where `accumulation` takes several in sequence.
    """
    s = settings
    _refuse(s, trained, scheduler)
    precision = computed_in(trained.timesteps.device, s.precision, next(denoiser.parameters()).dtype)
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        cpu=trained.timesteps.device.type == "cpu",
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / "tensorboard")),
    )
    _begin_tracking(accelerator, s, folder, run)
    if s.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    parameters = [p for p in trained.parameters() if p.requires_grad]
    optimizer = accelerator.prepare_optimizer(make_optimizer(s.optimizer, parameters, s.learning_rate, s.weight_decay))
    lr, ema = make_schedule(s.schedule, optimizer, s.warmup, s.steps), _moving_average(parameters, s)
    checkpoints = folder / "checkpoints" / run
    learning = Learning(trained, optimizer, lr, ema.shadow_params if ema else [], accelerator.scaler)
    done = resume(checkpoints, learning)
    if ema:
        ema.optimization_step = len(done)
    say = log if accelerator.is_main_process else lambda _line: None
    if start := len(done):
        say(f"resumed at step {start} of {s.steps}")

    batches = _batches(buckets, scheduler, trained, s, start * s.accumulation, accelerator)
    began = time.monotonic()
    with trained.attached(denoiser):
        for n in range(start + 1, s.steps + 1):
            at = time.monotonic()
            before = trained.before_update()
            total = 0.0
            for _ in range(s.accumulation):
                batch, data = next(batches)
                with accelerator.autocast():
                    loss = _loss_of(denoiser, trained, scheduler, batch, data, s) / s.accumulation
                accelerator.backward(loss)
                total += accelerator.reduce(loss.detach(), "mean").item()
            _update(accelerator, learning, parameters, s)
            trained.after_update(before, batch["timestep"])
            if ema:
                ema.step(parameters)
            if not math.isfinite(total):
                raise FloatingPointError(f"the loss is {total} at step {n}: lower train.learning_rate")
            done.append((total, round(time.monotonic() - at, 4)))
            accelerator.log({"loss": total, "learning rate": lr.get_last_lr()[0]}, step=n)
            if n % 20 == 0 or n == s.steps:
                pace = (time.monotonic() - began) / (n - start)
                recent = sum(loss for loss, _ in done[-20:]) / len(done[-20:])
                say(f"step {n}/{s.steps}  loss {recent:.4f}  {pace:.2f} s/step  {pace * (s.steps - n):.0f} s left")
            if n % s.checkpoint_every == 0 and n < s.steps and accelerator.is_main_process:
                save_checkpoint(checkpoints, done, learning)
            if validate is not None and validate_every and n % validate_every == 0 and accelerator.is_main_process:
                with _averaged(ema, parameters):
                    _show(accelerator, validate(n), n)
    accelerator.end_training()
    if ema:
        ema.copy_to(parameters)
    if accelerator.is_main_process:
        with whole(folder / "loss.csv") as partial, open(partial, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("step", "loss", "seconds"))
            table.writerows((i, *row) for i, row in enumerate(done, 1))


def _batches(
    buckets: Sequence[TrainData],
    scheduler: Any,
    trained: Trainable,
    s: TrainSettings,
    first: int,
    of: Any,
) -> Iterator[tuple[dict[str, Any], TrainData]]:
    """Yield this process's batches from number `first` on. While one is used, the projectors of the next are copied to
    the GPU."""
    trained.prepare(s.distinct_timesteps or s.batch)
    upcoming = None
    for index in count(s.seed * 1_000_003 * s.accumulation + first):
        given, upcoming = upcoming, _draw(buckets, scheduler, trained, s, index * of.num_processes + of.process_index)
        trained.prefetch(upcoming[0]["timestep"])
        if given:
            yield given


def _loss_of(
    denoiser: nn.Module,
    trained: Trainable,
    scheduler: Any,
    batch: dict[str, Any],
    data: TrainData,
    s: TrainSettings,
) -> Tensor:
    """Return the loss of a batch, after computing live conditions and targets of the base model."""
    if data.live:
        batch["conditions"] = data.live(batch["rows"])
    if data.class_conditions:
        with torch.no_grad(), trained.disabled(denoiser):
            batch["target"][s.batch :] = _predict(denoiser, batch, data, slice(s.batch, None))
    loss = _loss(denoiser, scheduler, batch, data, s)
    if replayed := batch.get("replayed"):  # in a separate pass: samples may have another shape
        with torch.no_grad(), trained.disabled(denoiser):
            replayed["target"] = _predict(denoiser, replayed, data)
        loss = loss + s.prior_weight * _errors(denoiser, scheduler, replayed, data, s).mean()
    return loss


def _update(accelerator: Accelerator, learning: Learning, parameters: list[nn.Parameter], s: TrainSettings) -> None:
    """Take one step of optimiser and schedule with the mean gradients of all processes."""
    if accelerator.num_processes > 1:  # DDP does not see an adapter, which acts through hooks
        for p in parameters:
            p.grad = accelerator.reduce(p.grad, "mean")
    accelerator.clip_grad_norm_(parameters, s.max_grad_norm)
    learning.optimizer.step()
    learning.optimizer.zero_grad(set_to_none=True)
    learning.schedule.step()


def _refuse(s: TrainSettings, trained: Trainable, scheduler: Any) -> None:
    """Raise ValueError, naming the setting, for settings that the trainable or the scheduler does not allow."""
    trained.refuse(s)
    if s.offset_noise and is_flow(scheduler):
        raise ValueError("train.offset_noise: flow matching needs noise of mean zero; set it to 0")


def _begin_tracking(accelerator: Accelerator, s: TrainSettings, folder: Path, run: str) -> None:
    """Start trackers: TensorBoard in `folder/tensorboard`, Weights & Biases in `folder/wandb` as WANDB_MODE says."""
    accelerator.init_trackers("nullbooth", init_kwargs={"wandb": {"dir": str(folder), "name": run or None}})
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":  # TensorBoard would write extra files for them
            tracker.store_init_configuration(asdict(s))


def _show(accelerator: Accelerator, pictures: Tensor, step: int) -> None:
    """Send pictures `[n, 3, h, w]` in [0, 1] to the trackers."""
    shown = (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for tracker in accelerator.trackers:
        order = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({"validation": shown}, step=step, **order)


def _moving_average(parameters: list[nn.Parameter], s: TrainSettings) -> Any:
    """Return an exponential moving average of the parameters, or None. A mean of changes in the null space is in it."""
    from diffusers.training_utils import EMAModel

    return EMAModel(parameters, decay=s.ema) if s.ema else None


@contextmanager
def _averaged(ema: Any, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Set the parameters to their moving average, if there is one, inside the context."""
    if ema:
        ema.store(parameters)
        ema.copy_to(parameters)
    try:
        yield
    finally:
        if ema:
            ema.restore(parameters)


def _draw(
    buckets: Sequence[TrainData], scheduler: Any, trained: Trainable, s: TrainSettings, index: int
) -> tuple[dict[str, Any], TrainData]:
    """Draw a batch from one bucket, chosen with a probability proportional to its photographs: `s.batch` of these,
    followed by as many samples of the prior, if any."""
    generator = torch.Generator("cpu").manual_seed(index)
    data = buckets[0]
    if len(buckets) > 1:
        sizes = torch.tensor([float(len(bucket.latents)) for bucket in buckets])
        data = buckets[int(torch.multinomial(sizes, 1, generator=generator))]
    batch = _draw_of(data, scheduler, trained, s, generator, index)
    if data.replay is not None:
        drawn = data.replay.draw(s.batch, index, s.distinct_timesteps)
        batch["replayed"] = {key: _moved(value, trained.timesteps.device) for key, value in drawn.items()}
    return batch, data


def _draw_of(
    data: TrainData,
    scheduler: Any,
    trained: Trainable,
    s: TrainSettings,
    generator: torch.Generator,
    index: int,
) -> dict[str, Any]:
    rows = torch.randint(len(data.latents), (s.batch,), generator=generator)
    x = data.latents[rows]
    noise = torch.randn(x.shape, generator=generator)
    t = draw_timesteps(scheduler, trained.timesteps.cpu() / data.unit, s.batch, s.timesteps, generator)
    distinct = 1 if trained.one_timestep else s.distinct_timesteps or s.batch
    t = t[torch.arange(s.batch) % distinct]
    dropped = torch.rand(s.batch, generator=generator) < s.caption_dropout
    if s.offset_noise:  # adds noise to the mean of each channel (CrossLabs, Diffusion with Offset Noise)
        noise = noise + s.offset_noise * torch.randn(*x.shape[:2], 1, 1, generator=generator)
    conditions = {}
    for key, value in data.conditions.items():
        conditions[key] = value[rows].clone()
        if dropped.any():
            conditions[key][dropped] = data.unconditional[key]
    noisy, target = noised(scheduler, x, noise, t)
    device = trained.timesteps.device
    given = t if data.unit == 1 else t * data.unit
    batch: dict[str, Any] = {"sample": noisy, "timestep": given, "target": target, "conditions": conditions}
    batch = {k: _moved(v, device) for k, v in (batch | {"rows": rows}).items()}
    if data.prior is not None:
        other = index + (1 << 40)
        plain, seeded = replace(s, caption_dropout=0.0), torch.Generator("cpu").manual_seed(other)
        return _joined(batch, _draw_of(data.prior, scheduler, trained, plain, seeded, other))
    if data.class_conditions:  # the caller replaces the target by the base model's prediction
        spoken = {k: v[rows].to(device) for k, v in data.class_conditions.items()}
        return _joined(batch, {**batch, "conditions": spoken})
    return batch


def _moved(value: Tensor | dict[str, Tensor], device: torch.device) -> Tensor | dict[str, Tensor]:
    return {k: v.to(device) for k, v in value.items()} if isinstance(value, dict) else value.to(device)


def _joined(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Concatenate two batches, the rows of `a` first."""
    return {k: _joined(v, b[k]) if isinstance(v, dict) else torch.cat((v, b[k])) for k, v in a.items()}


def _predict(denoiser: nn.Module, batch: dict[str, Any], data: TrainData, rows: slice = slice(None)) -> Tensor:
    """Return the denoiser's prediction in float32, without the variance that some predict in extra channels."""
    device = batch["sample"].device
    given = {k: v[rows] for k, v in batch["conditions"].items()}
    given |= {k: v.to(device) for k, v in batch.get("constants", data.constants).items()}
    given |= {latents_name(denoiser): batch["sample"][rows], "timestep": batch["timestep"][rows]}
    return denoiser(**unflatten(given)).sample.float()[:, : batch["sample"].shape[1]]


def _loss(denoiser: nn.Module, scheduler: Any, batch: dict[str, Any], data: TrainData, s: TrainSettings) -> Tensor:
    """Return the mean square error of the photographs plus `prior_weight` times that of the prior."""
    loss = _errors(denoiser, scheduler, batch, data, s)
    learned, prior = loss[: s.batch], loss[s.batch :]
    return learned.mean() + s.prior_weight * prior.mean() if len(prior) else learned.mean()


def _errors(denoiser: nn.Module, scheduler: Any, batch: dict[str, Any], data: TrainData, s: TrainSettings) -> Tensor:
    """Return the mean square error `[b]` of each row's prediction, weighted by min-SNR if it is set."""
    loss = F.mse_loss(_predict(denoiser, batch, data), batch["target"].float(), reduction="none").flatten(1).mean(1)
    if s.min_snr is not None:
        loss = loss * min_snr_weights(scheduler, batch["timestep"] / data.unit, s.min_snr)
    return loss
