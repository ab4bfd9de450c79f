"""How well a subject was learned and how far everything else moved, picture by picture.

Encoders are any CLIP-shaped and any DINO-shaped model of transformers, by folder or Hub id. Distances of whole sets
of pictures are in nullbooth.distances, intervals in nullbooth.intervals.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nullbooth.models.files import picture_size, read_json
from nullbooth.models.loading import load_whole
from nullbooth.storage.tensorfile import load_tensors, save_tensors

_EMBEDDED = "nullbooth-embeddings-1"


def possible(metric: str) -> tuple[float, float]:
    """The least and the greatest value that a metric can have; intervals are cut to them. Not for differences."""
    if metric.endswith("_accuracy") or metric in ("as_meant", "gone", "clip_prefers"):
        return 0.0, 1.0
    positive = metric in ("pixel_mse", "lpips") or metric.endswith(("_drift", "_div"))
    return (0.0, math.inf) if positive else (-math.inf, math.inf)


@dataclass(frozen=True)
class Encoder:
    """An image encoder and how it wants its images; `tokenizer` and `heads` where it has them."""

    model: nn.Module
    size: int
    mean: Tensor
    std: Tensor
    tokenizer: object | None = None
    heads: nn.Linear | None = None
    attributes: dict[str, list[str]] | None = None

    def prepare(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` in [-1, 1], resized (bicubic, antialiased) and normalised."""
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
        return (x.clamp(-1, 1) / 2 + 0.5 - self.mean[:, None, None]) / self.std[:, None, None]


def load_encoder(path: str, revision: str | None = None, device: torch.device | str = "cpu") -> Encoder:
    """A CLIP- or DINO-shaped encoder, float32; attribute heads from `heads.safetensors` and `heads.json` beside it."""
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import cached_file

    options = {"revision": revision, "trust_remote_code": False}
    # DINO of 2021 is a ViT that was published without the pooler that transformers gives to one.
    model = load_whole(AutoModel, path, f"evaluate: {path}", ("pooler",), dtype=torch.float32, **options).eval()
    about = Path(cached_file(path, "preprocessor_config.json", revision=revision))
    size = picture_size(config := read_json(about), f"evaluate: {about}")
    tokenizer = AutoTokenizer.from_pretrained(path, **options) if hasattr(model, "get_text_features") else None
    heads = attributes = None
    if (Path(path) / "heads.json").is_file():
        attributes = json.loads((Path(path) / "heads.json").read_text(encoding="utf-8"))
        weights = load_file(Path(path) / "heads.safetensors")
        heads = nn.Linear(weights["weight"].shape[1], weights["weight"].shape[0])
        heads.load_state_dict(weights)
    mean, std = torch.tensor(config["image_mean"]), torch.tensor(config["image_std"])
    return Encoder(model.to(device), size, mean, std, tokenizer, heads, attributes)


def load_encoders(paths: dict[str, str], identity: dict[str, str], device: torch.device | str) -> dict[str, Encoder]:
    """The encoders `clip` and `dino` of the config's `evaluate`, of the revisions that `identity` names."""
    return {
        name: load_encoder(paths[name], identity[name].partition("@")[2] or None, device) for name in ("clip", "dino")
    }


def _tensor(output: object) -> Tensor:
    """Features `[n, d]` of a model's output: the pooled ones, or where none are those of the class token."""
    if isinstance(output, Tensor):
        return output
    pooled = output.get("pooler_output")
    return output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


@torch.no_grad()
def embed_images(encoder: Encoder, x: Tensor, batch: int = 16) -> Tensor:
    """Unit embeddings `[n, d]`, on the CPU, of images `[n, 3, h, w]` in [-1, 1]; `batch` of them in one pass."""
    features = []
    for part in x.split(batch):
        pixels = encoder.prepare(part).to(encoder.model.device)
        if encoder.tokenizer is not None:
            found = _tensor(encoder.model.get_image_features(pixel_values=pixels))
        else:
            found = _tensor(encoder.model(pixel_values=pixels))
        features.append(found.cpu())
    return F.normalize(torch.cat(features), dim=-1)


