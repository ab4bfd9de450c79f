"""Size on disk of the statistics: NullBooth's stores of one timestep, written and measured, against dense matrices.

NullBooth: packed triangles of float64 sums, float64 eigenvalues and float32 eigenvectors, once per distinct feature;
static features once in all. Dense: a float32 covariance and a float32 projector for every site and timestep, written by
the same store with the same compression. `50 timesteps` is computed from one.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from common import MIB, TIMESTEPS, build_unet, named_features, parser, report

from nullbooth.models.sites import find_sites
from nullbooth.models.sites_by_name import Feature
from nullbooth.statistics.moments import Moment
from nullbooth.statistics.projector import decompose, projector
from nullbooth.storage import zarrstore

BATCHES = 16  # a sum of fewer float32 products has zeros in its last bits, and would compress too well


def random_moment(width: int) -> Moment:
    """Return the moment of correlated random features, with more rows than directions."""
    mixing = torch.randn(width, width) * torch.logspace(0, -3, width)
    moment = Moment.zero(width)
    for _ in range(BATCHES):
        moment.add(torch.randn(width // 4, width) @ mixing)
    return moment


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def written(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> int:
    """Write a store of these arrays; return its bytes."""
    zarrstore.write(folder / name, arrays, {"model": "random", "prompts": "random"})
    return bytes_of(folder / name)


def our_bytes(folder: Path, features: Iterable[Feature]) -> tuple[int, int]:
    """Return the bytes of the stores of covariances and of projectors."""
    sums, decompositions = {}, {}
    for feature in features:
        moment = random_moment(feature.width)
        sums[feature.name] = zarrstore.pack_symmetric(moment.total.numpy())
        w, u = decompose(moment.mean().numpy(), feature.name)
        decompositions |= {f"{feature.name}:values": w, f"{feature.name}:vectors": u}
    return written(folder, "covariances.zarr", sums), written(folder, "projectors.zarr", decompositions)


def dense_bytes(folder: Path, widths: dict[str, int]) -> tuple[int, int]:
    """Return the same for float32 matrices of every layer. Layers of one width share one, as only its size matters."""
    dense = {}
    for width in set(widths.values()):
        c = random_moment(width).mean().numpy()
        dense[width] = c.astype(np.float32), projector(*decompose(c), "energy", 1e-3).dense()
    parts = ({name: dense[width][i] for name, width in widths.items()} for i in range(2))
    covariances, projectors = (written(folder, f"dense{i}.zarr", part) for i, part in enumerate(parts))
    return covariances, projectors


def rows_of(sizes: dict[str, tuple[int, int]]) -> list[dict]:
    """Return the rows of the table. sizes: bytes per timestep, and bytes written once."""
    whole = {name: step * len(TIMESTEPS) + once for name, (step, once) in sizes.items()}
    return [
        {"variant": name, "MiB per timestep": step / MIB, "MiB once": once / MIB, "50 timesteps, GiB": total / 2**30}
        | {"share of dense": total / whole[f"dense {name.split()[-1]}"]}
        for (name, (step, once)), total in zip(sizes.items(), whole.values(), strict=True)
    ]


def main(args) -> None:
    torch.manual_seed(0)
    sites = find_sites(build_unet(args.size, "meta"))
    features = named_features(sites)
    with tempfile.TemporaryDirectory() as folder:
        step = our_bytes(Path(folder), [f for f in features if not f.static])
        once = our_bytes(Path(folder), [f for f in features if f.static])
        dense = dense_bytes(Path(folder), {name: module.in_features for name, module in sites.items()})
    sizes = {}
    for i, kind in enumerate(("covariances", "projectors")):
        sizes |= {f"nullbooth {kind}": (step[i], once[i]), f"dense {kind}": (dense[i], 0)}
    raw = 4 * sum(module.in_features**2 for module in sites.values())
    print(
        f"{len(sites)} layers, {len(features)} distinct features; dense matrices uncompressed: {raw / MIB:.1f} MiB each"
    )
    sizes["nullbooth both"] = (sum(step), sum(once))
    sizes["dense both"] = (sum(dense), 0)
    report("storage", rows_of(sizes), args)


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
