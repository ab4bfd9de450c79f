"""Parts of a model folder and the files of each that are loaded; imports neither torch nor diffusers."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nullbooth.errors import InputError, SettingsError
from nullbooth.inputs.text import read_text

# Parts that are never loaded: they check pictures or read image prompts, and drawing from a prompt does not need them.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
_STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
LIBRARIES = tuple(_STEMS)
# The config file that a part of each kind must have.
_CONFIGS = {
    "model": "config.json",
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "processor": "preprocessor_config.json",
}
_WORDS = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
SENTENCES = ("spiece.model", "tokenizer.model", "spm.model", "sentencepiece.bpe.model")
_LETTERS = 1000  # most tokens not built by merges: single bytes, their forms at the end of a word, special tokens
_TOKENIZER = (_CONFIGS["tokenizer"], *_WORDS, *SENTENCES, "special_tokens_map.json", "added_tokens.json")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises InputError for anything else."""
    try:
        if isinstance(found := json.loads(read_text(path)), dict):
            return found
    except (json.JSONDecodeError, RecursionError):
        pass
    raise InputError(f"{path}: not a JSON object; download the model again")


def kind_of(cls: str) -> str:
    """Return the kind of a part by the name of its class: `model`, `scheduler`, `tokenizer` or `processor`."""
    if cls.endswith(("Processor", "FeatureExtractor")):
        return "processor"
    return next((kind for kind in ("scheduler", "tokenizer") if kind in cls.lower()), "model")


def config_name(cls: str) -> str:
    """Return the name of the config file of a part of this class."""
    return _CONFIGS[kind_of(cls)]


def weight_files(part: Path, library: str, variant: str | None = None) -> list[Path]:
    """Return the files of weights that `library` reads from a folder: one file, or an index and its shards, or none.

    variant: such as `fp16` in `model.fp16.safetensors`. If both forms exist, diffusers reads the shards and
    transformers the one file. Raises InputError for an index that lists nothing, or files in other folders.
    """
    middle = f".{variant}" if variant else ""
    whole = part / f"{_STEMS[library]}{middle}.safetensors"
    index = part / f"{_STEMS[library]}.safetensors.index{middle}.json"
    if index.is_file() and (library == "diffusers" or not whole.is_file()):
        return [index, *_shards(index)]
    return [whole] if whole.is_file() else []


def _shards(index: Path) -> list[Path]:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise InputError(f"{index}: lists no weights; download the model again")
    names = sorted({str(name) for name in listed.values()})
    for name in names:
        if Path(name).name != name:
            raise InputError(f"{index}: {name!r} is outside its folder; download the model again")
    return [index.parent / name for name in names]


def weights_name(library: str, variant: str | None) -> str:
    """Return the name of the file of a part's weights, if they are not in shards."""
    return f"{_STEMS[library]}{f'.{variant}' if variant else ''}.safetensors"


def has_variant(part: Path, variant: str | None) -> bool:
    """Check that a part of a pipeline has weights of a variant (`model.fp16.safetensors`)."""
    return variant is not None and any(weight_files(part, library, variant) for library in LIBRARIES)


def tokenizer_files(part: Path) -> list[Path]:
    """Return the existing files of a tokenizer."""
    return [part / name for name in _TOKENIZER if (part / name).is_file()]


def pipeline_files(
    folder: Path, parts: Mapping[str, tuple[str, str]], variant: str | None, weights: bool
) -> Iterator[Path]:
    """Yield the existing files of a pipeline folder that are loaded. parts: library and class by name;
    weights: include files of weights."""
    yield folder / "model_index.json"
    for name, (library, cls) in parts.items():
        part = folder / name
        if kind_of(cls) == "tokenizer":
            yield from tokenizer_files(part)
            continue
        if (config := part / config_name(cls)).is_file():
            yield config
        if weights and kind_of(cls) == "model":
            yield from weight_files(part, library, variant if has_variant(part, variant) else None)


