"""What an answer is held to: bad requests are refused in a sentence, and text ends where it should."""

from __future__ import annotations

import pytest

from glassformer.errors import TextError, UsageError
from glassformer.generate.limits import Limits
from glassformer.generate.request import Request
from glassformer.generate.settings import Sampling
from glassformer.generate.stop import StopMatcher
from tests.generate.test_engine import Letters


def test_bad_requests_are_refused_in_a_sentence() -> None:
    limits = Limits(Letters(), 50, 128)  # type: ignore[arg-type]
    with pytest.raises(TextError, match="The prompt holds no token; give at least one word."):
        limits.check(Request(()))
    with pytest.raises(TextError, match="is 130 tokens long and this model reads at most 128, with at least"):
        limits.check(Request((1,) * 130))
    with pytest.raises(TextError, match="Token id 50 is not in this model's vocabulary of 50."):
        limits.check(Request((50,)))
    with pytest.raises(UsageError, match="logit_bias names token 77; this vocabulary has 50."):
        limits.check(Request((1,), sampling=Sampling(logit_bias={77: 1.0})))
    with pytest.raises(UsageError, match="At most 16 stop strings are possible; got 17."):
        limits.check(Request((1,), stop=("x",) * 17))
    with pytest.raises(UsageError, match="max_tokens must be at least 1; got 0."):
        Request((1,), max_tokens=0)


def letters(*ids: int, stop: tuple[str, ...] = (), stop_ids: tuple[int, ...] = ()) -> tuple[list[str], bool]:
    ending = StopMatcher(Letters(), stop, stop_ids)  # type: ignore[arg-type]
    pieces = []
    for id in ids:
        pieces.append(ending.push(id))
        if ending.stopped:
            return pieces, True
    return [*pieces, ending.finish()], ending.stopped


def test_text_comes_in_whole_characters_and_without_stop_strings():
    assert letters(0, 40, 41, 42, 1) == (["a", "", "", "€", "b", ""], False)
    assert letters(0, 40) == (["a", "", "\ufffd"], False)  # never became whole
    assert letters(0, 1, 2, 3, stop=("bcd",)) == (["a", "", "", ""], True)
    assert letters(0, 1, 2, 0, stop=("bcd",)) == (["a", "", "", "bca", ""], False)  # held back, then certain
    assert letters(0, 1, 2, stop=("bcd",)) == (["a", "", "", "bc"], False)  # the answer ended first
    assert letters(0, 1, 2, stop=("zz", "b")) == (["a", ""], True)
    assert letters(0, 49, 1, stop_ids=(49,)) == (["a", ""], True)
    assert letters(0, 1, 49, stop=("bc",), stop_ids=(49,)) == (["a", "", "b"], True)
    with pytest.raises(UsageError, match="A stop string must have 1 to 500 characters; one has 0."):
        StopMatcher(Letters(), ("",))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Stop strings need a tokenizer"):
        StopMatcher(None, ("x",))
