"""Cross-attention maps of the words of a prompt: how much each pixel attends to a word (DAAM, arXiv 2210.04885)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullbooth.models.families import FAMILIES


class Maps:
    """Mean attention of the last `n` rows over blocks, heads and steps, `[n, tokens, size, size]` float32 on CPU."""

    def __init__(self, n: int, size: int):
        self.n, self.size, self.count, self.total = n, size, 0, torch.zeros(())

    def add(self, probabilities: Tensor) -> None:
        """Add a block's attention `[rows, pixels, tokens]`, averaged over heads. Raises ValueError unless square."""
        probabilities = probabilities[-self.n :].float().cpu()
        side = math.isqrt(probabilities.shape[1])
        if side * side != probabilities.shape[1]:
            raise ValueError(f"attention over {probabilities.shape[1]} pixels: maps need square pictures")
        maps = probabilities.mT.unflatten(-1, (side, side))
        self.total = self.total + F.interpolate(maps, (self.size, self.size), mode="bilinear")
        self.count += 1

    def mean(self) -> Tensor:
        """Return the maps `[n, tokens, size, size]`, which sum to 1 over the tokens. Raises ValueError without any."""
        if not self.count:
            raise ValueError("no cross-attention ran: there are no maps")
        return self.total / self.count


def without_maps(denoiser: nn.Module) -> str | None:
    """Return the reason why a denoiser has no maps, or None if it has: its cross-attention reads the prompt alone."""
    name = type(denoiser).__name__
    if any(getattr(module, "added_kv_proj_dim", None) is not None for module in denoiser.modules()):
        return f"{name} attends to prompt and picture together"
    if name in FAMILIES and not FAMILIES[name].words_in_place:
        return f"{name} reads an instruction before the prompt, so that words have no fixed positions"
    return None


@contextmanager
def recording_attention(denoiser: nn.Module, n: int, size: int) -> Iterator[Maps]:
    """Yield Maps that collect the attention of every cross-attention block whenever the denoiser runs in the context.

    Works with any attention processor. n: number of prompts; the last n rows of a guided batch are conditional.
    """
    maps, handles = Maps(n, size), []
    block: Any
    for block in denoiser.modules():
        if getattr(block, "is_cross_attention", False):
            queries: list[Tensor] = []
            masks: list[Tensor | None] = []
            handles.append(block.register_forward_pre_hook(_keep_mask(masks), with_kwargs=True))
            handles.append(block.to_q.register_forward_hook(_keep(queries)))
            handles.append(block.to_k.register_forward_hook(_attend(block, queries, masks, maps)))
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def _keep(queries: list[Tensor]) -> Callable:
    def hook(_module: nn.Module, _args: tuple, output: Tensor) -> None:
        queries[:] = [output]

    return hook


def _keep_mask(masks: list[Tensor | None]) -> Callable:
    def hook(_module: nn.Module, _args: tuple, kwargs: dict[str, Any]) -> None:
        masks[:] = [kwargs.get("attention_mask")]  # added to the scores: `[b, 1, tokens]`

    return hook


def _attend(block: Any, queries: list[Tensor], masks: list[Tensor | None], maps: Maps) -> Callable:
    def hook(_module: nn.Module, _args: tuple, output: Tensor) -> None:
        q, k = (x[-maps.n :].float().unflatten(-1, (block.heads, -1)).transpose(1, 2) for x in (queries[0], output))
        q = q if block.norm_q is None else block.norm_q(q)
        k = k if block.norm_k is None else block.norm_k(k)
        scores = block.scale * q @ k.mT
        if masks[0] is not None:
            scores = scores + masks[0][-maps.n :, None].float()
        maps.add(scores.softmax(-1).mean(1))

    return hook


def word_tokens(tokenizer: Any, prompt: str, word: str) -> list[int]:
    """Return the positions of a word's tokens in a tokenised prompt; an empty list if the word is not in it."""
    ids = tokenizer(prompt).input_ids
    wanted = tokenizer(word, add_special_tokens=False).input_ids
    for i in range(len(ids) - len(wanted) + 1):
        if wanted and ids[i : i + len(wanted)] == wanted:
            return list(range(i, i + len(wanted)))
    return []


def overlay(picture: Tensor, heat: Tensor, size: int = 256) -> Tensor:
    """Blend a picture `[3, h, w]` in [-1, 1], in grey, with a map `[h', w']` in colour; return `[3, size, size]`."""
    import matplotlib

    x = F.interpolate(picture[None], (size, size), mode="bilinear")[0].mean(0).clamp(-1, 1) / 2 + 0.5
    heat = F.interpolate(heat[None, None], (size, size), mode="bicubic")[0, 0].clamp(min=0)
    heat = (heat - heat.min()) / (heat.max() - heat.min()).clamp(min=1e-12)
    color = torch.from_numpy(matplotlib.colormaps["inferno"](heat.numpy())[..., :3]).float()
    blend = 0.35 * x[..., None] + 0.65 * color
    return (blend * 2 - 1).permute(2, 0, 1)