def save_embeddings(path: Path | str, found: dict[tuple[str, str], Tensor]) -> None:
    """Write unit embeddings `[n, d]` by encoder and group of prompts."""
    save_tensors(path, {f"{name}.{group}": part for (name, group), part in found.items()}, {"format": _EMBEDDED})


def read_embeddings(path: Path | str) -> dict[tuple[str, str], Tensor]:
    """What `save_embeddings` wrote. Raises InputError that names the file if it is damaged."""
    mend = f"delete {path} and run the same command again"
    tensors, _ = load_tensors(path, _EMBEDDED, "embeddings of pictures", mend)
    return {tuple(key.split(".", 1)): part for key, part in tensors.items()}


@torch.no_grad()
def embed_texts(encoder: Encoder, texts: list[str]) -> Tensor:
    """Unit embeddings `[n, d]`, on the CPU, of texts by a CLIP-shaped encoder."""
    tokens = encoder.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    # SigLIP's has no attention mask: it was trained with the padding in sight.
    known = {key: tokens[key].to(encoder.model.device) for key in ("input_ids", "attention_mask") if key in tokens}
    features = encoder.model.get_text_features(**known)
    return F.normalize(_tensor(features).cpu(), dim=-1)


def subject_fidelity(images: Tensor, references: Tensor) -> Tensor:
    """Mean cosine `[n]` of each image embedding `[n, d]` to the references `[m, d]` (DreamBooth, arXiv 2208.12242)."""
    return (images @ references.T).mean(1)


def paired_drift(tuned: Tensor, base: Tensor) -> Tensor:
    """(1 - cos)/2 `[n]` of unit embeddings of images drawn from the same noise by tuned and base model. As a square it
    is never below 0, and exact where little changed."""
    return (tuned - base).square().sum(1) / 4


def diversity(embeddings: Tensor, groups: list[str]) -> dict[str, Tensor]:
    """(1 - cos)/2 of every pair of unit embeddings `[n, d]` within a group, by group.

    DIV of DreamBooth (arXiv 2208.12242), which takes LPIPS in place of an encoder: pictures of one prompt, another
    noise. Groups of one picture have no pair and are left out.
    """
    found = {}
    for name in dict.fromkeys(groups):
        part = embeddings[[i for i, group in enumerate(groups) if group == name]]
        if len(part) > 1:
            i, j = torch.triu_indices(len(part), len(part), 1)
            found[name] = paired_drift(part[i], part[j])
    return found


# AlexNet's five convolutions: name, stride, padding, and whether a pooling comes before.
_ALEXNET = (
    ("features.0", 4, 2, False),
    ("features.3", 1, 2, True),
    ("features.6", 1, 1, True),
    ("features.8", 1, 1, False),
    ("features.10", 1, 1, False),
)


def load_lpips(path: Path | str) -> dict[str, Tensor]:
    """Weights for `lpips` from a safetensors file. Raises ValueError if one is missing."""
    from safetensors.torch import load_file

    weights = load_file(path)
    needed = [f"{name}.{part}" for name, *_ in _ALEXNET for part in ("weight", "bias")]
    needed += [f"lin{k}.model.1.weight" for k in range(len(_ALEXNET))]
    if missing := [name for name in needed if name not in weights]:
        raise ValueError(
            f"evaluate.lpips: {path} has no {missing[0]}; it must hold torchvision's AlexNet and the heads of lpips"
        )
    return weights


