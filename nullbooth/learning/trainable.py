"""The interface between the training loop and what it trains: an adapter, a rival's weights, or a word."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from nullbooth.learning.training import TrainSettings


class Trainable(Protocol):
    """What `learning.training.train` trains in place.

    timesteps: the cached timesteps `[T]`, float64, on the device of training; `[0]` where there are none. one_timestep:
    whether all samples of a batch must have the same timestep.
    """

    timesteps: Tensor
    one_timestep: bool

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the optimiser updates, among others: those that require gradients."""

    def refuse(self, settings: "TrainSettings") -> None:
        """Raise ValueError, naming the setting, for settings that do not fit."""

    def attached(self, denoiser: nn.Module) -> AbstractContextManager[Any]:
        """A context in which the denoiser runs with what is trained."""

    def disabled(self, denoiser: nn.Module) -> AbstractContextManager[Any]:
        """A context, within `attached`, in which the denoiser is the base model."""

    def prepare(self, distinct: int) -> None:
        """Get ready for batches of so many distinct timesteps."""

    def prefetch(self, timestep: Tensor) -> None:
        """Begin to bring what the next batch needs, `timestep: [b]`, to the device."""

    def before_update(self) -> Any:
        """What `after_update` needs to know of the time before an update."""

    def after_update(self, before: Any, timestep: Tensor) -> None:
        """Correct an update by a batch at `timestep: [b]`."""

    def tensors(self) -> dict[str, Tensor]:
        """What is saved: CPU tensors in float32 by name."""


class Plain:
    """The parts of `Trainable` for what knows no timesteps and takes updates as they are."""

    one_timestep = False

    def refuse(self, settings: "TrainSettings") -> None:
        if settings.timesteps == "cached":
            raise ValueError("train.timesteps: cached: method nullbooth alone has cached timesteps; use all")

    def prepare(self, distinct: int) -> None:
        pass

    def prefetch(self, timestep: Tensor) -> None:
        pass

    def before_update(self) -> None:
        return None

    def after_update(self, before: None, timestep: Tensor) -> None:
        pass
