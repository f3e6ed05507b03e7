"""Whole next words against the truth, enumerated."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import UsageError
from glassformer.predict.next_words import Words
from glassformer.predict.next_words import next_words as search
from glassformer.tokenizer.word_breaks import boundaries, ends_in_word


class Spelled:
    """A tokenizer reduced to what words need: bytes per id, and which ids end the text."""

    def __init__(self, tokens: list[bytes], specials: int = 1) -> None:
        self.tokens = [*tokens, *[b"<end>"] * specials]
        self.special_ids = frozenset(range(len(tokens), len(self.tokens)))

    def token_bytes(self, id: int) -> bytes:
        return self.tokens[id]


class Toy:
    """A language model whose next token depends on the whole path, and which ends after `depth` tokens."""

    def __init__(self, tokenizer: Spelled, depth: int, seed: int) -> None:
        self.tokenizer, self.depth, self.seed = tokenizer, depth, seed
        self.asked = 0

    def row(self, path: tuple[int, ...]) -> torch.Tensor:
        vocab = len(self.tokenizer.tokens)
        if len(path) >= self.depth:
            row = torch.full((vocab,), -torch.inf)
            row[max(self.tokenizer.special_ids)] = 0.0
            return row
        generator = torch.Generator().manual_seed(hash((self.seed, path)) % (1 << 31))
        return torch.log_softmax(torch.randn(vocab, generator=generator, dtype=torch.float64) * 1.5, -1)

    def __call__(self, paths: list[list[int]]) -> torch.Tensor:
        assert all(paths)
        assert len({tuple(path) for path in paths}) == len(paths)
        self.asked += len(paths)
        return torch.stack([self.row(tuple(path)) for path in paths])

    def endings(self, path: tuple[int, ...] = (), mass: float = 1.0) -> Iterator[tuple[tuple[int, ...], float]]:
        """Every complete path and its probability."""
        for id, p in enumerate(self.row(path).exp().tolist()):
            if p == 0:
                continue
            if id in self.tokenizer.special_ids:
                yield path, mass * p
            else:
                yield from self.endings((*path, id), mass * p)


def truth(toy: Toy, left: str) -> tuple[dict[str, float], dict[str, float], float]:
    """P(word | a word starts here), P(the last word becomes ...), P(a word starts here)."""
    new: dict[str, float] = defaultdict(float)
    finish: dict[str, float] = defaultdict(float)
    joint = len(left)
    for path, mass in toy.endings():
        text = left + b"".join(toy.tokenizer.tokens[id] for id in path).decode("utf-8", "replace")
        cuts = boundaries(text)
        starts = joint == 0 or left[-1].isspace() or joint in cuts
        if starts:
            edges = sorted({joint, *(cut for cut in cuts if cut >= joint)})
            words = [text[a:b] for a, b in itertools.pairwise(edges)]
            new[next((word for word in words if not word.isspace()), "")] += mass
        else:
            start = max(cut for cut in cuts if cut < joint)
            finish[text[start : min(cut for cut in cuts if cut > joint)]] += mass
    total = sum(new.values())
    return {w: m / total for w, m in new.items()}, dict(finish), total


def check(words: Words, toy: Toy, left: str, exact: bool = False) -> None:
    new, finish, starts = truth(toy, left)
    tiny = 1e-9
    assert words.starts[0] - tiny <= starts <= words.starts[1] + tiny
    for word in words:
        assert word.probability - tiny <= new.get(word.word, 0.0) <= word.upper + tiny, word
        assert word.upper == pytest.approx(min(1.0, word.probability + 1 - words.coverage), abs=1e-12)
    assert sum(w.probability for w in words) <= 1 + tiny
    assert 0 - tiny <= words.coverage <= 1 + tiny
    if words.finish:
        assert ends_in_word(left)
        for way in words.finish:
            want = starts if way.word == standing(left) and way.word not in finish else finish.get(way.word, 0.0)
            assert way.probability - tiny <= want <= way.upper + tiny, way
        assert sum(w.probability for w in words.finish) <= 1 + tiny
    if exact:
        assert words.coverage == pytest.approx(1, abs=1e-9)
        assert {w.word: w.probability for w in words} == pytest.approx(new, abs=1e-9)


def standing(left: str) -> str:
    return left[boundaries(left)[-2] :]


class Given(Spelled):
    """A tokenizer with one more token, outside the model's vocabulary: the text given."""

    def __init__(self, base: Spelled, left: str) -> None:
        self.tokens = base.tokens
        self.special_ids = base.special_ids
        self.left = left.encode()

    def token_bytes(self, id: int) -> bytes:
        return self.left if id == len(self.tokens) else self.tokens[id]


