"""Lengths of prompts in tokens, and the lengths that a model reads; imports neither torch nor transformers."""

from collections.abc import Callable, Iterable
from inspect import signature
from pathlib import Path
from textwrap import shorten
from typing import Any

from nullbooth.errors import InputError
from nullbooth.inputs.text import shown
from nullbooth.models.parts import read_json

_TOO_LONG = 10  # times the length that the text encoder reads: a mistake, not a prompt
_CLIP_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def check_lengths(prompts: Iterable[tuple[str, str]], model: Path) -> list[str]:
    """Return warnings about prompts (key, text) that all text encoders of a model folder cut off. Raises InputError
    for a prompt over ten times as long, or a broken tokenizer."""
    key_of = {text: key for key, text in prompts}
    counters = [tokens(folder) for folder in sorted(model.glob("tokenizer*/"))]
    limit, count = max(filter(None, counters), key=lambda pair: pair[0], default=(0, None))
    cut = []
    if count:
        doubtful = [text for text in key_of if len(text.encode()) > limit]  # tokens have at least one byte
        cut = [(key_of[text], text, n) for text, n in zip(doubtful, count(doubtful), strict=True) if n > limit]
    return judge_lengths(cut, limit)


def check_read(pipeline: Any, prompts: list[str], most: int | None = None) -> list[str]:
    """Return the warnings of `check_lengths`, from the tokenizers of a loaded pipeline (files of a Hub model may not be
    here earlier). most: tokens that the pipeline reads, end token included, if set by the user.
    """
    default = signature(pipeline.__call__).parameters.get("max_sequence_length")
    found = [part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part is not None]
    tokenizer = max(found, key=lambda tokenizer: tokenizer.model_max_length)
    read = most or (default.default if default else tokenizer.model_max_length)
    limit = min(tokenizer.model_max_length, read) - 2
    counted = tokenizer(prompts, add_special_tokens=False).input_ids
    cut = [("prompt", text, len(ids)) for text, ids in zip(prompts, counted, strict=True) if len(ids) > limit]
    return judge_lengths(cut, limit)


def judge_lengths(cut: list[tuple[str, str, int]], limit: int) -> list[str]:
    """Return at most four warnings about prompts (key, text, tokens) of which a text encoder reads `limit` tokens.
    Raises InputError for a prompt over ten times as long."""
    said = [
        f"{key}: {shown(text)} has {n} tokens, of which the text encoder reads {limit}: the rest is lost; shorten it"
        for key, text, n in cut
    ]
    if worst := [line for line, (_, _, n) in zip(said, cut, strict=True) if n > _TOO_LONG * limit]:
        raise InputError(worst[0])
    return [*said[:3], *([f"{len(said)} prompts are longer than the text encoder reads"] if said[3:] else [])]


def tokens(folder: Path) -> tuple[int, Callable[[list[str]], list[int]]] | None:
    """Return the most tokens of a text that a tokenizer's model reads, start and end tokens excluded, and a function
    that counts them in texts; None if the folder does not tell. Raises InputError if the tokenizer is broken.
    """
    from tokenizers import Tokenizer

    config = folder / "tokenizer_config.json"
    limit = read_json(config).get("model_max_length") if config.is_file() else None
    if not isinstance(limit, int) or not 2 < limit < 1 << 20:
        return None
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif (folder / "merges.txt").is_file():
            tokenizer = clip_tokenizer(folder)
        else:
            return None
    except Exception as error:  # the library raises no subclass
        reason = shorten(str(error), 300)  # it may quote the whole file
        raise InputError(f"{folder}: a broken tokenizer ({reason}); download the model again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: list[str]) -> list[int]:
        return [len(found) for found in tokenizer.encode_batch(texts, add_special_tokens=False)]

    return limit - 2, count


def clip_tokenizer(folder: Path) -> Any:
    """Build CLIP's tokenizer from vocab.json and merges.txt, like transformers."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    names = str(folder / "vocab.json"), str(folder / "merges.txt")
    tokenizer = Tokenizer(BPE.from_file(*names, end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_CLIP_WORD), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer
