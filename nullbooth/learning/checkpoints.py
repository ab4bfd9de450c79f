"""Checkpoints of training, one file each, from which a killed run resumes and reaches the same weights."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nullbooth.learning.optimizers import load_state, state_tensors
from nullbooth.learning.trainable import Trainable
from nullbooth.storage.tensorfile import load_tensors, save_tensors

FORMAT = "nullbooth-checkpoint-2"
Done = list[tuple[float, float]]  # loss and seconds of each training step so far


@dataclass(frozen=True)
class Learning:
    """Everything that changes in training. averages: moving averages of the parameters, if kept; scaler: of fp16
    gradients, or None."""

    adapter: Trainable
    optimizer: torch.optim.Optimizer
    schedule: Any
    averages: list[Tensor]
    scaler: Any


def save_checkpoint(folder: Path, done: Done, learning: Learning) -> None:
    """Write a checkpoint for `resume`, with losses and seconds, and remove older ones."""
    state, groups = state_tensors(learning.optimizer)
    tensors = {"done": torch.tensor(done, dtype=torch.float64)}
    tensors |= {f"adapter.{k}": v for k, v in learning.adapter.state_dict().items()}
    tensors |= {f"optimizer.{k}": v for k, v in state.items()}
    tensors |= {f"average.{i}": v for i, v in enumerate(learning.averages)}
    scaler = json.dumps(learning.scaler.state_dict() if learning.scaler else {})
    said = {"format": FORMAT, "groups": groups, "scaler": scaler}
    save_tensors(folder / f"{len(done):06d}.safetensors", tensors, said)
    for old in _checkpoints(folder)[:-1]:
        old.unlink(missing_ok=True)


def resume(folder: Path, learning: Learning) -> Done:
    """Load the last checkpoint in `folder`, if any, and return losses and seconds of the training steps up to it.

    Raises InputError that names the checkpoint if it is damaged.
    """
    found = _checkpoints(folder)
    if not found:
        return []
    hint = "delete it, and training starts from the beginning"
    tensors, said = load_tensors(found[-1], FORMAT, "a checkpoint", hint)

    def of(kind: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{kind}."): v for k, v in tensors.items() if k.startswith(f"{kind}.")}

    learning.adapter.load_state_dict(of("adapter"))
    load_state(learning.optimizer, of("optimizer"), said["groups"])
    for i, average in of("average").items():
        learning.averages[int(i)].copy_(average)
    if learning.scaler:
        learning.scaler.load_state_dict(json.loads(said["scaler"]))
    done = [(loss, seconds) for loss, seconds in tensors["done"].tolist()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about schedule steps before any optimiser step
        for _ in done:
            learning.schedule.step()
    return done


def _checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, sorted by training step."""
    return sorted(path for path in folder.glob("*.safetensors") if path.stem.isdigit())
