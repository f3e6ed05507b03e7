"""Word boundaries, UAX #29."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.tokenizer.word_breaks import NO, UNSETTLED, YES, boundaries, classes, ends_in_word, statuses

CASES = {
    "can't stop": ["can't", " ", "stop"],
    "can’t": ["can’t"],
    "rock'n'roll": ["rock'n'roll"],
    "'tis the dogs' own": ["'", "tis", " ", "the", " ", "dogs", "'", " ", "own"],
    "3.14 is 1,000.5%": ["3.14", " ", "is", " ", "1,000.5", "%"],
    "3. 4": ["3", ".", " ", "4"],
    "v2.0-beta": ["v2.0", "-", "beta"],
    "well-known": ["well", "-", "known"],
    "a_b __c": ["a_b", " ", "__c"],
    "U.S.A. e.g.": ["U.S.A", ".", " ", "e.g", "."],
    "a:b": ["a:b"],
    "wait...": ["wait", ".", ".", "."],
    "  \t\n\r\n x": ["  ", "\t", "\n", "\r\n", " ", "x"],
    "日本語テスト": ["日", "本", "語", "テスト"],
    "한국어 말": ["한국어", " ", "말"],
    "مرحبا بالعالم": ["مرحبا", " ", "بالعالم"],
    "ש\"ש ש'": ['ש"ש', " ", "ש'"],
    "e\u0301tude n\u0303": ["e\u0301tude", " ", "n\u0303"],
    "👩‍👩‍👧!": ["👩‍👩‍👧", "!"],
    "👍🏽 ok": ["👍🏽", " ", "ok"],
    "🇫🇷🇩🇪🇬": ["🇫🇷", "🇩🇪", "🇬"],
    "🇫,": ["🇫", ","],
    "so\u00adft": ["so\u00adft"],
    "\u0301a": ["\u0301", "a"],
    "\u200d1": ["\u200d", "1"],
    "": [],
}

# Every character class, and what one of it looks like.
CHARACTERS = "A\u24c2א5カ_:,.'\"\u0301\u00ad\u200d🇫\r\n\u2028 \t👩日%"


def segments(text: str) -> list[str]:
    """The text cut at its word boundaries."""
    return [text[a:b] for a, b in itertools.pairwise(boundaries(text))]


@pytest.mark.parametrize("text", CASES)
def test_known_cases(text: str) -> None:
    assert segments(text) == CASES[text]


def test_agreed_cases() -> None:
    """Random rows of classes, cut as ICU and the uniseg library agree to cut them (| is a boundary)."""
    lines = (Path(__file__).parent / "word_boundaries.txt").read_text("utf-8").splitlines()
    cases = [line for line in lines if line and not line.startswith("#")]
    assert len(cases) >= 300
    for line in cases:
        parts = ["".join(chr(int(code, 16)) for code in part.split()) for part in line.split("|")]
        assert segments("".join(parts)) == parts, line


@given(st.text())
def test_segments_are_the_text(text: str) -> None:
    assert "".join(segments(text)) == text
    cuts = boundaries(text)
    assert cuts == sorted(set(cuts))
    assert not text or (cuts[0] == 0 and cuts[-1] == len(text))


@given(st.text(CHARACTERS, max_size=8), st.text(CHARACTERS, max_size=4))
def test_what_is_settled_stays(known: str, more: str) -> None:
    """No continuation changes what was said to be settled."""
    now, later = statuses(classes(known)), statuses(classes(known + more))
    for at, status in enumerate(now):
        assert status == UNSETTLED or later[at] == status


@given(st.text(CHARACTERS, min_size=1, max_size=8))
def test_what_is_unsettled_can_go_both_ways(known: str) -> None:
    """An unsettled place is one that some next character joins and another one cuts."""
    now = statuses(classes(known))
    for at in (at for at, status in enumerate(now) if status == UNSETTLED):
        outcomes = {statuses(classes(known + next_one))[at] for next_one in CHARACTERS}
        assert outcomes >= {YES, NO}


@given(st.text(CHARACTERS, max_size=12), st.integers(0, 12))
def test_segments_do_not_look_back(text: str, at: int) -> None:
    """What follows a boundary is cut the same with and without what stood before it."""
    cuts = boundaries(text)
    if at in cuts:
        assert [cut + at for cut in boundaries(text[at:])] == [cut for cut in cuts if cut >= at] or at == len(text)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("is", True),
        ("is ", False),
        ("is.", False),
        ("3", True),
        ("日", True),
        ("e\u0301", True),
        ("_", True),
        ("", False),
    ],
)
def test_ending_inside_a_word(text: str, inside: bool) -> None:
    assert ends_in_word(text) is inside