def encoder_files(folder: Path) -> Iterator[Path]:
    """Yield the existing files of an evaluator's folder that are loaded."""
    names = ["config.json", "preprocessor_config.json", "heads.json"]
    if (folder / "heads.json").is_file():
        names.append("heads.safetensors")
    yield from (folder / name for name in names if (folder / name).is_file())
    yield from weight_files(folder, "transformers")
    if reads_text(folder):
        yield from tokenizer_files(folder)


def reads_text(folder: Path) -> bool:
    """Check in its config.json that a model of transformers has a text encoder. Raises InputError."""
    return bool({"text_config", "text_config_dict"} & read_json(folder / "config.json").keys())


def check_part(part: Path, cls: str, key: str) -> None:
    """Raise InputError if a part of a pipeline lacks its folder or config. key: setting that names the model."""
    if not part.is_dir():
        raise InputError(f"{key}: {part}: no such folder, but model_index.json lists it; download the model again")
    if not (part / config_name(cls)).is_file():
        raise InputError(f"{key}: {part} has no {config_name(cls)}; download the model again")


def check_words(part: Path, key: str, rows: object = None) -> None:
    """Refuse a tokenizer with an incomplete vocabulary, from which transformers would build one that knows no word.

    rows: number of embeddings of its text encoder, if known. Raises InputError.
    """
    names = {path.name for path in tokenizer_files(part)}
    again = "every prompt would mean the same; download the model again"
    if "tokenizer.json" in names:
        found, merges = _json_words(part / "tokenizer.json")
    elif {"vocab.json", "merges.txt"} <= names:
        found, merges = len(read_json(part / "vocab.json")), len(read_text(part / "merges.txt").split("\n"))
    elif sentences := [name for name in SENTENCES if name in names]:
        _check_sentencepiece(part / sentences[0], key)
        return
    elif "vocab.txt" in names:
        found, merges = len(read_text(part / "vocab.txt").split("\n")), None
    else:
        wanted = "tokenizer.json, vocab.json with merges.txt, or spiece.model"
        raise InputError(f"{key}: {part} has no vocabulary ({wanted}): {again}")
    if lacking_words(found, rows):
        beside = f", but its text encoder has {rows}" if isinstance(rows, int) else ""
        raise InputError(f"{key}: {part}: the vocabulary of this tokenizer has {found} tokens{beside}: {again}")
    if merges is not None and found > 2 * merges + _LETTERS:
        raise InputError(f"{key}: {part}: {found} tokens, but only {merges} merges to build them: {again}")


def lacking_words(tokens: int, rows: object) -> bool:
    """Check whether a vocabulary of so many tokens is incomplete. rows: embeddings of the text encoder, if known; up to
    a tenth of them may be padding."""
    return tokens < 10 or (isinstance(rows, int) and 10 * tokens < 9 * rows)


def _json_words(path: Path) -> tuple[int, int | None]:
    """Return the numbers of tokens and of merges (None unless BPE) in a tokenizer.json. Raises InputError."""
    model = read_json(path).get("model")
    if not isinstance(model, dict) or not isinstance(words := model.get("vocab"), dict | list):
        raise InputError(f"{path}: has no vocabulary; download the model again")
    merges = model.get("merges")
    return len(words), len(merges) if isinstance(merges, list) and model.get("type") == "BPE" else None


def _check_sentencepiece(path: Path, key: str) -> None:
    if path.stat().st_size < 1000:
        raise InputError(f"{key}: {path}: only {path.stat().st_size} bytes; download the model again")
    for package in ("sentencepiece", "google.protobuf"):
        if not _installed(package):
            name = package.removeprefix("google.")
            raise SettingsError(f"{key}: {path} needs a package that is not installed: pip install {name}")


@cache
def _installed(package: str) -> bool:
    outer, _, inner = package.partition(".")
    return find_spec(outer) is not None and (not inner or find_spec(package) is not None)
