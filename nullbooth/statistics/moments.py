"""Streaming second moments of the inputs of linear layers.

C = (1/n) sum(x x^T), uncentred, over every row: a centred covariance would leave the mean feature unprotected.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Moment:
    """A sum of outer products `[n, n]` float64 and the number of rows in it; sums of shards add exactly."""

    total: Tensor
    rows: int = 0

    @classmethod
    def zero(cls, width: int, device: torch.device | str = "cpu") -> "Moment":
        return cls(torch.zeros(width, width, dtype=torch.float64, device=device))

    def add(self, x: Tensor) -> None:
        """Add the rows of `x: [..., n]`. The product of one batch is float32 (TF32 off), the sum float64."""
        x = x.detach().reshape(-1, x.shape[-1]).float()
        self.total += x.T @ x
        self.rows += len(x)

    def mean(self) -> Tensor:
        """`C: [n, n]` float64."""
        if self.rows == 0:
            raise ValueError("a moment without rows has no mean: no feature was collected")
        return self.total / self.rows


@contextmanager
def collecting(
    sites: dict[str, nn.Linear],
    mask: Callable[[], Tensor | None] = lambda: None,
    of_prompt: Collection[str] = (),
) -> Iterator[dict[str, Moment]]:
    """Add the input of every site to a moment, whenever the denoiser runs inside the context.

    mask: which tokens `[b, tokens]` of the prompts the denoiser reads in the pass at work, if it says so. Rows of the
    others, which no output depends on, would only take up room. of_prompt: the sites whose input is the prompt and
    nothing else; rows are left out there alone, as a picture may have as many tokens. Memory does not depend on the
    number of prompts. Give one site per distinct feature. Run the denoiser without gradients: gradient checkpointing
    would call every hook twice.
    """
    moments = {name: Moment.zero(module.in_features, module.weight.device) for name, module in sites.items()}

    def hook(moment: Moment, masked: bool):
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
