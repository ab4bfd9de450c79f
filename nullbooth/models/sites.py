"""Sites, the protected linear layers of a denoiser, and features, the tensors that they read."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress

from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from nullbooth.models.sites_by_name import DEFAULT, PROJECTIONS, Feature, select


def find_sites(denoiser: nn.Module, wanted: Sequence[str] = DEFAULT) -> dict[str, nn.Linear]:
    """Return the sites by module name, in the order of `named_modules`. wanted: `protect.sites` of the config.

    Attention is `cross-attention` wherever it reads the prompt, alone (`Attention.is_cross_attention`) or jointly with
    the picture (joint attention). Raises ValueError if no layer matches, or if layers are fused or wrapped by an
    adapter.
    """
    kinds = linear_kinds(denoiser)
    linears = {name: module for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)}
    chosen = select(wanted, list(linears), kinds)
    for name in chosen:
        if name.endswith(".base_layer"):
            name = name.removesuffix(".base_layer")
            raise ValueError(
                f"{name} is wrapped by another adapter ({type(denoiser.get_submodule(name)).__name__}); "
                "unload it (unload_lora_weights) before protecting the denoiser"
            )
    return {name: linears[name] for name in chosen}


def linear_kinds(denoiser: nn.Module) -> dict[str, str]:
    """Return the kinds of linear layers in attention and feed-forward blocks, by name. Raises ValueError if fused."""
    kinds: dict[str, str] = {}
    for parent, block in denoiser.named_modules():
        attentions = {n: m for n, m in block.named_children() if hasattr(m, "processor") and hasattr(m, "heads")}
        reading = {name for name, attention in attentions.items() if reads_prompt(attention)}
        # A block that takes the prompt, without an attention for it, has joined it with the picture.
        if attentions and not reading and "encoder_hidden_states" in inspect.signature(block.forward).parameters:
            reading = set(attentions)
        for name, child in block.named_children():
            where = f"{parent}.{name}".removeprefix(".")
            if name in attentions:
                refuse_fused(where, child)
                kind = "cross-attention" if name in reading else "self-attention"
                kinds |= {n: kind for n in linears_in(child, where) if below(n, where) in PROJECTIONS}
            elif isinstance(child, FeedForward) or (attentions and isinstance(child, nn.Linear)):
                kinds |= dict.fromkeys(linears_in(child, where), "feed-forward")
    return kinds


def reads_prompt(attention: nn.Module) -> bool:
    return getattr(attention, "is_cross_attention", False) or getattr(attention, "added_kv_proj_dim", None) is not None


def linears_in(module: nn.Module, prefix: str) -> list[str]:
    return [name for name, inner in module.named_modules(prefix=prefix) if isinstance(inner, nn.Linear)]


def below(name: str, block: str) -> str:
    """Return a linear layer's name inside its block, without the suffix of an adapter's wrapper."""
    return name.removeprefix(f"{block}.").removesuffix(".base_layer")


def refuse_fused(where: str, attention: nn.Module) -> None:
    # The processor's name or the block's flag says that it is fused; blocks of UNets keep the flag after unfusing.
    flagged = type(attention).__name__ != "Attention" and getattr(attention, "fused_projections", False)
    if flagged or "Fused" in type(attention.processor).__name__:
        raise ValueError(
            f"{where}: its projections are fused, so that to_k and to_v no longer exist; "
            "call unfuse_qkv_projections() on the denoiser first"
        )


def find_features(sites: dict[str, nn.Linear], forward: Callable[[int], object]) -> list[Feature]:
    """Group sites into features, by the identity of the tensor that they read.

    forward: `forward(0)` and `forward(1)` run the denoiser on the same latents and prompts at two different timesteps;
    features that are equal in both are static.
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


class _SeenAllError(Exception):
    """Raised to leave a pass once every site has read; not a failure."""


def read_inputs(sites: dict[str, nn.Linear], run: Callable[[], object]) -> dict[str, Tensor]:
    """Return the tensors that the sites read, by site, in a pass that stops once all have read. The tensors are not
    copied, and stay alive so that identities are distinct. Raises ValueError if a site is never called."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable:
        def read(_module: nn.Module, args: tuple) -> None:
            seen[name] = args[0]
            if len(seen) == len(sites):
                raise _SeenAllError

        return read

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in sites.items()]
    try:
        with suppress(_SeenAllError):
            run()
    finally:
        for handle in handles:
            handle.remove()
    if missing := [name for name in sites if name not in seen]:
        raise ValueError(f"the denoiser ran without calling {missing[0]} ({len(missing)} such sites)")
    return seen
