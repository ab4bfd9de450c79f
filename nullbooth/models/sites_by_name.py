"""Selection of sites by the names of linear layers; imports neither torch nor diffusers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

PROJECTIONS = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # of the text, if it has layers of its own
)
DEFAULT = ("cross-attention",)  # the other kinds: self-attention, feed-forward


@dataclass(frozen=True)
class Feature:
    """A tensor that one or several sites read; its statistics are stored once."""

    name: str  # the first site that reads it
    sites: tuple[str, ...]
    width: int  # in_features
    static: bool  # the same at every timestep (the prompt embedding of a UNet)


def select(wanted: Sequence[str], names: Sequence[str], kinds: Mapping[str, str]) -> list[str]:
    """Return those of `names` that `wanted` selects, in their order. kinds: kinds of names that have one.

    An entry of `wanted` is a kind or a pattern of names (`*.ff.net.2`) to add, or, after an exclamation mark, to remove
    (`!*.to_q`). Raises ValueError for an entry without effect, and if nothing is left.
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
        raise ValueError(f"protect.sites: [{', '.join(wanted)}] matches no layer; remove one of its `!` patterns")
    return [name for name in names if name in chosen]
