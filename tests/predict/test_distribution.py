"""The distribution of the next token."""

from __future__ import annotations

import functools
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glassformer.errors import TextError, UsageError
from glassformer.predict.distribution import Distribution
from glassformer.tokenizer.tokenizer import Tokenizer
from glassformer.tokenizer.train import train_bpe


@functools.cache
def tokenizer() -> Tokenizer:
    return train_bpe(["the capital of France is Paris, Paris is in France and the the " * 3], 300)


def distribution(seed: int = 0, **more) -> Distribution:
    logits = torch.randn(tokenizer().vocab_size, generator=torch.Generator().manual_seed(seed)) * 3
    return Distribution(logits, tokenizer(), text="x", ids=[1], model="toy", precision="float32", **more)


def test_it_is_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 5.0])
    found = Distribution(logits, tokenizer())
    assert torch.allclose(found.probabilities, torch.softmax(logits.double(), 0))
    assert found.probabilities.dtype == torch.float64
    assert found.vocab_size == 4


def test_top_is_in_order_and_complete() -> None:
    found = distribution()
    everything = found.top(10_000)
    assert len(everything) == found.vocab_size
    assert sum(t.probability for t in everything) == pytest.approx(1)
    assert [t.probability for t in everything] == sorted((t.probability for t in everything), reverse=True)
    assert all(math.log(t.probability) == pytest.approx(t.logprob) for t in everything)
    assert found.top(3) == everything[:3]


def test_equals_come_by_id() -> None:
    assert [t.id for t in Distribution(torch.zeros(5), tokenizer()).top(3)] == [0, 1, 2]


def test_a_token_by_text_or_id() -> None:
    found = distribution()
    id = tokenizer().id_of(" the")
    assert id is not None
    assert found.probability(" the") == found.probability(id) == pytest.approx(float(found.probabilities[id]))
    assert found.logprob(" the") == pytest.approx(math.log(found.probability(id)))


def test_several_tokens_are_refused_with_how_they_split() -> None:
    with pytest.raises(TextError) as caught:
        distribution().probability(" thex!")
    assert str(caught.value) == (
        "' thex!' is not one token but 3 (' the' + 'x' + '!'); ask for the first of them, or for whole "
        "words with words()."
    )


def test_what_is_no_token() -> None:
    with pytest.raises(TextError, match="A token is at least one character"):
        distribution().probability("")
    for id in (-1, 10**6):
        with pytest.raises(UsageError, match=f"Token {id} does not exist; the vocabulary has ids 0 to "):
            distribution().probability(id)
    with pytest.raises(UsageError, match="The number of tokens to show is 1 or more; 0 is not"):
        distribution().top(0)


def test_entropy() -> None:
    assert Distribution(torch.zeros(8), tokenizer()).entropy == pytest.approx(math.log(8))
    certain = torch.full((8,), -torch.inf)
    certain[3] = 0.0
    assert Distribution(certain, tokenizer()).entropy == 0.0


@given(st.floats(0.05, 20))
def test_temperature_divides_logits(t: float) -> None:
    logits = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = Distribution(logits, tokenizer()).temperature(t)
    assert torch.allclose(found.probabilities, torch.softmax(logits / t, 0))


@pytest.mark.parametrize("t", [0.0, -1.0, math.inf, math.nan])
def test_temperatures_that_are_none(t: float) -> None:
    with pytest.raises(UsageError, match="A temperature is a number above 0"):
        distribution().temperature(t)


def test_temperature_holds_for_continuations() -> None:
    """A word of two tokens at another temperature: both factors are the cooled ones."""
    row = torch.randn(tokenizer().vocab_size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def continuations(paths: list[list[int]]) -> torch.Tensor:
        return torch.stack([row * len(path) for path in paths])

    cooled = Distribution(row, tokenizer(), continuations=continuations).temperature(0.5)
    assert cooled.continuations is not None
    assert torch.allclose(
        torch.log_softmax(cooled.continuations([[1], [1, 2]]), -1),
        torch.log_softmax(torch.stack([row * 2, row * 4]), -1),
    )


def test_words_need_continuations() -> None:
    with pytest.raises(UsageError, match="came without a way to continue the text"):
        distribution().words()


def test_json_is_json() -> None:
    logits = torch.zeros(tokenizer().vocab_size)
    logits[5:] = -torch.inf
    found = Distribution(logits, tokenizer(), text="x", ids=[1], model="toy", precision="float32")
    answer = json.loads(json.dumps(found.to_json(300), allow_nan=False))
    assert list(answer) == ["model", "precision", "text", "ids", "tokens"]
    assert list(answer["tokens"][0]) == ["id", "token", "bytes", "probability", "logprob"]
    assert answer["tokens"][-1]["logprob"] is None
    assert bytes(answer["tokens"][1]["bytes"]) == tokenizer().token_bytes(answer["tokens"][1]["id"])
