"""From the stores of projectors to the projectors of every site, under a rank rule."""

from torch import nn

from nullbooth import store
from nullbooth.projector import Projector, projector


def site_projectors(
    paths: list[str], identity: dict, rule: str, value: float
) -> tuple[dict[str, list[Projector]], list[float]]:
    """Projectors of every site, one per store in `paths` (or one in all, for what does not depend on the timestep).

    Returns them by site name, with the cached timesteps. Sites that read one feature share one list.
    """
    groups = [store.read(path, identity) for path in paths]
    found: dict[str, list[Projector]] = {}
    sites: dict[str, tuple[str, ...]] = {}
    for group in groups:
        for feature in group.attrs["features"]:
            name = feature["name"]
            w, u = group[f"{name}:values"][:], group[f"{name}:vectors"][:]
            where = name if group.attrs["timestep"] is None else f"{name} at timestep {group.attrs['timestep']:g}"
            found.setdefault(name, []).append(projector(w, u, rule, value, where))
            sites[name] = feature["sites"]
    return {site: found[name] for name in found for site in sites[name]}, groups[0].attrs["timesteps"]


def free_share(projectors: dict[str, list[Projector]]) -> dict[str, float]:
    """Mean share of free directions of each site."""
    return {name: sum(p.free / len(p.basis) for p in ps) / len(ps) for name, ps in projectors.items()}


def in_order(sites: dict[str, nn.Linear], projectors: dict[str, list[Projector]]) -> dict[str, nn.Linear]:
    """The sites that have projectors. Raises KeyError if a projector has no site in the denoiser."""
    if unknown := set(projectors) - set(sites):
        raise KeyError(
            f"the statistics know {sorted(unknown)[0]}, the denoiser does not: were they made for this model?"
        )
    return {name: module for name, module in sites.items() if name in projectors}
