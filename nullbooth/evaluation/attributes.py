"""Attributes of pictures of the embedded world, classified by the heads of its evaluator."""

import torch
from torch import Tensor

from nullbooth.evaluation.encoders import Encoder, features_of


@torch.no_grad()
def attribute_accuracy(encoder: Encoder, x: Tensor, prompts: list[str]) -> dict[str, list[float | None]]:
    """Return, by attribute and picture of `x: [n, 3, h, w]`, 1 if it shows the value that its prompt names, 0 if not,
    and None if the prompt names none.

    A value is named if its words occur in the prompt; `background` is the colour before that word, `color` another.
    """
    passes = (encoder.prepare(part).to(encoder.model.device) for part in x.split(16))
    features = torch.cat([features_of(encoder.model(pixel_values=pixels)).cpu() for pixels in passes])
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
    """Return, for pictures `[n, 3, h, w]` drawn for `sources` but meant as `targets`, by the attributes in which these
    differ: `as_meant`, 1 if all values of the target are shown, and `gone`, 1 if no value of the source is. Else 0;
    None if the target or source names no value."""
    of, to = attribute_accuracy(encoder, x, sources), attribute_accuracy(encoder, x, targets)
    found: dict[str, list[float | None]] = {"as_meant": [], "gone": []}
    for i, texts in enumerate(zip(sources, targets, strict=True)):
        named = {name: [named_attribute(name, values, t) for t in texts] for name, values in encoder.attributes.items()}
        differing = [name for name, (a, b) in named.items() if a != b]
        shown = [hit for name in differing if named[name][1] is not None and (hit := to[name][i]) is not None]
        still = [hit for name in differing if named[name][0] is not None and (hit := of[name][i]) is not None]
        found["as_meant"].append(min(shown, default=None))
        found["gone"].append(1 - max(still) if still else None)
    return found


def only_named(hits: dict[str, list[float | None]]) -> dict[str, list[float]]:
    """Return `attribute_accuracy` without its None values."""
    return {name: [value for value in values if value is not None] for name, values in hits.items()}


def named_attribute(name: str, values: list[str], prompt: str) -> str | None:
    """Return the value of an attribute that a prompt of the embedded world names, or None."""
    before, _, after = f" {prompt}".partition(" on a ")
    ground = after.removesuffix(" background").split()
    if name in ("background", "pattern"):
        named = next((v for v in values if v in ground), None)
        return named or ("plain" if name == "pattern" and ground else None)
    words = before.split()
    return next((v for v in values if v and (v in words or f" {v} " in f" {before} ")), None)
