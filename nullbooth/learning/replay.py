"""Replay of the protected prompts: denoiser inputs drawn at random from stored trajectories."""

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from nullbooth.statistics.records import TrajectoryStore
from nullbooth.statistics.trajectories import of_any_prompts

CACHED_BYTES = 1 << 30  # most bytes of latents kept in memory
TURN = 25  # consecutive batches drawn from one shard, whose conditions stay in memory


class Replay:
    """Random samples of stored trajectories, uniform over prompts, calls of the denoiser and branches of guidance.

    Only the conditions of one shard and at most `CACHED_BYTES` of latents are in memory. Shards take turns, with
    probabilities proportional to their prompts. A batch depends only on its number, so that resumed training draws the
    same ones.
    """

    def __init__(self, shards: Sequence[str], identity: dict):
        """shards: paths of TrajectoryStores. Raises StoreError for one of another model, sampler or precision."""
        self._shards = [TrajectoryStore(path, of_any_prompts(identity)) for path in shards]
        shapes = [store.shape for store in self._shards]
        self._sizes = torch.tensor([float(shape[1]) for shape in shapes])
        largest = max(4 * prod(shape[1:]) for shape in shapes)
        self._latents = lru_cache(max(1, CACHED_BYTES // largest))(self._read_latents)
        self._opened = lru_cache(1)(self._open)

    def _read_latents(self, shard: int, call: int) -> Tensor:
        return self._shards[shard].latents(call)

    def _open(self, shard: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        store = self._shards[shard]
        return torch.tensor(store.timesteps), store.conditions(), store.constants()

    def draw(self, n: int, number: int, distinct: int | None = None) -> dict[str, Tensor | dict[str, Tensor]]:
        """Return batch `number` of `n` samples: `sample: [n, ...]`, the denoiser's `timestep: [n]`, and by keyword
        `conditions` `[n, ...]` and `constants`. distinct: most different timesteps in it (None: `n`)."""
        turn = torch.Generator().manual_seed((1 << 41) + number // TURN)
        shard = int(torch.multinomial(self._sizes, 1, generator=turn))
        timesteps, conditions, constants = self._opened(shard)
        generator = torch.Generator().manual_seed((1 << 42) + number)
        calls, rows, branches = (
            torch.randint(limit, (n,), generator=generator)
            for limit in (len(timesteps), int(self._sizes[shard]), len(next(iter(conditions.values()))))
        )
        calls = calls[torch.arange(n) % (distinct or n)]
        pairs = zip(calls.tolist(), rows.tolist(), strict=True)
        return {
            "sample": torch.stack([self._latents(shard, call)[row] for call, row in pairs]),
            "timestep": timesteps[calls],
            "conditions": {key: value[branches, rows] for key, value in conditions.items()},
            "constants": constants,
        }