@torch.no_grad()
def lpips(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """LPIPS distance `[n]` (arXiv 1801.03924, AlexNet, version 0.1) of images `[n, 3, h, w]` in [-1, 1].

    `weights` holds the trunk by torchvision's names (`features.0.weight`, ...) and the heads by those of the lpips
    package (`lin0.model.1.weight`, ...). Pictures below 64 pixels are enlarged: the trunk needs 31 at least.
    """
    mean = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    std = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    total = torch.zeros(len(x))
    if min(x.shape[-2:]) < 64:
        x, y = (F.interpolate(z, (64, 64), mode="bicubic", antialias=True) for z in (x, y))
    x, y = (x - mean) / std, (y - mean) / std
    for k, (name, stride, padding, pooled) in enumerate(_ALEXNET):
        if pooled:
            x, y = F.max_pool2d(x, 3, 2), F.max_pool2d(y, 3, 2)
        w, b = weights[f"{name}.weight"], weights[f"{name}.bias"]
        x, y = (F.relu(F.conv2d(z, w, b, stride, padding)) for z in (x, y))
        unit = [z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10) for z in (x, y)]
        total += F.conv2d((unit[0] - unit[1]) ** 2, weights[f"lin{k}.model.1.weight"]).mean((1, 2, 3))
    return total


@torch.no_grad()
def attribute_accuracy(encoder: Encoder, x: Tensor, prompts: list[str]) -> dict[str, list[float | None]]:
    """For every attribute that a prompt names, whether the picture shows it (1 or 0), by attribute; None elsewhere.

    A value is named if its words stand in the prompt; `background` is the colour before that word, `color` another.
    """
    passes = (encoder.prepare(part).to(encoder.model.device) for part in x.split(16))
    features = torch.cat([_tensor(encoder.model(pixel_values=pixels)).cpu() for pixels in passes])
    logits = encoder.heads(features).split([len(v) for v in encoder.attributes.values()], -1)
    hits: dict[str, list[float | None]] = {}
    for name, part in zip(encoder.attributes, logits, strict=True):
        values = encoder.attributes[name]
        truths = [named_attribute(name, values, prompt) for prompt in prompts]
        if any(truths):
            seen = (values[i] for i in part.argmax(-1).tolist())
            hits[name] = [None if t is None else float(v == t) for t, v in zip(truths, seen, strict=True)]
    return hits


def edited_attributes(
    encoder: Encoder, x: Tensor, sources: list[str], targets: list[str]
) -> dict[str, list[float | None]]:
    """What pictures `[n, 3, h, w]` drawn for `sources`, which are meant as `targets`, show of the attributes in which
    these differ: `as_meant`, all that the target names (1 or 0, None if it names none), and `gone`, nothing of the
    source's."""
    of, to = attribute_accuracy(encoder, x, sources), attribute_accuracy(encoder, x, targets)
    found: dict[str, list[float | None]] = {"as_meant": [], "gone": []}
    for i, texts in enumerate(zip(sources, targets, strict=True)):
        named = {name: [named_attribute(name, values, t) for t in texts] for name, values in encoder.attributes.items()}
        differing = [name for name, (a, b) in named.items() if a != b]
        shown = [to[name][i] for name in differing if named[name][1] is not None]
        still = [of[name][i] for name in differing if named[name][0] is not None]
        found["as_meant"].append(min(shown, default=None))
        found["gone"].append(1 - max(still) if still else None)
    return found


def only_named(hits: dict[str, list[float | None]]) -> dict[str, list[float]]:
    """`attribute_accuracy` without the prompts that leave an attribute open."""
    return {name: [value for value in values if value is not None] for name, values in hits.items()}


def named_attribute(name: str, values: list[str], prompt: str) -> str | None:
    """The value of an attribute that a prompt of the embedded world names, or None if it leaves it open."""
    before, _, ground = f" {prompt}".partition(" on a ")
    ground = ground.removesuffix(" background").split()
    if name in ("background", "pattern"):
        named = next((v for v in values if v in ground), None)
        return named or ("plain" if name == "pattern" and ground else None)
    words = before.split()
    return next((v for v in values if v and (v in words or f" {v} " in f" {before} ")), None)
