"""Learned vectors of an identifier, which text encoders read instead of their own embeddings."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nullbooth.errors import InputError


def readers(pipeline: Any) -> dict[str, tuple[Any, nn.Module]]:
    """Return tokenizer and text encoder of a pipeline, by the encoder's name."""
    names = [name for name, part in pipeline.components.items() if name.startswith("text_encoder") and part is not None]
    tokenizers = {name: name.replace("text_encoder", "tokenizer") for name in names}
    return {name: (getattr(pipeline, tokenizers[name]), getattr(pipeline, name)) for name in names}


def embeddings(tokenizer: Any, encoder: nn.Module) -> list[nn.Embedding]:
    """Return the token embeddings of an encoder; it may have several, of which it calls one."""
    return [m for m in encoder.modules() if isinstance(m, nn.Embedding) and m.num_embeddings >= len(tokenizer)]


def tokens_of(tokenizer: Any, word: str) -> list[int]:
    """Return the token ids of a word, without special tokens."""
    return tokenizer(word, add_special_tokens=False).input_ids


def put(embedded: Tensor, ids: Tensor, pattern: list[int], vectors: Tensor) -> Tensor:
    """Put `vectors: [k, d]` into `embedded: [b, t, d]` wherever `ids: [b, t]` contain the `k` tokens of `pattern`."""
    if ids.ndim != 2 or ids.shape[1] < len(pattern):
        return embedded
    rows, columns = ids.unfold(1, len(pattern), 1).eq(torch.tensor(pattern, device=ids.device)).all(-1).nonzero().T
    if not len(rows):
        return embedded
    embedded = embedded.clone()
    for k, vector in enumerate(vectors):
        embedded[rows, columns + k] = vector.to(embedded)
    return embedded


def install(pipeline: Any, word: str, vectors: Mapping[str, Tensor]) -> list[RemovableHandle]:
    """Make text encoders read `vectors[name]: [k, d]` for the word; removing the returned handles undoes it.

    Raises InputError if the pipeline has other text encoders, or if a width or the number of tokens differs.
    """
    there, handles = readers(pipeline), []
    if set(vectors) != set(there):
        raise InputError(f"{word!r} has vectors for {', '.join(sorted(vectors))}; the pipeline has {', '.join(there)}")
    for name, (tokenizer, encoder) in there.items():
        pattern, found = tokens_of(tokenizer, word), embeddings(tokenizer, encoder)
        if vectors[name].shape != (len(pattern), found[0].embedding_dim):
            shape = tuple(vectors[name].shape)
            raise InputError(f"{word!r} has {name} vectors {shape}, which do not fit this text encoder")

        def hook(
            _module: nn.Module,
            args: tuple,
            output: Tensor,
            pattern: list[int] = pattern,
            learned: Tensor = vectors[name],
        ) -> Tensor:
            return put(output, args[0], pattern, learned)

        handles += [module.register_forward_hook(hook) for module in found]
    return handles
