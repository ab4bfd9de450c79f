"""Interface between the training loop and what it trains: an adapter, the weights of a rival, or a word."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from nullbooth.learning.training import TrainSettings


class Trainable(Protocol):
    """Interface of modules that `learning.training.train` trains in place.

    timesteps: the cached timesteps `[T]` float64 on the device of training, or `[0]` without any. one_timestep: True if
    all samples of a batch must have the same timestep.
    """

    @property
    def timesteps(self) -> Tensor: ...

    @property
    def one_timestep(self) -> bool: ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return parameters, of which the optimiser updates those that require gradients."""

    def to(self, device: torch.device) -> Self:
        """Move parameters and timesteps to a device, and return self."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in checkpoints."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Load the result of `state_dict`."""

    def refuse(self, settings: "TrainSettings") -> None:
        """Raise ValueError, naming the setting, for unsuitable settings."""

    def attached(self, denoiser: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which the denoiser runs with the trained change."""

    def disabled(self, denoiser: nn.Module) -> AbstractContextManager[Any]:
        """Return a context, within `attached`, in which the denoiser is the base model."""

    def prepare(self, distinct: int) -> None:
        """Prepare for batches of `distinct` timesteps."""

    def prefetch(self, timestep: Tensor) -> None:
        """Start to copy the data of the next batch, at `timestep: [b]`, to the device."""

    def before_update(self) -> Any:
        """Return the state before an update that `after_update` needs."""

    def after_update(self, before: Any, timestep: Tensor) -> None:
        """Correct an update by a batch at `timestep: [b]`."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save, float32 on the CPU, by name."""


class Plain:
    """Parts of `Trainable` for modules without cached timesteps that do not correct updates."""

    one_timestep = False

    def refuse(self, settings: "TrainSettings") -> None:
        if settings.timesteps == "cached":
            raise ValueError("train.timesteps: cached: only the method nullbooth has cached timesteps; use all")

    def prepare(self, distinct: int) -> None:
        pass

    def prefetch(self, timestep: Tensor) -> None:
        pass

    def before_update(self) -> None:
        return None

    def after_update(self, before: None, timestep: Tensor) -> None:
        pass
