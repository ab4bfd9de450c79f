"""Changes of weights in the null space of protected features.

    scope      weight at timestep index s        protects
    timestep   W + scale * B (A P[s])            outputs at protected features of each timestep
    pooled     W + scale * B (A P)               the same, by one P for all timesteps, with fewer free directions
    shared     W + scale * B A                   nothing exactly: only each update is projected, by its timestep's P[s]

with A: [rank, in] and B: [out, rank], or D: [out, in] in place of B A for `rank: full`. The projection is part of
the parametrisation, because adaptive optimisers rescale each entry: a projected gradient is not a projected update.
Biases stay frozen, because a bias has no null space.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from nullbooth.adapters.file import AdapterInfo, write_adapter
from nullbooth.models.timesteps import nearest_index, timestep_argument
from nullbooth.statistics.projector import Projector
from nullbooth.statistics.site_projectors import SiteProjectors

if TYPE_CHECKING:
    from nullbooth.learning.training import TrainSettings

Rank = int | Literal["full"]
SCOPES = ("timestep", "pooled", "shared")


class SiteAdapter(nn.Module):
    """The trainable change of one site."""

    def __init__(self, linear: nn.Linear, projectors: SiteProjectors, scope: str, rank: Rank, alpha: float | None):
        super().__init__()
        out_features, in_features = linear.weight.shape
        self.projectors, self.scope, self.full = projectors, scope, rank == "full"
        if rank == "full":
            self.scale = 1.0
            self.delta = nn.Parameter(torch.zeros(out_features, in_features))
        else:
            self.scale = 1.0 if alpha is None else alpha / rank
            self.down, self.up = (
                nn.Parameter(torch.zeros(rank, in_features)),
                nn.Parameter(torch.zeros(out_features, rank)),
            )
            # One factor starts at zero: `down` for `shared`, which projects updates, not weights; otherwise `up`.
            start = self.up if scope == "shared" else self.down
            nn.init.normal_(start, std=1 / math.sqrt(start.shape[1]))

    @property
    def projected(self) -> nn.Parameter:
        """The input-side factor, `[rank, in]`, or `[out, in]` for full rank."""
        return self.delta if self.full else self.down

    def weights(self, steps: list[int]) -> Tensor:
        """Return the effective input-side factor `[len(steps), r, in]`, or `[1, r, in]` if all steps share it."""
        if self.scope == "shared":
            return self.projected[None]
        return self.projectors.project(self.projected, [0] if len(self.projectors) == 1 else steps)

    def forward(self, x: Tensor, steps: list[int], sample_steps: Tensor) -> Tensor:
        """Return the change of the site's output for input `x: [b, tokens, in]`.

        steps: the distinct timestep indices of the batch; sample_steps: index into `steps` of each sample `[b]`, or of
        all samples `[1]`.
        """
        weights = self.weights(steps)
        y = x @ weights[0].mT if len(weights) == 1 else torch.bmm(x, weights[sample_steps].mT.to(x.dtype))
        return self.scale * (y if self.full else y @ self.up.mT)


class Adapter(nn.Module):
    """All site adapters of a denoiser, and the cached timesteps of their projectors. A `Trainable`."""

    timesteps: Tensor
    _steps: tuple[list[int], Tensor]  # of the current batch

    def __init__(
        self,
        sites: dict[str, nn.Linear],
        projectors: dict[str, list[Projector]],
        timesteps: list[float],
        scope: str = "timestep",
        rank: Rank = 16,
        alpha: float | None = None,
    ):
        """projectors: by site, one per timestep or one for all. Raises ValueError for any other number or scope."""
        super().__init__()
        if scope not in SCOPES:
            raise ValueError(f"scope {scope!r}: use one of {', '.join(SCOPES)}")
        shared: dict[int, SiteProjectors] = {}  # sites of one feature have the same list: keep it once
        self.names = list(sites)
        self._sites: list[SiteAdapter] = []
        for name, linear in sites.items():
            given = projectors[name]
            if len(given) not in (1, len(timesteps)):
                raise ValueError(f"{name}: {len(given)} projectors for {len(timesteps)} timesteps")
            if id(given) not in shared:
                shared[id(given)] = SiteProjectors(given)
            self._sites.append(SiteAdapter(linear, shared[id(given)], scope, rank, alpha))
        self.site_adapters = nn.ModuleList(self._sites)
        self.scope, self.rank = scope, rank
        self.register_buffer("timesteps", torch.tensor(timesteps, dtype=torch.float64), persistent=False)
        self._resting = False
        self._copies: Any = None  # CUDA stream that copies projectors during the previous batch

    def nearest(self, timestep: Tensor) -> Tensor:
        """Return the index of the nearest cached timestep for each entry of `timestep: []` or `[b]`."""
        return nearest_index(self.timesteps, timestep)

    @property
    def projectors(self) -> list[SiteProjectors]:
        """All projectors, each once: sites that read the same feature share them."""
        return list(dict.fromkeys(site.projectors for site in self._sites))

    @property
    def one_timestep(self) -> bool:
        """True for scope `shared`, which projects an update for one timestep only."""
        return self.scope == "shared"

    def refuse(self, settings: "TrainSettings") -> None:
        """Raise ValueError, naming the setting, for settings that the scope does not allow."""
        if self.one_timestep and settings.accumulation > 1:
            raise ValueError("train.accumulation: scope shared projects each update for one timestep, so it must be 1")

    def prepare(self, distinct: int, share: float = 0.25) -> None:
        """Keep projectors on the GPU: of as many timesteps as fit into `share` of its free memory, but at least of two
        batches of `distinct` timesteps."""
        if self.timesteps.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.timesteps.device)
            room = max(2 * distinct, int(share * free / max(1, sum(p.step_bytes for p in self.projectors))))
            for projectors in self.projectors:
                projectors.room = min(len(projectors), room)
            self._copies = torch.cuda.Stream()

    def prefetch(self, timestep: Tensor) -> None:
        """Start to copy the projectors of the next batch, at `timestep: [b]`, to the GPU in parallel to its work."""
        if self._copies is None:
            return
        steps = self.nearest(timestep).unique().tolist()
        with torch.cuda.stream(self._copies):
            for projectors in self.projectors:
                for step in steps if len(projectors) > 1 else [0]:
                    projectors.fetch(step).record_stream(torch.cuda.default_stream())

    @contextmanager
    def attached(self, denoiser: nn.Module) -> Iterator["Adapter"]:
        """Run the denoiser with this adapter inside the context; its own weights do not change."""
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
        for name, site in zip(self.names, self._sites, strict=True):
            handles.append(modules[name].register_forward_hook(change(site)))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def disabled(self, _denoiser: nn.Module) -> Iterator[None]:
        """Run the base model inside the context, within `attached`."""
        self._resting = True
        try:
            yield
        finally:
            self._resting = False

    def before_update(self) -> list[Tensor] | None:
        """Return copies of the input-side factors for scope `shared`, else None."""
        return self.snapshot() if self.one_timestep else None

    def after_update(self, before: list[Tensor] | None, timestep: Tensor) -> None:
        """Scope `shared`: project the update by the projectors of its timestep."""
        if before is not None:
            self.project_updates(before, self.nearest(timestep)[0])

    @torch.no_grad()
    def project_updates(self, before: list[Tensor], step: Tensor) -> None:
        """Scope `shared`: replace the change since `before` of every input-side factor by (change) P[step]."""
        for old, site in zip(before, self._sites, strict=True):
            index = int(step) if len(site.projectors) > 1 else 0
            site.projected.copy_(old + site.projectors.project(site.projected - old, [index])[0])

    def snapshot(self) -> list[Tensor]:
        """Return copies of the input-side factors, for `project_updates`."""
        return [site.projected.detach().clone() for site in self._sites]

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save, float32 on the CPU: `down: [S, r, in]` (projected) and `up: [out, r]` (scaled);
        for full rank `delta: [out, in]`, and the site's projectors if it has several."""
        saved: dict[str, Tensor] = {}
        steps = list(range(len(self.timesteps)))
        for name, site in zip(self.names, self._sites, strict=True):
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
        """Write a safetensors file for `load_adapter`."""
        write_adapter(path, self.tensors(), info)
