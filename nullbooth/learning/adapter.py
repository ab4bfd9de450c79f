"""Weight changes that live in the null space of protected features.

    scope      weight at timestep index s        promises
    timestep   W + scale * B (A P[s])            outputs at protected features, step by step
    pooled     W + scale * B (A P)               the same at all steps at once, with less free space
    shared     W + scale * B A                   nothing: each update is projected by its own step's P[s] only

with A: [rank, in] and B: [out, rank], or D: [out, in] in place of B A for `rank: full`. The projection is part of
the parametrisation: adaptive optimisers rescale entry by entry, so a projected gradient is not a projected update.
Biases stay frozen, for a bias has no null space.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nullbooth.adapters.file import AdapterInfo, write_adapter
from nullbooth.models.timesteps import nearest_index, timestep_argument
from nullbooth.statistics.projector import Projector
from nullbooth.statistics.site_projectors import SiteProjectors

if TYPE_CHECKING:
    from nullbooth.learning.training import TrainSettings

SCOPES = ("timestep", "pooled", "shared")


class SiteAdapter(nn.Module):
    """The trained part of one site. `steps`, set before each forward pass, selects P[s] for every sample."""

    def __init__(self, linear: nn.Linear, projectors: SiteProjectors, scope: str, rank: int | str, alpha: float | None):
        super().__init__()
        out_features, in_features = linear.weight.shape
        self.projectors, self.scope, self.full = projectors, scope, rank == "full"
        self.scale = 1.0 if self.full or alpha is None else alpha / rank
        if self.full:
            self.delta = nn.Parameter(torch.zeros(out_features, in_features))
        else:
            self.down, self.up = (
                nn.Parameter(torch.zeros(rank, in_features)),
                nn.Parameter(torch.zeros(out_features, rank)),
            )
            # One factor starts at zero. It is `down` for `shared`, whose updates and not weights are projected.
            start = self.up if scope == "shared" else self.down
            nn.init.normal_(start, std=1 / math.sqrt(start.shape[1]))

    @property
    def projected(self) -> nn.Parameter:
        """The factor on the input side."""
        return self.delta if self.full else self.down

    def weights(self, steps: list[int]) -> Tensor:
        """The input-side factor as it acts at `steps`: `[len(steps), r, in]`, or `[1, r, in]` if all steps share it."""
        if self.scope == "shared":
            return self.projected[None]
        return self.projectors.project(self.projected, [0] if len(self.projectors) == 1 else steps)

    def forward(self, x: Tensor, steps: list[int], sample_steps: Tensor) -> Tensor:
        """Change of the site's output for input `x: [b, tokens, in]`.

        `steps` are the `u` distinct timestep indices of the batch, `sample_steps: [b]` says which one each sample has
        (or `[1]`, one for all).
        """
        weights = self.weights(steps)
        y = x @ weights[0].mT if len(weights) == 1 else torch.bmm(x, weights[sample_steps].mT.to(x.dtype))
        return self.scale * (y if self.full else y @ self.up.mT)


class Adapter(nn.Module):
    """All site adapters of a denoiser, trainable, with the cached timesteps that their projectors belong to."""

    def __init__(
        self,
        sites: dict[str, nn.Linear],
        projectors: dict[str, list[Projector]],
        timesteps: list[float],
        scope: str = "timestep",
        rank: int | str = 16,
        alpha: float | None = None,
    ):
        """`projectors[site]` has one entry per timestep, or a single one that serves all of them."""
        super().__init__()
        if scope not in SCOPES:
            raise ValueError(f"scope {scope!r}: use one of {', '.join(SCOPES)}")
        shared: dict[int, SiteProjectors] = {}  # sites of one feature come with the same list: keep it once
        self.names = list(sites)
        self.site_adapters = nn.ModuleList()
        for name, linear in sites.items():
            given = projectors[name]
            if len(given) not in (1, len(timesteps)):
                raise ValueError(f"{name}: {len(given)} projectors for {len(timesteps)} timesteps")
            if id(given) not in shared:
                shared[id(given)] = SiteProjectors(given)
            self.site_adapters.append(SiteAdapter(linear, shared[id(given)], scope, rank, alpha))
        self.scope, self.rank = scope, rank
        self.register_buffer("timesteps", torch.tensor(timesteps, dtype=torch.float64), persistent=False)
        self._steps: tuple[list[int], Tensor] | None = None  # of the batch in flight
        self._resting = False
        self._copies: Any = None  # the CUDA stream that copies projectors while the batch before is at work

    def nearest(self, timestep: Tensor) -> Tensor:
        """Index of the nearest cached timestep for each entry of `timestep: []` or `[b]`."""
        return nearest_index(self.timesteps, timestep)

    @property
    def projectors(self) -> list[SiteProjectors]:
        """Each once: sites that read one feature share them."""
        return list(dict.fromkeys(site.projectors for site in self.site_adapters))

    @property
    def one_timestep(self) -> bool:
        """An update of scope `shared` can be projected for one timestep only."""
        return self.scope == "shared"

    def refuse(self, settings: "TrainSettings") -> None:
        """Raise ValueError for settings that the scope does not allow."""
        if self.one_timestep and settings.accumulation > 1:
            raise ValueError("train.accumulation: scope shared projects each update for one timestep, so it must be 1")

    def prepare(self, distinct: int, share: float = 0.25) -> None:
        """Let the GPU keep the projectors of as many timesteps as fit into this share of its free memory, and at least
        those of two batches of `distinct` timesteps."""
        if self.timesteps.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.timesteps.device)
            room = max(2 * distinct, int(share * free / max(1, sum(p.step_bytes for p in self.projectors))))
            for projectors in self.projectors:
                projectors.room = min(len(projectors), room)
            self._copies = torch.cuda.Stream()

    def prefetch(self, timestep: Tensor) -> None:
        """Begin to copy the projectors that a batch will need, `timestep: [b]`, beside what the GPU is doing."""
        if self._copies is None:
            return
        steps = self.nearest(timestep).unique().tolist()
        with torch.cuda.stream(self._copies):
            for projectors in self.projectors:
                for step in steps if len(projectors) > 1 else [0]:
                    projectors.fetch(step).record_stream(torch.cuda.default_stream())

    @contextmanager
    def attached(self, denoiser: nn.Module) -> Iterator["Adapter"]:
        """Let the denoiser run with this adapter; its own weights stay as they are."""
        modules = dict(denoiser.named_modules())

        def remember(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            steps, of_sample = self.nearest(timestep_argument(args, kwargs)).unique(return_inverse=True)
            self._steps = steps.tolist(), of_sample
            if self._copies is not None:
                torch.cuda.current_stream().wait_stream(self._copies)

        def change(site: SiteAdapter) -> Callable:
            def hook(_module: nn.Module, args: tuple, output: Tensor) -> Tensor:
                if self._resting:
                    return output
                return output + site(args[0], *self._steps).to(output.dtype)

            return hook

        handles = [denoiser.register_forward_pre_hook(remember, with_kwargs=True)]
        for name, site in zip(self.names, self.site_adapters, strict=True):
            handles.append(modules[name].register_forward_hook(change(site)))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def disabled(self, _denoiser: nn.Module) -> Iterator[None]:
        """The base model, for a while, where this adapter is attached."""
        self._resting = True
        try:
            yield
        finally:
            self._resting = False

    def before_update(self) -> list[Tensor] | None:
        """Copies of the input-side factors for scope `shared`."""
        return self.snapshot() if self.one_timestep else None

    def after_update(self, before: list[Tensor] | None, timestep: Tensor) -> None:
        """Scope `shared`: keep of the update what the projectors of its timestep let through."""
        if before is not None:
            self.project_updates(before, self.nearest(timestep)[0])

    @torch.no_grad()
    def project_updates(self, before: list[Tensor], step: Tensor) -> None:
        """Scope `shared`: replace the change since `before` of every input-side factor by (change) P[step]."""
        for old, site in zip(before, self.site_adapters, strict=True):
            index = int(step) if len(site.projectors) > 1 else 0
            site.projected.copy_(old + site.projectors.project(site.projected - old, [index])[0])

    def snapshot(self) -> list[Tensor]:
        """Copies of the input-side factors, for `project_updates`."""
        return [site.projected.detach().clone() for site in self.site_adapters]

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """What is saved: `down: [S, r, in]` (projected), `up: [out, r]` (scaled); for full rank `delta: [out, in]`
        and the site's projectors."""
        saved: dict[str, Tensor] = {}
        steps = list(range(len(self.timesteps)))
        for name, site in zip(self.names, self.site_adapters, strict=True):
            if not site.full:
                saved[f"{name}.down"] = site.weights(steps)
                saved[f"{name}.up"] = site.up * site.scale
            elif site.scope == "shared" or len(site.projectors) == 1:
                saved[f"{name}.delta"] = site.weights(steps)[0]
            else:
                saved[f"{name}.delta"] = site.delta
                saved |= {f"{name}.{key}": getattr(site.projectors, key) for key in ("vectors", "gain", "keep")}
        return {key: value.detach().float().cpu().contiguous().clone() for key, value in saved.items()}

    def save(self, path: Path | str, info: AdapterInfo) -> None:
        """Write a safetensors file with all that `load_adapter` needs."""
        write_adapter(path, self.tensors(), info)
