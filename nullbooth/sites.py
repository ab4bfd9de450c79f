"""Which linear layers of a denoiser are protected, and which of them read the same tensor."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Feature:
    """One tensor that protected linears read: stored once, whatever the number of its readers."""

    name: str  # the first site that reads it
    sites: tuple[str, ...]
    width: int  # in_features
    static: bool  # the same at every timestep (the prompt embedding of a UNet)


def find_sites(denoiser: nn.Module, projections: tuple[str, ...] = PROJECTIONS) -> dict[str, nn.Linear]:
    """The linears of every cross-attention block, by module name, in the order of `named_modules`.

    `projections` are patterns for the name below the block (`to_k`, `to_out.*`). A block counts as
    cross-attention if diffusers says so (`Attention.is_cross_attention`).
    Raises ValueError if the projections are fused, wrapped by an adapter, or if there are none.
    """
    sites, seen = {}, set()
    for block, attention in denoiser.named_modules():
        if not getattr(attention, "is_cross_attention", False):
            continue
        # A fused processor says so by its name, or the block by a flag (which UNet blocks keep after unfusing).
        flagged = type(attention).__name__ != "Attention" and getattr(attention, "fused_projections", False)
        if flagged or "Fused" in type(attention.processor).__name__:
            raise ValueError(
                f"{block}: its projections are fused, so that to_k and to_v no longer exist; "
                "call unfuse_qkv_projections() on the denoiser first"
            )
        for name, module in attention.named_modules():
            if matching := [pattern for pattern in projections if fnmatchcase(name, pattern)]:
                seen.update(matching)
                if hasattr(module, "base_layer"):
                    raise ValueError(
                        f"{block}.{name} is wrapped by another adapter ({type(module).__name__}); "
                        "unload it (unload_lora_weights) before protecting the denoiser"
                    )
                if isinstance(module, nn.Linear):
                    sites[f"{block}.{name}"] = module
    if not sites:
        raise ValueError(
            f"{type(denoiser).__name__} has no cross-attention linear named {' or '.join(projections)}; "
            "check protect.projections in the config"
        )
    if unused := [pattern for pattern in projections if pattern not in seen]:
        raise ValueError(
            f"protect.projections: {unused[0]!r} is no linear of any cross-attention block; correct or remove it"
        )
    return sites


def find_features(sites: dict[str, nn.Linear], forward: Callable[[int], object]) -> list[Feature]:
    """Group sites by the identity of the tensor that they read.

    `forward(0)` and `forward(1)` run the denoiser on the same latents and prompts at two different
    timesteps; an input equal in both does not depend on the timestep.
    """
    first, second = read_inputs(sites, lambda: forward(0)), read_inputs(sites, lambda: forward(1))
    readers: dict[int, list[str]] = {}
    for name, x in first.items():
        readers.setdefault(id(x), []).append(name)
    return [
        Feature(
            name=names[0],
            sites=tuple(names),
            width=sites[names[0]].in_features,
            static=first[names[0]].equal(second[names[0]]),
        )
        for names in readers.values()
    ]


def read_inputs(sites: dict[str, nn.Linear], run: Callable[[], object]) -> dict[str, Tensor]:
    """The very tensors that the sites read. They are kept alive, so that identities stay distinct."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable:
        return lambda _module, args: seen.update({name: args[0]})

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in sites.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if missing := [name for name in sites if name not in seen]:
        raise ValueError(f"the denoiser ran without calling {missing[0]} ({len(missing)} such sites)")
    return seen
