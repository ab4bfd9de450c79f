"""Projectors of every site: from stored eigenvectors under a rank rule, and as tensors for training."""

import numpy as np
import torch
from torch import Tensor, nn

from nullbooth.statistics.projector import Projector, projector
from nullbooth.statistics.records import EigenStore


class SiteProjectors(nn.Module):
    """Projectors of one site at S timesteps, P[s] = keep[s] * I + V[s] diag(gain[s]) V[s]^T.

    Buffers: gain `[S, k]` (negative if V spans the protected directions), keep `[S]`. vectors: V `[S, in, k]`, which
    stay in host memory, because those of a large model do not fit on a GPU. The V of a timestep is copied to the GPU
    when it is used; the `room` last used ones stay there.
    """

    gain: Tensor
    keep: Tensor

    def __init__(self, projectors: list[Projector]):
        super().__init__()
        k = max(len(p.gain) for p in projectors)
        pad = [k - len(p.gain) for p in projectors]
        vectors = torch.zeros(len(projectors), len(projectors[0].basis), k)
        for i, p in enumerate(projectors):
            vectors[i, :, : len(p.gain)] = torch.from_numpy(p.basis)
        gain = [np.pad(-p.gain if p.complement else p.gain, (0, n)) for p, n in zip(projectors, pad, strict=True)]
        self.vectors = vectors.pin_memory() if torch.cuda.is_available() else vectors
        self.room = len(projectors)
        self._held: dict[int, Tensor] = {}  # by step, the last used at the end
        self.register_buffer("gain", torch.from_numpy(np.stack(gain)), persistent=False)
        self.register_buffer("keep", torch.tensor([float(p.complement) for p in projectors]), persistent=False)

    def __len__(self) -> int:
        return len(self.keep)

    def fetch(self, step: int) -> Tensor:
        """Return V of one timestep, `[in, k]` float32 on the device of the buffers."""
        v = self._held.pop(step, None)
        if v is None or v.device != self.gain.device:
            v = self.vectors[step].to(self.gain.device, non_blocking=True)
        self._held[step] = v
        while len(self._held) > self.room:
            del self._held[next(iter(self._held))]
        return v

    def project(self, a: Tensor, steps: list[int]) -> Tensor:
        """Return `a P[s]` for `a: [..., in]` and each `s` of `steps`, stacked: `[len(steps), ..., in]` float32."""
        with torch.autocast(a.device.type, enabled=False):
            found = []
            for s in steps:  # one at a time: stacking the V would copy the largest tensors here
                v = self.fetch(s)
                found.append(self.keep[s] * a + ((a @ v) * self.gain[s]) @ v.mT)
            return torch.stack(found)

    @property
    def step_bytes(self) -> int:
        """Size of V at one timestep, in bytes."""
        return self.vectors[0].numel() * self.vectors.element_size()


def site_projectors(
    paths: list[str], identity: dict, rule: str, value: float
) -> tuple[dict[str, list[Projector]], list[float]]:
    """Return the projectors by site name, one per store in `paths` (a single one for static features), and the cached
    timesteps.

    Sites that read the same feature share one list. Raises StoreError, and ProjectorError if a site has no free
    direction.
    """
    stores = [EigenStore(path, identity) for path in paths]
    found: dict[str, list[Projector]] = {}
    sites: dict[str, tuple[str, ...]] = {}
    for store in stores:
        for feature in store.features:
            name = feature.name
            where = name if store.timestep is None else f"{name} at timestep {store.timestep:g}"
            w, u = store.values(name), store.vectors(name)
            found.setdefault(name, []).append(projector(w, u, rule, value, where, store.reference(name)))
            sites[name] = feature.sites
    return {site: found[name] for name in found for site in sites[name]}, stores[0].timesteps


def free_share(projectors: dict[str, list[Projector]]) -> dict[str, float]:
    """Share of free directions of each site, its mean over timesteps."""
    return {name: sum(p.free / len(p.basis) for p in ps) / len(ps) for name, ps in projectors.items()}


def short_of(projectors: dict[str, list[Projector]], rank: int) -> list[str]:
    """Return the sites with fewer free directions than `rank` at some timestep."""
    return [name for name, ps in projectors.items() if min(p.free for p in ps) < rank]


def in_order(sites: dict[str, nn.Linear], projectors: dict[str, list[Projector]]) -> dict[str, nn.Linear]:
    """Return the sites with projectors, in the order of `sites`. Raises KeyError if a projector has no site."""
    if unknown := set(projectors) - set(sites):
        raise KeyError(
            f"the statistics have a site {sorted(unknown)[0]} that the denoiser lacks: use statistics of this model"
        )
    return {name: module for name, module in sites.items() if name in projectors}
