"""Textual inversion (arXiv 2208.01618) of the identifier: vectors that text encoders read instead of its embeddings.

Neither tokenizer nor text encoder changes. Prompts without the identifier are encoded as before, bit by bit, so the
protection of prompts is not affected.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nullbooth.adapters.file import WORD
from nullbooth.adapters.word import embeddings, install, readers, tokens_of
from nullbooth.learning.trainable import Plain
from nullbooth.models.calls import spoken
from nullbooth.models.loading import denoiser_of


class Word(Plain, nn.Module):
    """Vectors of an identifier, a `Trainable`. vectors: `[k, d]` float32 by text encoder, initialised with the
    identifier's embeddings."""

    timesteps: Tensor

    def __init__(self, pipeline: Any, word: str):
        super().__init__()
        self.word, self._pipeline = word, [pipeline]  # in a list, so that it is not registered as a submodule
        device = next(denoiser_of(pipeline).parameters()).device
        self.vectors = nn.ParameterDict()
        for name, (tokenizer, encoder) in readers(pipeline).items():
            look_up = embeddings(tokenizer, encoder)[0]
            ids = torch.tensor([tokens_of(tokenizer, word)], device=look_up.weight.device)
            with torch.no_grad():
                self.vectors[name] = nn.Parameter(look_up(ids)[0].detach().clone().float().to(device))
        self.register_buffer("timesteps", torch.zeros(1, dtype=torch.float64, device=device), persistent=False)

    @contextmanager
    def attached(self, _denoiser: nn.Module | None = None) -> Iterator["Word"]:
        """Let the text encoders read the vectors inside the context."""
        handles = install(self._pipeline[0], self.word, dict(self.vectors))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def disabled(self, _denoiser: nn.Module) -> Iterator[None]:
        """Do nothing: a word is trained without a prior."""
        yield

    def tensors(self) -> dict[str, Tensor]:
        """Return the vectors to save, float32 on the CPU."""
        return {f"{WORD}{name}": v.detach().float().cpu().clone() for name, v in self.vectors.items()}


def speaker(pipeline: Any, texts: list[str], resolution: Any, arguments: dict[str, Any]) -> Callable:
    """Return a function of rows `[b]` of `texts` that computes the denoiser's inputs for them (`spoken`)."""
    return lambda rows: spoken(pipeline, [texts[i] for i in rows.tolist()], resolution, arguments)