def next_words(toy: Toy, left: str, **options: Any) -> Words:
    tokenizer = Given(toy.tokenizer, left)
    ids = [len(tokenizer.tokens)] if left else []
    return search(toy.row(()), toy, tokenizer, ids, **options)


PIECES = [b"a", b" b", b"'", b".", b"5", b" ", b"can", b"t", b"s ", b", ", b"\n", b"-", b"...", b"'t x",
          "é".encode(), "\u0301".encode(), "日".encode(), b"\xe6", b"\x97", b"\xa5", b"\xf0\x9f", b"\x91\xa9",
          "\u200d".encode(), "👩".encode(), "🇫".encode(), "🇷".encode(), "א".encode(), b"\"", b"_", b"\r",
          b"\xff"]  # fmt: skip
LEFTS = [
    "",
    " ",
    "a",
    "can",
    "can'",
    "3",
    "3.",
    "x.",
    'He said "',
    "e\u0301",
    "日",
    "\U0001f469\u200d",
    "🇫",
    "א",
    "a\n",
    'א"',
    "a.",
    "'",
    "a b ",
]


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=2, max_size=5, unique=True),
    left=st.sampled_from(LEFTS),
    seed=st.integers(0, 1000),
    budget=st.sampled_from([0, 1, 2, 5, 12]),
    batch=st.sampled_from([1, 3]),
)
def test_intervals_hold_the_truth(pieces: list[bytes], left: str, seed: int, budget: int, batch: int) -> None:
    toy = Toy(Spelled(pieces), depth=4, seed=seed)
    words = next_words(toy, left, k=1000, coverage=1.0, max_expansions=budget, batch=batch)
    assert words.expansions <= budget
    check(words, toy, left)


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=2, max_size=4, unique=True),
    left=st.sampled_from(LEFTS),
    seed=st.integers(0, 1000),
)
def test_everything_explored_is_exact(pieces: list[bytes], left: str, seed: int) -> None:
    toy = Toy(Spelled(pieces), depth=4, seed=seed)
    words = next_words(toy, left, k=1000, coverage=1.0, max_expansions=10_000)
    check(words, toy, left, exact=True)


def test_a_word_split_into_tokens_is_summed() -> None:
    """ "ab" as one token or as two is one word, and white space before it does not matter."""
    toy = Toy(Spelled([b"a", b"b", b"ab", b" ab", b"\n"]), depth=3, seed=7)
    words = next_words(toy, "x ", k=50, coverage=1.0, max_expansions=1000)
    check(words, toy, "x ", exact=True)
    assert {"ab", "a", "b", ""} <= {w.word for w in words}


def test_a_contraction_is_not_cut_early() -> None:
    """After "can" + "'" the word is open: "t" makes it one, a space closes it before the quote."""
    toy = Toy(Spelled([b" can", b"'", b"t", b" "]), depth=4, seed=3)
    words = next_words(toy, "I", k=100, coverage=1.0, max_expansions=1000)
    found = {w.word for w in words}
    assert {"can", "can't", "cant"} <= found
    assert "can'" not in found


