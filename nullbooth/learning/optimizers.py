"""Optimisers and schedules by name, and the state of optimisers for exact checkpoints."""

import json
from typing import Any

import torch
from torch import Tensor, nn


def make_optimizer(
    name: str, parameters: list[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return an optimiser with decoupled weight decay. Raises ValueError for an unknown name.

    learning_rate: for Prodigy (arXiv 2306.06101), a factor of the rate that it finds itself; its authors use 1.
    """
    match name:
        case "adamw":
            return torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay)
        case "adamw8bit":
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit(parameters, learning_rate, weight_decay=weight_decay)
        case "prodigy":
            from prodigyopt import Prodigy

            # Recommended by its authors for diffusion models.
            return Prodigy(
                parameters,
                learning_rate,
                weight_decay=weight_decay,
                use_bias_correction=True,
                safeguard_warmup=True,
            )
    raise ValueError(f"train.optimizer: {name!r}: use one of adamw, adamw8bit, prodigy")


def state_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], str]:
    """Return an optimiser's state of each parameter as tensors, and the numbers of its groups as JSON (Prodigy keeps
    its rate there)."""
    state = optimizer.state_dict()
    tensors = {f"{i}.{k}": torch.as_tensor(v) for i, kept in state["state"].items() for k, v in kept.items()}
    groups = [{k: v for k, v in group.items() if isinstance(v, (int, float))} for group in state["param_groups"]]
    return tensors, json.dumps(groups)


def load_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: str) -> None:
    """Load the result of `state_tensors` into an optimiser."""
    states: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        i, _, name = key.partition(".")
        counter = value.ndim == 0 and not value.is_floating_point()
        states.setdefault(int(i), {})[name] = value.item() if counter else value
    known = optimizer.state_dict()["param_groups"]
    numbers = json.loads(groups)
    merged = [{**group, **found} for group, found in zip(known, numbers, strict=True)]
    optimizer.load_state_dict({"state": states, "param_groups": merged})


def make_schedule(name: str, optimizer: torch.optim.Optimizer, warmup: int, steps: int) -> Any:
    """Return a learning rate schedule over `steps` training steps, by diffusers' name."""
    from diffusers.optimization import get_scheduler

    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
