"""From stored trajectories to moments, and from stored eigenvectors to projectors under a rank rule."""

from collections.abc import Callable

import torch
import zarr
from torch import nn

from nullbooth import store
from nullbooth.moments import Moment, collecting
from nullbooth.projector import Projector, projector
from nullbooth.sites import Feature, find_features, find_sites
from nullbooth.trajectories import denoiser_inputs


def moments_at(
    denoiser: nn.Module,
    trajectory: str,
    step: int,
    projections: list[str],
    batch: int,
    identity: dict,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Moment], list[Feature], list[float]]:
    """Moments by feature name at timestep index `step` over one stored trajectory, the features, and all timesteps.

    What does not depend on the timestep is collected at index 0 alone.
    """
    group = store.read(trajectory, identity)
    timesteps = group["timesteps"][:].tolist()
    other = timesteps[step - 1] if step else timesteps[-1]
    sites = find_sites(denoiser, tuple(projections))
    device = next(denoiser.parameters()).device
    latents, conditions = torch.from_numpy(group["latents"][step]), stored_conditions(group)
    probe = [denoiser_inputs(latents, t, conditions, slice(0, 1), device) for t in (timesteps[step], other)]
    found = find_features(sites, lambda i: denoiser(**probe[i]))
    features = [f for f in found if step == 0 or not f.static]
    with collecting({f.name: sites[f.name] for f in features}) as moments:
        for i in range(0, len(latents), batch):
            denoiser(**denoiser_inputs(latents, timesteps[step], conditions, slice(i, i + batch), device))
            progress(min(i + batch, len(latents)), len(latents))
    return moments, features, timesteps


def protected_passes(denoiser: nn.Module, shards: list[str], identity: dict, every: int) -> Callable[[], None]:
    """A function that runs the denoiser on all stored trajectories, each `every`th step, one sample at a time."""
    of_any_prompts = {key: value for key, value in identity.items() if key != "prompts"}

    @torch.no_grad()
    def run() -> None:
        device = next(denoiser.parameters()).device
        for group in (store.read(path, of_any_prompts) for path in shards):
            timesteps = group["timesteps"][:].tolist()
            conditions = stored_conditions(group)
            branches = len(next(iter(conditions.values())))
            for step in range(0, len(timesteps), every):
                latents = torch.from_numpy(group["latents"][step])
                for branch in range(branches):
                    given = {k: v[branch : branch + 1] for k, v in conditions.items()}
                    for i in range(len(latents)):
                        denoiser(**denoiser_inputs(latents, timesteps[step], given, slice(i, i + 1), device))

    return run


def stored_conditions(group: zarr.Group) -> dict[str, torch.Tensor]:
    """What the denoiser was given besides latents and timestep: tensors `[branches, n, ...]` by keyword."""
    return {k.removeprefix("condition:"): torch.from_numpy(group[k][:]) for k in group if k.startswith("condition:")}


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
