"""Subject fidelity, drift and diversity of pictures, from their unit embeddings."""

import math

import torch
from torch import Tensor


def possible(metric: str) -> tuple[float, float]:
    """Return the smallest and largest possible value of a metric, to clip intervals. Not for differences."""
    if metric.endswith("_accuracy") or metric in ("as_meant", "gone", "clip_prefers"):
        return 0.0, 1.0
    positive = metric in ("pixel_mse", "lpips") or metric.endswith(("_drift", "_div"))
    return (0.0, math.inf) if positive else (-math.inf, math.inf)


def subject_fidelity(images: Tensor, references: Tensor) -> Tensor:
    """Mean cosine `[n]` of each image embedding `[n, d]` to the references `[m, d]` (DreamBooth, arXiv 2208.12242)."""
    return (images @ references.T).mean(1)


def paired_drift(tuned: Tensor, base: Tensor) -> Tensor:
    """(1 - cos)/2 `[n]` between unit embeddings `[n, d]` of images drawn from the same noise by tuned and base model.
    Computed as a square, it is never negative, and exact for small changes."""
    return (tuned - base).square().sum(1) / 4


def diversity(embeddings: Tensor, groups: list[str]) -> dict[str, Tensor]:
    """(1 - cos)/2 of every pair of unit embeddings `[n, d]` within a group, by group.

    DIV of DreamBooth (arXiv 2208.12242), which uses LPIPS instead of an encoder, for pictures of one prompt from
    different noise. Groups of one picture are left out.
    """
    found = {}
    for name in dict.fromkeys(groups):
        part = embeddings[[i for i, group in enumerate(groups) if group == name]]
        if len(part) > 1:
            i, j = torch.triu_indices(len(part), len(part), 1)
            found[name] = paired_drift(part[i], part[j])
    return found
