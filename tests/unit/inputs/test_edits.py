"""Texts of edits: prompts that mention an edited concept, and the alignment of tokens between two prompts."""

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nullbooth.errors import SettingsError
from nullbooth.inputs.edits import Edit, align, concerns, edits_of, not_concerned

BEGIN, END = 90, 91
words = st.lists(st.integers(0, 5), max_size=6)
WORD = st.text("abcxyz", min_size=1, max_size=4)


def prompt(*parts: list[int]) -> list[int]:
    return [BEGIN, *(token for part in parts for token in part), END]


# --- tokens ------------------------------------------------------------------------------------------------


@given(words, words, st.integers(0, 5))
def test_every_position_has_one_and_their_order_stays(a, b, padding):
    source, target = prompt(a), prompt(b)
    length = max(len(source), len(target)) + padding
    found = align(source, target, length)
    assert len(found) == length
    assert found == sorted(found)
    assert set(found) <= set(range(length))


@given(words, st.integers(0, 5))
def test_a_prompt_is_aligned_with_itself(a, padding):
    length = len(prompt(a)) + padding
    assert align(prompt(a), prompt(a), length) == list(range(length))


@given(words, words, words, words, st.integers(0, 5))
def test_words_around_an_edit_correspond(before, a, b, after, padding):
    """Words before an edit keep their position; words after it and padding keep their distance from its end."""
    source, target = prompt(before, a, after), prompt(before, b, after)
    length, start = max(len(source), len(target)) + padding, 1 + len(before)
    assume(a == b or source[start] != target[start])  # else the words after it may be aligned with those of the edit
    found = align(source, target, length)
    assert found[:start] == list(range(start))
    tail = range(start + len(a), length)
    assert found[start + len(a) :] == [min(i - len(a) + len(b), length - 1) for i in tail]


@given(words, words, words, words)
def test_equal_words_correspond(before, a, b, after):
    source, target = prompt(before, a, after), prompt(before, b, after)
    length = max(len(source), len(target))
    found = align(source, target, length)
    pairs = [(source[i], target[j]) for i, j in enumerate(found[: len(source)]) if j < len(target)]
    assert pairs[0] == (BEGIN, BEGIN)
    assert pairs[-1] == (END, END)
    assert [p for p in pairs[: 1 + len(before)] if p[0] != p[1]] == []
    assert [p for p in pairs[len(pairs) - 1 - len(after) :] if p[0] != p[1]] == []


@given(st.integers(1, 6), st.integers(1, 6))
def test_changed_words_are_spread_over_the_new_ones(ours, theirs):
    """Tokens are spread evenly, the last on the last; every target is used if there are enough of them."""
    source, target = prompt([1] * ours), prompt([2] * theirs)
    found = align(source, target, 8)[1 : 1 + ours]
    assert set(found) <= set(range(1, 1 + theirs))
    assert found[-1] == theirs
    steps = [b - a for a, b in pairwise(found)]
    assert max(steps, default=0) - min(steps, default=0) <= 1
    if ours >= theirs:
        assert set(found) == set(range(1, 1 + theirs))


@given(words, st.lists(st.integers(6, 9), min_size=1, max_size=4), words)
def test_erased_words_map_to_the_word_before_them(before, erased, after):
    source, target = prompt(before, erased, after), prompt(before, after)
    found = align(source, target, len(source))
    start = 1 + len(before)
    assert found[start : start + len(erased)] == [start - 1] * len(erased)
    assert found[start + len(erased) :] == [i - len(erased) for i in range(start + len(erased), len(source))]


def test_an_example():
    """a photo of [a moon] on the left -> a photo of [a large yellow star] on the left"""
    source, target = prompt([1, 2, 3, 1, 10, 4, 5, 6]), prompt([1, 2, 3, 1, 11, 12, 13, 4, 5, 6])
    assert align(source, target, 14) == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 13, 13, 13]
    assert align(target, source, 14) == [0, 1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9, 10, 11]


def test_a_text_that_erases_everything_has_nothing_before_it():
    assert align([1, 2], [], 3) == [0, 0, 0]
    assert align([BEGIN, 5, END], [BEGIN, END], 4) == [0, 0, 1, 2]


# --- words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "concept", "expected"),
    [
        ("a photo of a moon", "a moon", True),
        ("the moon on the left", "a moon", True),
        ("Moon", "the moon", True),
        ("a yellow moon", "a moon", True),
        ("a moonlit night", "a moon", False),
        ("a honeymoon", "a moon", False),
        ("a moon-shaped ring", "a moon", True),
        ("an anchor", "an anchor", True),
        ("a star that is yellow", "a yellow star", False),
        ("a yellow  star", "a yellow star", True),
        ("a yellow star", "a yellow\tstar", True),
        ("a heart", "a", True),
        ("blue", "a", False),
        ("theatre", "the", False),
        ("a (red) ring, 50% off", "(red) ring", True),
        ("what?", "?", False),  # part of a word
        ("axb", "a.b", False),
        ("ein ANKER", "anker", True),
        ("星の写真", "星", False),  # not separated by spaces
        ("星 の 写真", "星", True),
    ],
)
def test_prompts_that_mention_a_concept(prompt, concept, expected):
    assert concerns(prompt, concept) is expected


@given(WORD, WORD, st.sampled_from(["", "a ", "an ", "the ", "The "]))
def test_a_concept_is_found_wherever_it_stands(word, other, article):
    for text in (word, f"{other} {word}", f"{word}, {other}", f"a {word.upper()} on a {other}"):
        assert concerns(text, article + word)
    assert not concerns(f"{other}{word}", article + word)


@given(st.lists(WORD, max_size=6), st.lists(WORD, max_size=3))
def test_prompts_without_a_concept_keep_their_order(prompts, sources):
    edits = [Edit(source, "x") for source in sources]
    kept = not_concerned(prompts, edits)
    assert kept == [p for p in prompts if p in kept]
    assert all(concerns(p, s) == (p == s) for p in prompts for s in sources)
    assert set(prompts) - set(kept) == set(prompts) & set(sources)


def test_without_edits_all_prompts_are_kept():
    assert not_concerned(["a moon", "a star"], []) == ["a moon", "a star"]


# --- edits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "source", "target"),
    [
        ("a photo of {concept} on the left", "a photo of a moon on the left", "a photo of a star on the left"),
        ("{concept}", "a moon", "a star"),
        ("{concept} and {concept}", "a moon and a moon", "a star and a star"),
    ],
)
def test_a_context_becomes_two_prompts(context, source, target):
    assert Edit("a moon", "a star").filled(context) == (source, target)


def test_what_is_erased_leaves_no_blanks():
    edit = Edit("a cross", "")
    assert edit.filled("a photo of {concept} on the left") == (
        "a photo of a cross on the left",
        "a photo of on the left",
    )
    assert edit.filled("{concept}") == ("a cross", "")


@pytest.mark.parametrize(("context", "named"), [("{concept} and {x}", "{x}"), ("{subject}", "{subject}")])
def test_another_placeholder_is_refused(context, named):
    with pytest.raises(SettingsError, match=rf"unknown placeholder \{named[:-1]}\}}; use {{concept}}"):
        Edit("a moon", "a star").filled(context)


def test_blanks_around_and_within_do_not_matter():
    assert edits_of([{"from": " a\n moon", "to": "\ta  star "}]) == [Edit("a moon", "a star")]
    assert edits_of([{"from": "a moon", "to": "  "}]) == [Edit("a moon", "")]
    assert edits_of([]) == []
