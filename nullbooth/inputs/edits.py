"""Edits as texts: which prompts they make of a context, which prompts speak of what is edited, and which words of one
prompt stand for which of another. Imports no torch: the workflow asks all this too."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from nullbooth.inputs.settings import fill_prompt


@dataclass(frozen=True)
class Edit:
    """What `source` draws is to become what `target` draws; an empty target erases."""

    source: str
    target: str

    def filled(self, context: str) -> tuple[str, str]:
        """A context with `{concept}` in it, as the two prompts. Raises SettingsError for another placeholder."""
        source, target = (" ".join(fill_prompt(context, {"concept": c}).split()) for c in (self.source, self.target))
        return source, target


def edits_of(listed: Iterable[dict[str, str]]) -> list[Edit]:
    """`edits` of the config."""
    return [Edit(*(" ".join(entry[key].split()) for key in ("from", "to"))) for entry in listed]


def concerns(prompt: str, concept: str) -> bool:
    """Whether a prompt speaks of a concept: the words of it stand there in a row, whatever the article."""
    words = re.sub(r"^(an?|the)\s+", "", concept, flags=re.IGNORECASE).split()
    pattern = r"\s+".join(map(re.escape, words))
    return re.search(rf"(?<!\w){pattern}(?!\w)", prompt, re.IGNORECASE) is not None


def not_concerned(prompts: Iterable[str], edits: Iterable[Edit]) -> list[str]:
    """The prompts that speak of nothing that is edited: they are to stay as they are."""
    sources = [edit.source for edit in edits]
    return [prompt for prompt in prompts if not any(concerns(prompt, source) for source in sources)]


def align(source: list[int], target: list[int], length: int) -> list[int]:
    """For each of `length` positions of a prompt with tokens `source`, padding included, the position in another with
    tokens `target` that stands for it.

    What both begin with and what both end with correspond, and padding follows the end; the tokens between are spread
    evenly over those of the other, the last on the last. Where it has none, what comes before stands for them.
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
