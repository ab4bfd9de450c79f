"""Image encoders for measuring pictures: models like CLIP and DINO, from a folder or the Hub."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullbooth.errors import InputError
from nullbooth.models.files import normalisation, picture_size
from nullbooth.models.loading import load_whole
from nullbooth.models.parts import lacking_words, read_json
from nullbooth.storage.tensorfile import load_tensors, save_tensors

_EMBEDDED = "nullbooth-embeddings-1"


@dataclass(frozen=True)
class Encoder:
    """An image encoder with the size and normalisation of its images, and `tokenizer` and `heads` if it has any."""

    model: Any
    size: int
    mean: Tensor
    std: Tensor
    tokenizer: Any = None
    heads: Any = None
    attributes: dict[str, list[str]] = field(default_factory=dict)

    def prepare(self, x: Tensor) -> Tensor:
        """Return images `x: [n, 3, h, w]` in [-1, 1] resized (bicubic, antialiased) and normalised."""
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
        return (x.clamp(-1, 1) / 2 + 0.5 - self.mean[:, None, None]) / self.std[:, None, None]


def load_encoder(path: str, revision: str | None = None, device: torch.device | str = "cpu") -> Encoder:
    """Load a CLIP- or DINO-like encoder in float32, with attribute heads from `heads.safetensors` and `heads.json` if
    its folder has them. Raises InputError."""
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import cached_file

    options = {"revision": revision, "trust_remote_code": False}
    # DINO of 2021 is a ViT published without the pooler that transformers expects.
    model = load_whole(AutoModel, path, f"evaluate: {path}", ("pooler",), dtype=torch.float32, **options).eval()
    preprocessor = Path(cached_file(path, "preprocessor_config.json", revision=revision))
    size = picture_size(about := read_json(preprocessor), f"evaluate: {preprocessor}")
    tokenizer = None
    if hasattr(model, "get_text_features"):
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
        except (ImportError, LookupError, ValueError, OSError) as error:
            raise InputError(f"evaluate: {path}: its tokenizer cannot be loaded: {error}") from error
        if lacking_words(len(tokenizer), model.config.get_text_config().vocab_size):
            raise InputError(f"evaluate: {path}: its tokenizer has only {len(tokenizer)} tokens; download it again")
    heads, attributes = None, {}
    if (Path(path) / "heads.json").is_file():
        attributes = json.loads((Path(path) / "heads.json").read_text(encoding="utf-8"))
        weights = load_file(Path(path) / "heads.safetensors")
        heads = nn.Linear(weights["weight"].shape[1], weights["weight"].shape[0])
        heads.load_state_dict(weights)
    mean, std = map(torch.tensor, normalisation(about, f"evaluate: {preprocessor}"))
    return Encoder(model.to(device), size, mean, std, tokenizer, heads, attributes)


def load_encoders(paths: dict[str, str], identity: dict[str, str], device: torch.device | str) -> dict[str, Encoder]:
    """Load the encoders `clip` and `dino` of the config's `evaluate`, at revisions of `identity`. Raises InputError."""
    found = {
        name: load_encoder(paths[name], identity[name].partition("@")[2] or None, device) for name in ("clip", "dino")
    }
    if found["clip"].tokenizer is None:  # for models of the Hub: preflight checks folders only
        raise InputError(f"evaluate.clip: {paths['clip']} has no text encoder; give a CLIP or SigLIP model")
    return found


def features_of(output: Any) -> Tensor:
    """Return the features `[n, d]` of a model's output: pooled ones, or without these, the class token's."""
    if isinstance(output, Tensor):
        return output
    pooled = output.get("pooler_output")
    return output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


@torch.no_grad()
def embed_images(encoder: Encoder, x: Tensor, batch: int = 16) -> Tensor:
    """Return unit embeddings `[n, d]` on the CPU of images `x: [n, 3, h, w]` in [-1, 1], `batch` images per pass."""
    features = []
    for part in x.split(batch):
        pixels = encoder.prepare(part).to(encoder.model.device)
        if encoder.tokenizer is not None:
            found = features_of(encoder.model.get_image_features(pixel_values=pixels))
        else:
            found = features_of(encoder.model(pixel_values=pixels))
        features.append(found.cpu())
    return F.normalize(torch.cat(features), dim=-1)


def save_embeddings(path: Path | str, found: dict[tuple[str, str], Tensor]) -> None:
    """Write unit embeddings `[n, d]` by encoder and group of prompts."""
    save_tensors(path, {f"{name}.{group}": part for (name, group), part in found.items()}, {"format": _EMBEDDED})


def read_embeddings(path: Path | str) -> dict[tuple[str, str], Tensor]:
    """Read a file of `save_embeddings`. Raises InputError that names it if it is damaged."""
    hint = f"delete {path} and run the same command again"
    tensors, _ = load_tensors(path, _EMBEDDED, "embeddings of pictures", hint)
    parted = ((key.partition("."), part) for key, part in tensors.items())
    return {(name, group): part for (name, _, group), part in parted}


@torch.no_grad()
def embed_texts(encoder: Encoder, texts: list[str]) -> Tensor:
    """Return unit embeddings `[n, d]` on the CPU of texts by a CLIP-like encoder."""
    # Some tokenizers do not know how many tokens the model reads.
    most = min(encoder.tokenizer.model_max_length, encoder.model.config.get_text_config().max_position_embeddings)
    tokens = encoder.tokenizer(texts, padding="max_length", max_length=most, truncation=True, return_tensors="pt")
    # SigLIP has no attention mask: it was trained with visible padding.
    known = {key: tokens[key].to(encoder.model.device) for key in ("input_ids", "attention_mask") if key in tokens}
    features = encoder.model.get_text_features(**known)
    return F.normalize(features_of(features).cpu(), dim=-1)
