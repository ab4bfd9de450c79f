"""Denoiser inputs of the protected prompts, drawn at random from the stored trajectories to be replayed."""

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from nullbooth.statistics.records import TrajectoryStore
from nullbooth.statistics.trajectories import of_any_prompts

CACHED_BYTES = 1 << 30  # of latents that are kept in memory, at most
TURN = 25  # batches in a row that are drawn from one shard, whose conditions are then in memory


class Replay:
    """Random samples of stored trajectories: any prompt, call of the denoiser and branch of guidance alike.

    Conditions of one shard at a time and at most `CACHED_BYTES` of latents are in memory. Shards take turns, each as
    often as it has prompts. A batch is a function of its number alone, so that a resumed training meets the same ones.
    """

    def __init__(self, shards: Sequence[str], identity: dict):
        """shards: trajectory stores. Raises StoreError for one of another model, sampler or precision."""
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
        """Batch `number` of `n` samples: `sample: [n, ...]`, `timestep: [n]` as the denoiser is given it, `conditions`
        `[n, ...]` and `constants` by keyword. distinct: different timesteps in it, at most."""
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
