"""Streaming second moments of the inputs of linear layers.

C = (1/n) sum(x x^T) over all n rows x, uncentred: a centred covariance would leave the mean feature unprotected.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Moment:
    """A sum of outer products `[n, n]` float64 and its number of rows. Moments of shards are added by adding both."""

    total: Tensor
    rows: int = 0

    @classmethod
    def zero(cls, width: int, device: torch.device | str = "cpu") -> "Moment":
        return cls(torch.zeros(width, width, dtype=torch.float64, device=device))

    def add(self, x: Tensor) -> None:
        """Add the rows of `x: [..., n]`. Products are computed in float32 (TF32 off), the sum in float64."""
        x = x.detach().reshape(-1, x.shape[-1]).float()
        self.total += x.T @ x
        self.rows += len(x)

    def mean(self) -> Tensor:
        """Return the second moment `C: [n, n]` float64. Raises ValueError without rows."""
        if self.rows == 0:
            raise ValueError("a moment without rows has no mean: no feature was collected; run the denoiser first")
        return self.total / self.rows


@contextmanager
def collecting(
    sites: dict[str, nn.Linear],
    mask: Callable[[], Tensor | None] = lambda: None,
    of_prompt: Collection[str] = (),
) -> Iterator[dict[str, Moment]]:
    """Yield moments by site name, to which every run of the denoiser inside the context adds the sites' inputs.

    sites: one per distinct feature. mask: returns which prompt tokens the denoiser reads in the current pass, bool
    `[b, tokens]`, or None for all; no output depends on the others, whose rows would only take up free directions.
    of_prompt: names of the sites whose input is the prompt alone; the mask applies only to these, because a picture may
    have as many tokens. Memory does not depend on the number of prompts. Raises RuntimeError if gradients are enabled:
    gradient checkpointing would call every hook twice.
    """
    moments = {name: Moment.zero(module.in_features, module.weight.device) for name, module in sites.items()}

    def hook(moment: Moment, masked: bool) -> Callable[[nn.Module, tuple], None]:
        def add(_module: nn.Module, args: tuple) -> None:
            if torch.is_grad_enabled():
                raise RuntimeError("collect moments under torch.no_grad(): checkpointing would count rows twice")
            x, read = args[0], mask() if masked else None
            with torch.autocast(x.device.type, enabled=False):
                moment.add(x if read is None else x[read])

        return add

    handles = [
        module.register_forward_pre_hook(hook(moments[name], name in of_prompt)) for name, module in sites.items()
    ]
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield moments
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        for handle in handles:
            handle.remove()
