"""The shipped prompts for photographic models are as many, and as diverse, as docs/prompts.md says."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from nullbooth.inputs.prompts import read_prompts
from nullbooth.models.prompt_length import _CLIP_WORD

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "config/prompts/photographic.txt"
# CLIP's vocabulary is not in the repository. With it, the 1,000 prompts have at most 64 tokens, and those of 30 words
# and marks or more at most 1.16 tokens for each: 60 of them stay below 75 with room to spare.
MOST_WORDS = 60
ALIKE = 0.5  # two prompts that differ in one of at least three words that carry sense reach it
STOP = """a an the of in on at with and to by for from its his her their is are as up down into over under behind beside
between out off one two three it that s"""


def same(prompt: str) -> str:
    return " ".join(prompt.lower().split())


def words_and_marks(prompt: str) -> list[str]:
    """Split a prompt like CLIP's tokenizer before it uses its vocabulary; each piece is at least one token."""
    return [part for part, _ in Split(Regex(_CLIP_WORD), "removed", invert=True).pre_tokenize_str(prompt.lower())]


def sections(path: Path) -> dict[str, list[str]]:
    """Return the prompts under each `## head`."""
    _, *parts = re.split(r"^## (.+)\n", path.read_text(), flags=re.MULTILINE)
    lines = [[line for line in text.split("\n") if line and not line.startswith("#")] for text in parts[1::2]]
    return dict(zip(parts[::2], lines, strict=True))


def faults(path: Path, number: int = 1000) -> list[str]:
    """Return the faults of a list of prompts: wrong number, repetitions, near repetitions, length, equal beginnings."""
    written = [same(line) for lines in sections(path).values() for line in lines]
    prompts = read_prompts(path)
    found = [f"repeated: {p}" for p, n in Counter(written).items() if n > 1]
    if not len(set(written)) == len(prompts) == number:
        found.append(f"{len(set(written))} distinct prompts under heads, {len(prompts)} read, not {number}")
    found += [f"too long: {p}" for p in prompts if len(words_and_marks(p)) > MOST_WORDS]

    senses = [set(re.findall(r"[^\W_]+", p.lower())) - set(STOP.split()) for p in prompts]
    found += [f"says nothing: {p}" for p, sense in zip(prompts, senses, strict=True) if not sense]
    place = {word: i for i, word in enumerate(sorted(set().union(*senses)))}
    has = np.zeros((len(prompts), len(place)), np.float32)
    for row, sense in zip(has, senses, strict=True):
        row[[place[word] for word in sense]] = 1
    both, size = has @ has.T, has.sum(1)
    jaccard = np.triu(both / np.maximum(size[:, None] + size - both, 1), 1)
    found += [f"alike: {prompts[i]} | {prompts[j]}" for i, j in np.argwhere(jaccard >= ALIKE)]

    openings = Counter(" ".join(p.lower().split()[:2]) for p in prompts if len(p.split()) > 2)
    return found + [f"{n} prompts open with {words!r}" for words, n in openings.items() if n > number // 50]


def test_the_shipped_prompts_are_a_thousand_different_ones():
    assert faults(SHIPPED) == []


def test_every_category_has_the_number_that_the_documentation_says():
    table = re.findall(r"^\| ([^|]+?) \| (\d+) \|", (ROOT / "docs/prompts.md").read_text(), flags=re.MULTILINE)
    assert {name: int(number) for name, number in table} == {k: len(v) for k, v in sections(SHIPPED).items()}


def test_short_and_long_prompts_are_in_every_third_of_the_list():
    every = [line for lines in sections(SHIPPED).values() for line in lines]
    assert sum(len(line.split()) <= 4 for line in every) >= 100
    assert sum(len(words_and_marks(line)) >= 40 for line in every) >= 50
    for third in (every[:333], every[333:666], every[666:]):
        assert sum(len(line.split()) <= 4 for line in third) >= 20
        assert sum(len(words_and_marks(line)) >= 40 for line in third) >= 10


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("moss\n", "A  Teapot\n", "repeated: a teapot"),
        ("moss\n", "", "999 distinct prompts"),
        ("moss\n", "moss\na plastic moose\n", "1001 distinct prompts"),
        ("## faces\n", "a stray one\n## faces\n", "1000 distinct prompts under heads, 1001 read"),
        ("moss\n", "a green bus, an ox, a clock and a pear tree" * 5 + "\n", "too long: a green bus"),
        ("moss\n", "two cats behind a red gate\n", "alike: two cats behind a red gate | two dogs behind a red gate"),
        ("moss\n", "of it\n", "says nothing: of it"),
        ("a (?=[a-z]+ [a-z]+ [a-z])", "a photo ", "prompts open with 'a photo'"),
    ],
)
def test_each_fault_put_in_is_found(tmp_path, old, new, complaint):
    path = tmp_path / "prompts.txt"
    path.write_text(re.sub(f"^{old}", new, SHIPPED.read_text(), flags=re.MULTILINE))
    assert [line for line in faults(path) if complaint in line]


def test_another_prompt_that_is_new_is_no_fault(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(SHIPPED.read_text().replace("\nmoss\n", "\nthree pigs dancing behind a red gate\n"))
    assert faults(path) == []
