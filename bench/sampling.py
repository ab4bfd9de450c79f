"""Cost of sampling with a loaded adapter of scope timestep: 50 cached steps, weights set once per timestep.

Runs base and adapted passes of the denoiser (both branches of guidance, batch 2) over the same timesteps, in turn. The
last row adds the time of setting weights, measured alone, to the base: the whole cost of an adapter, without the noise
of passes. Bar: 1.02 times the base.
"""

import statistics
from itertools import cycle

import torch
from common import (
    TIMESTEPS,
    build_unet,
    denoiser_arguments,
    denoiser_inputs,
    parser,
    report,
    seconds,
    side_by_side,
    twin,
)
from torch import Tensor, nn

from nullbooth.adapters.file import AdapterInfo
from nullbooth.adapters.loaded import LoadedAdapter
from nullbooth.models.precision import autocast
from nullbooth.models.sites import find_sites

BAR = 1.02


def random_tensors(sites: dict[str, nn.Linear], rank: int) -> dict[str, Tensor]:
    """Return the tensors of a saved adapter: `down` has a step axis, of length 1 at sites that read the prompt."""
    tensors = {}
    for name, linear in sites.items():
        steps = 1 if name.endswith(("to_k", "to_v")) else len(TIMESTEPS)
        tensors[f"{name}.down"] = torch.randn(steps, rank, linear.in_features) * 1e-2
        tensors[f"{name}.up"] = torch.randn(linear.out_features, rank) * 1e-2
    return tensors


def load(unet: nn.Module, rank: int) -> LoadedAdapter:
    info = AdapterInfo("timestep", rank, TIMESTEPS, type(unet).__name__, "random", "a photo of a sks dog", "none")
    return LoadedAdapter(unet, random_tensors(find_sites(unet), rank), info, scale=1.0)


def set_weights(adapter: LoadedAdapter, repeats: int) -> float:
    """Return the median seconds of one change of timestep."""
    steps = cycle(torch.tensor(TIMESTEPS))
    return statistics.median(seconds(lambda: adapter._before(None, (None, next(steps)), {})) for _ in range(repeats))


def main(args) -> None:
    torch.manual_seed(0)
    base = build_unet(args.size, args.device)
    adapted = twin(base)
    adapter = load(adapted, args.rank)
    inputs = denoiser_inputs(base, 2, args.latents, 0.0)
    visited = torch.tensor(TIMESTEPS[:: len(TIMESTEPS) // args.passes][: args.passes], device=base.device)

    def passes(unet: nn.Module) -> None:
        for timestep in visited:
            unet(**{**inputs, "timestep": timestep})

    with torch.no_grad(), autocast(base.device, args.precision):
        times = side_by_side({"base": lambda: passes(base), "adapter": lambda: passes(adapted)}, args.repeats)
        switch = set_weights(adapter, 20) * args.passes
    rows = [{"variant": name, **row, "bar": BAR if name == "adapter" else None} for name, row in times.items()]
    alone = times["base"]["seconds"]
    total = alone + switch
    rows.append({"variant": "base + setting weights", "seconds": total, "ratio": total / alone, "bar": BAR})
    report("sampling", rows, args)


if __name__ == "__main__":
    p = denoiser_arguments(parser(__doc__))
    p.add_argument("--passes", type=int, default=2, help="timesteps per timing")
    p.add_argument("--rank", type=int, default=16)
    main(p.parse_args())
