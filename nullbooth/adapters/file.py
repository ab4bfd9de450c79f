"""File format of adapters: changes of weights by site, vectors of the identifier, and a description."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from nullbooth.errors import InputError
from nullbooth.storage.tensorfile import load_tensors, save_tensors

FORMAT = "nullbooth-adapter-1"


WORD = "word."  # prefix of a text encoder's name, for its vectors of the identifier


HINT = "copy it again, or delete it and train again"


@dataclass(frozen=True)
class AdapterInfo:
    """Description of a saved adapter."""

    scope: str  # or the name of a rival method, whose change is the same at every timestep
    rank: int | str
    timesteps: tuple[float, ...]  # cached ones; the first axis of `down` has this length or 1
    denoiser: str  # class name
    model: str  # identity of the model it was trained on
    prompt: str  # calls the subject
    rule: str
    identifier: str = ""  # set if text encoders have learned vectors for it (nullbooth.learning.inversion)
    guided: bool | None = None  # protected prompts were sampled with guidance; None: unknown


def write_adapter(path: Path | str, tensors: dict[str, Tensor], info: AdapterInfo) -> None:
    """Write an adapter as a safetensors file: `up` and `down`, or `delta`, by site, and vectors of the identifier."""
    save_tensors(path, tensors, {"format": FORMAT, "info": json.dumps(asdict(info))})


def split_word(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split tensors into changes of weights by key, and vectors of the identifier `[k, d]` by text encoder."""
    word = {key.removeprefix(WORD): value for key, value in tensors.items() if key.startswith(WORD)}
    return {key: value for key, value in tensors.items() if not key.startswith(WORD)}, word


def read_adapter(path: Path | str, model: str | None = None) -> tuple[dict[str, Tensor], AdapterInfo]:
    """Return tensors (float32) and description of a saved adapter.

    Raises InputError if the file is damaged or not an adapter, or if `model`, an identity, is not its model.
    """
    tensors, metadata = load_tensors(path, FORMAT, "a NullBooth adapter", HINT)
    try:
        said = json.loads(metadata["info"])
        info = AdapterInfo(**{**said, "timesteps": tuple(map(float, said["timesteps"]))})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: its description is broken; {HINT}") from error
    if model is not None and info.model != model:
        raise InputError(f"{path}: made for the model {info.model}, not for {model}; train it again for this one")
    if problem := _unsound(tensors, info):
        raise InputError(f"{path}: {problem}; the file is damaged: {HINT}")
    return {key: value.float() for key, value in tensors.items()}, info


def _unsound(tensors: dict[str, Tensor], info: AdapterInfo) -> str | None:
    """Return what is wrong with an adapter's tensors, or None. Shapes must agree at each site, entries be finite."""
    steps = (1, len(info.timesteps))
    if not steps[1] or not all(map(math.isfinite, info.timesteps)):
        return f"timesteps {info.timesteps[:3]} are none or not finite"
    sites: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, value in tensors.items():
        if not value.is_floating_point() or not value.float().isfinite().all():
            return f"{key} has entries that are not finite numbers"
        site, _, part = key.rpartition(".")
        sites.setdefault(site, {})[part] = tuple(value.shape)
    for part, shape in sites.pop(WORD[:-1], {}).items():
        if len(shape) != 2 or not info.identifier:
            return f"{WORD}{part} of shape {shape} is not a set of vectors for an identifier"
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
                return f"{site or 'a tensor without a site'} has {shapes}, which is not a change of a weight"
    return None if sites else "it contains no tensor"