def test_decimals_stay_whole() -> None:
    toy = Toy(Spelled([b" 3", b".", b"5", b" "]), depth=4, seed=3)
    found = {w.word for w in next_words(toy, "x", k=100, coverage=1.0, max_expansions=1000)}
    assert {"3", "3.5", "35"} <= found
    assert "3." not in found


def test_incomplete_characters_go_on() -> None:
    """No word shows half a character: only what can never become one is U+FFFD."""
    toy = Toy(Spelled([b" \xe6", b"\x97", b"\xa5", b"."]), depth=4, seed=1)
    words = next_words(toy, "x", k=100, coverage=1.0, max_expansions=1000)
    check(words, toy, "x", exact=True)
    assert "日" in {w.word for w in words}


def test_inside_a_word_both_questions_are_answered() -> None:
    toy = Toy(Spelled([b"tal", b" is", b"s", b"."]), depth=4, seed=5)
    words = next_words(toy, "the capi", k=100, coverage=1.0, max_expansions=1000)
    ways = {w.word for w in words.finish}
    assert {"capi", "capital", "capitals", "capis"} <= ways
    assert sum(w.probability for w in words.finish) == pytest.approx(1)
    assert sum(w.probability for w in words) == pytest.approx(1)
    assert words.starts[0] == pytest.approx(next(w for w in words.finish if w.word == "capi").probability)


def test_after_a_space_there_is_nothing_to_finish() -> None:
    toy = Toy(Spelled([b"a", b" a", b"."]), depth=3, seed=5)
    assert next_words(toy, "the ", k=10).finish == ()


def test_a_special_token_in_the_text_is_a_wall() -> None:
    """What stands before a control token is another text: a word starts after it."""
    toy = Toy(Spelled([b"a", b"b"]), depth=3, seed=5)
    tokenizer = toy.tokenizer
    words = search(toy.row(()), toy, tokenizer, [0, 2], k=50, coverage=1.0)
    assert words.starts == pytest.approx((1, 1))
    assert words.finish == ()


def test_the_budget_is_kept_and_coverage_grows() -> None:
    toy = Toy(Spelled(PIECES), depth=5, seed=2)
    covered = []
    for budget in (0, 1, 4, 16, 64):
        toy.asked = 0
        words = next_words(toy, "x", k=5, coverage=1.0, max_expansions=budget, batch=4)
        assert toy.asked == words.expansions <= budget
        covered.append(words.coverage)
    assert covered == sorted(covered)
    assert covered[-1] > covered[0]


def test_it_stops_at_the_coverage_asked_for() -> None:
    toy = Toy(Spelled([b"a", b" b", b"."]), depth=6, seed=2)
    words = next_words(toy, "x ", k=5, coverage=0.5, max_expansions=10_000, batch=1)
    assert 0.5 <= words.coverage < 1
    assert words.expansions < 50


def test_what_lies_beyond_the_context_stays_unexplored() -> None:
    toy = Toy(Spelled([b"a", b"b", b"."]), depth=5, seed=2)
    words = next_words(toy, "x ", k=50, coverage=1.0, max_expansions=10_000, longest=2)
    check(words, toy, "x ")
    assert words.coverage < 1
    assert toy.asked <= 3 + 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "The number of words to show is 1 or more; 0 is not."),
        ({"coverage": 0.0}, "The coverage to reach is above 0 and at most 1; 0.0 is not."),
        ({"coverage": 1.5}, "The coverage to reach is above 0 and at most 1; 1.5 is not."),
        ({"batch": 0}, "Words need max_expansions of 0 or more and a batch of 1 or more."),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    toy = Toy(Spelled([b"a"]), depth=1, seed=0)
    with pytest.raises(UsageError) as error:
        next_words(toy, "x", **options)
    assert str(error.value) == message


def test_json_has_the_public_fields() -> None:
    toy = Toy(Spelled([b"a", b" b"]), depth=2, seed=0)
    found = next_words(toy, "x").to_json()
    assert list(found) == ["words", "coverage", "finish"]
    assert list(found["words"][0]) == ["word", "probability", "upper"]
