"""The CLIP tokenizer of the world: every word of a caption is one token, other words are split."""

import json
import string
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from world.scenes import COLORS, PATTERNED, PATTERNS, POSITIONS, SHAPES, SIZES

IDENTIFIERS = ("sks", "zwx", "ohwx")  # whole tokens that no caption uses: they mean too little to serve as names
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 24


def words() -> list[str]:
    phrases = ("a photo of on background", PATTERNED, *SHAPES, *COLORS, *PATTERNS, *SIZES, *POSITIONS, *IDENTIFIERS)
    return sorted({word for phrase in phrases for word in phrase.split()})


def build() -> CLIPTokenizer:
    """Build a byte-level BPE tokenizer, trained until each word of the world is one token. Raises ValueError if not."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=5000,
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    letters = list(string.ascii_lowercase + string.digits + string.punctuation)  # their end-of-word forms
    bpe.train_from_iterator(words() * 2 + letters, trainer)
    state = json.loads(bpe.to_str())["model"]
    vocab = dict(sorted(state["vocab"].items(), key=lambda item: item[1]))
    for token in (BOS, EOS):
        vocab[token] = len(vocab)
    merges = [tuple(m) for m in state["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)
    broken = [word for word in words() if len(tokenizer(word).input_ids) != 3]
    if broken:
        raise ValueError(f"words in more than one token: {broken}")
    return tokenizer


def load(folder: Path) -> CLIPTokenizer:
    """Load the tokenizer in `folder`, or build and save it. Ties make BPE training differ from run to run, and token
    numbers are part of a model: a resumed training needs the tokenizer that it began with."""
    if not folder.exists():
        build().save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
