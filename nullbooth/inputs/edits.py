"""Texts of edits: their prompts in a context, the prompts that mention an edited concept, and the alignment of words
between two prompts. Imports no torch: the rules use it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from nullbooth.inputs.settings import fill_prompt


@dataclass(frozen=True)
class Edit:
    """A change of what `source` draws to what `target` draws; an empty target erases."""

    source: str
    target: str

    def filled(self, context: str) -> tuple[str, str]:
        """Return the prompts of source and target in a context with `{concept}`. Raises SettingsError for other
        placeholders."""
        source, target = (" ".join(fill_prompt(context, {"concept": c}).split()) for c in (self.source, self.target))
        return source, target


def edits_of(listed: Iterable[dict[str, str]]) -> list[Edit]:
    """Return the edits that `edits` of the config lists."""
    return [Edit(*(" ".join(entry[key].split()) for key in ("from", "to"))) for entry in listed]


def concerns(prompt: str, concept: str) -> bool:
    """Check that a prompt contains the words of a concept in a row, apart from its article and regardless of case."""
    words = re.sub(r"^(an?|the)\s+", "", concept, flags=re.IGNORECASE).split()
    pattern = r"\s+".join(map(re.escape, words))
    return re.search(rf"(?<!\w){pattern}(?!\w)", prompt, re.IGNORECASE) is not None


def not_concerned(prompts: Iterable[str], edits: Iterable[Edit]) -> list[str]:
    """Return the prompts that mention no edited concept; their pictures must not change."""
    sources = [edit.source for edit in edits]
    return [prompt for prompt in prompts if not any(concerns(prompt, source) for source in sources)]


def align(source: list[int], target: list[int], length: int) -> list[int]:
    """Return, for each of the `length` positions of a prompt with tokens `source`, padding included, the position in a
    prompt with tokens `target` that corresponds to it.

    The longest common beginning and end correspond, and padding follows the end. The source's tokens between are spread
    evenly over those of the target, the last on the last; if the target has none, they map to the token before.
    """
    start = 0
    while start < min(len(source), len(target)) and source[start] == target[start]:
        start += 1
    end = 0
    while end < min(len(source), len(target)) - start and source[-1 - end] == target[-1 - end]:
        end += 1
    ours, theirs = len(source) - end - start, len(target) - end - start
    between = [start + ((i + 1) * theirs - 1) // ours if theirs else max(start - 1, 0) for i in range(ours)]
    after = [min(i - ours + theirs, length - 1) for i in range(start + ours, length)]
    return [*range(start), *between, *after]
