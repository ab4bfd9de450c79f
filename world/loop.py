"""Training loop of the embedded model's trainers: schedule, moving average, checkpoints, progress."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn


def warmup_linear(step: int, total: int, warmup: int = 100, hold: float = 0.5) -> float:
    """Learning-rate factor: linear warm-up, constant until `hold` of the run, then linear to zero."""
    return min(1.0, (step + 1) / warmup, max(0.0, (total - step) / (total * (1 - hold))))


def fit(
    modules: dict[str, nn.Module],
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    checkpoint: Path,
    weight_decay: float = 0.01,
    ema_decay: float = 0.999,
    save_every: int = 250,
    snapshot: Callable[[dict[str, dict[str, Tensor]]], None] | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Minimise `loss_of(step)` over all parameters of `modules`; resume from `checkpoint` if it exists.

    Weight decay applies to matrices and kernels, not to vectors and embeddings. Returns the moving averages of the
    weights, one state dict per module; `snapshot` is called with them after each checkpoint.
    """
    named = [(f"{m}.{n}", p) for m, module in modules.items() for n, p in module.named_parameters()]
    decayed = [p for n, p in named if p.ndim > 1 and "embedding" not in n]
    others = [p for n, p in named if p.ndim < 2 or "embedding" in n]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr, betas=(0.9, 0.99))
    params = [p for _, p in named]
    ema = [p.detach().clone() for p in params]
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        start = state["step"]
        with torch.no_grad():
            for p, saved in zip(params, state["params"], strict=True):
                p.copy_(saved)
        ema = state["ema"]
        optimizer.load_state_dict(state["optimizer"])
        print(f"resumed {checkpoint} at step {start}", flush=True)

    def averages() -> dict[str, dict[str, Tensor]]:
        pairs = [(*n.split(".", 1), t) for (n, _), t in zip(named, ema, strict=True)]
        return {m: {n: t for owner, n, t in pairs if owner == m} for m in modules}

    began, running = time.monotonic(), None
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup_linear(step, steps)
        torch.manual_seed(step)  # a resumed run draws the same numbers as an uninterrupted one
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        decay = min(ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(ema, [p.detach() for p in params], 1 - decay)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            pace = (time.monotonic() - began) / (step + 1 - start)
            left = pace * (steps - step - 1) / 60
            print(f"step {step + 1}/{steps}  loss {running:.4f}  {pace:.2f} s/step  {left:.0f} min left", flush=True)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state = {"step": step + 1, "params": params, "ema": ema, "optimizer": optimizer.state_dict()}
            partial = checkpoint.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(checkpoint)
            if snapshot is not None:
                snapshot(averages())
    return averages()


def load_average(module: nn.Module, average: dict[str, Tensor]) -> nn.Module:
    """Load averaged parameters into a module; its buffers are kept. Raises ValueError if they do not fit."""
    missing, unexpected = module.load_state_dict(average, strict=False)
    buffers = {n for n, _ in module.named_buffers()}
    if unexpected or set(missing) - buffers:
        raise ValueError(f"averaged weights do not fit {type(module).__name__}: {missing} {unexpected}")
    return module.eval()


def batches(items: int, size: int) -> Iterable[slice]:
    return (slice(i, min(i + size, items)) for i in range(0, items, size))
