"""The file of an adapter: changes of weights by site, the vectors of a word, and what is said of them."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from nullbooth.errors import InputError
from nullbooth.storage.tensorfile import load_tensors, save_tensors

FORMAT = "nullbooth-adapter-1"


WORD = "word."  # before the name of a text encoder, of the tensors that it reads for the identifier


MEND = "copy it again, or delete it and learn the subject again"


@dataclass(frozen=True)
class AdapterInfo:
    """What a saved adapter says of itself."""

    scope: str  # or the name of a rival method, whose change is the same at all timesteps
    rank: int | str
    timesteps: tuple[float, ...]  # cached timesteps; the first axis of `down` where that is not 1
    denoiser: str  # class name
    model: str  # identity of the model it was trained on
    prompt: str  # what calls the subject
    rule: str
    identifier: str = ""  # where text encoders read vectors of their own for it (nullbooth.learning.inversion)
    guided: bool | None = None  # whether the protected prompts were sampled with guidance; None: unknown


def write_adapter(path: Path | str, tensors: dict[str, Tensor], info: AdapterInfo) -> None:
    """Write changes of weights as a safetensors file, by site `up` and `down` or `delta`, and the vectors of a word."""
    save_tensors(path, tensors, {"format": FORMAT, "info": json.dumps(asdict(info))})


def split_word(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Changes of weights, and the vectors of the identifier by text encoder."""
    word = {key.removeprefix(WORD): value for key, value in tensors.items() if key.startswith(WORD)}
    return {key: value for key, value in tensors.items() if not key.startswith(WORD)}, word


def read_adapter(path: Path | str, model: str | None = None) -> tuple[dict[str, Tensor], AdapterInfo]:
    """Tensors (float32) and description of a saved adapter, which must be of `model` where that identity is given.

    Raises InputError if the file is something else or damaged.
    """
    tensors, metadata = load_tensors(path, FORMAT, "a NullBooth adapter", MEND)
    try:
        said = json.loads(metadata["info"])
        info = AdapterInfo(**{**said, "timesteps": tuple(map(float, said["timesteps"]))})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: its description is broken; {MEND}") from error
    if model is not None and info.model != model:
        raise InputError(f"{path}: made for the model {info.model}, not for {model}; train it again for this one")
    if problem := _unsound(tensors, info):
        raise InputError(f"{path}: {problem}; the file is damaged: {MEND}")
    return {key: value.float() for key, value in tensors.items()}, info


def _unsound(tensors: dict[str, Tensor], info: AdapterInfo) -> str | None:
    """What is wrong with an adapter's tensors, if anything: shapes must agree site by site, and entries be finite."""
    steps = (1, len(info.timesteps))
    if not steps[1] or not all(map(math.isfinite, info.timesteps)):
        return f"timesteps {info.timesteps[:3]}"
    sites: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, value in tensors.items():
        if not value.is_floating_point() or not value.float().isfinite().all():
            return f"{key} has entries that are no finite numbers"
        site, _, part = key.rpartition(".")
        sites.setdefault(site, {})[part] = tuple(value.shape)
    for part, shape in sites.pop(WORD[:-1], {}).items():
        if len(shape) != 2 or not info.identifier:
            return f"{WORD}{part} of shape {shape} is no word"
    for site, shapes in sites.items():
        match shapes:
            case {"up": (_, a), "down": (s, b, _), **rest} if a == b and s in steps and not rest:
                pass
            case {"delta": (_, a), "vectors": (s, b, c), "gain": (t, d), "keep": (u,), **rest} if (
                (a, c, t, u) == (b, d, s, s) and s in steps and not rest
            ):
                pass
            case {"delta": _, **rest} if not rest:
                pass
            case _:
                return f"{site or 'a tensor without a site'} has {shapes}, which is no change of a weight"
    return None if sites else "no tensor is in it"
