"""Which linears of a denoiser are protected, by their names; imports neither torch nor diffusers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

PROJECTIONS = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # of text, where it has linears of its own
)
DEFAULT = ("cross-attention",)  # beside it: self-attention, feed-forward


@dataclass(frozen=True)
class Feature:
    """One tensor that protected linears read: stored once, whatever the number of its readers."""

    name: str  # the first site that reads it
    sites: tuple[str, ...]
    width: int  # in_features
    static: bool  # the same at every timestep (the prompt embedding of a UNet)


def select(wanted: Sequence[str], names: Sequence[str], kinds: Mapping[str, str]) -> list[str]:
    """Those of `names` that are wanted, in their order; `kinds` has the kind of each name that has one.

    Each of `wanted` is a kind, or a pattern of names that adds them (`*.ff.net.2`) or, after an exclamation mark, takes
    them away (`!*.to_q`). Raises ValueError if one does nothing, or if nothing is left.
    """
    chosen: set[str] = set()
    for entry in sorted(wanted, key=lambda entry: entry.startswith("!")):
        pattern = entry.removeprefix("!")
        found = {name for name in names if kinds.get(name) == pattern or fnmatchcase(name, pattern)}
        if not (found & chosen if entry.startswith("!") else found):
            there = ", ".join(sorted(set(kinds.values()))) or "none"
            raise ValueError(
                f"protect.sites: {entry!r} is neither a kind of linear that this denoiser has ({there}) nor a pattern "
                f"of names of linears, such as {next(iter(kinds), names[-1])}; correct or remove it"
            )
        chosen = chosen - found if entry.startswith("!") else chosen | found
    if not chosen:
        raise ValueError(f"protect.sites: [{', '.join(wanted)}] leaves no linear to protect: take less away")
    return [name for name in names if name in chosen]
