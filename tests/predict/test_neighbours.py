"""Nearest rows of a matrix."""

from __future__ import annotations

import functools

import pytest
import torch

from glassformer.errors import TextError, UsageError
from glassformer.predict.neighbours import neighbours, parse
from glassformer.tokenizer.tokenizer import Tokenizer
from glassformer.tokenizer.train import train_bpe


@functools.cache
def tokenizer() -> Tokenizer:
    return train_bpe(["a king a queen a man a woman a king a queen a man a woman "] * 5, 300)


def table() -> torch.Tensor:
    """Royalty and sex are two directions; everything else is noise elsewhere."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(tokenizer().vocab_size, 16, generator=generator)
    rows[:, :3] = 0
    royal, male, human = torch.eye(16)[0], torch.eye(16)[1], torch.eye(16)[2]
    for word, vector in ((" king", royal + male), (" queen", royal - male), (" man", male), (" woman", -male)):
        id = tokenizer().id_of(word)
        assert id is not None
        rows[id] = vector + human
    return rows


def names(found) -> list[str]:
    return [n.token for n in found.found]


def test_a_word_s_nearest() -> None:
    rows = table()
    found = neighbours(rows, tokenizer(), "king", k=2)
    id = tokenizer().id_of(" king")
    similarity = torch.nn.functional.cosine_similarity(rows, rows[id][None])
    want = [i for i in similarity.argsort(descending=True).tolist() if i != id][:2]
    assert [n.id for n in found.found] == want
    assert found.found[0].similarity == pytest.approx(float(similarity[want[0]]))
    assert found.given[0].similarity == pytest.approx(1)
    assert found.notes == ()


def test_king_minus_man_plus_woman() -> None:
    found = neighbours(table(), tokenizer(), "king - man + woman", k=3)
    assert names(found)[0] == " queen"
    assert {n.token for n in found.given} == {" king", " man", " woman"}
    assert [(t.word, t.sign) for t in found.terms] == [("king", 1), ("man", -1), ("woman", 1)]
    assert names(found) == names(neighbours(table(), tokenizer(), plus=["king", "woman"], minus=["man"], k=3))


def test_length_does_not_count() -> None:
    rows = table()
    longer = rows.clone()
    longer[tokenizer().id_of(" man")] *= 100
    assert names(neighbours(rows, tokenizer(), "king - man", k=5)) == names(
        neighbours(longer, tokenizer(), "king - man", k=5)
    )


def test_several_tokens_are_said_to_be_a_mean() -> None:
    found = neighbours(table(), tokenizer(), "kingqueen", k=1)
    term = found.terms[0]
    assert len(term.ids) > 1
    assert "".join(term.pieces) == " kingqueen"
    assert f"'kingqueen' is {len(term.ids)} tokens (' king' + " in found.notes[0]
    assert "the mean of their vectors stands for it" in found.notes[0]


def test_a_word_without_a_space_in_front_is_said() -> None:
    assert "only without a space in front" in neighbours(table(), tokenizer(), "Q", k=1).notes[0]


def test_a_word_asked_for_that_stays_nearest_is_said() -> None:
    rows = table()
    rows[tokenizer().id_of(" man")] = -rows[tokenizer().id_of(" king")] + 0.01
    found = neighbours(rows, tokenizer(), "king - man", k=3)
    assert "one of the words asked for, is nearer (" in found.notes[-1]
    assert " king" not in names(found)


@pytest.mark.parametrize(
    ("expression", "want"),
    [
        ("king", [("king", 1)]),
        ("king - man + woman", [("king", 1), ("man", -1), ("woman", 1)]),
        ("  king − man  ", [("king", 1), ("man", -1)]),
        ("- man", [("man", -1)]),
        ("co-op + e-mail", [("co-op", 1), ("e-mail", 1)]),
        ("New York", [("New York", 1)]),
    ],
)
def test_expressions(expression: str, want: list[tuple[str, int]]) -> None:
    assert parse(expression) == want


@pytest.mark.parametrize("expression", ["", "king -", "+ - man", "king - - man"])
def test_expressions_that_are_none(expression: str) -> None:
    with pytest.raises(TextError, match=r"write it as in: king - man \+ woman|as in: king - man \+ woman"):
        neighbours(table(), tokenizer(), expression)


def test_what_cannot_be_asked() -> None:
    with pytest.raises(UsageError, match="The number of neighbours to show is 1 or more; 0 is not"):
        neighbours(table(), tokenizer(), "king", k=0)
    with pytest.raises(TextError, match="The words cancel out"):
        neighbours(table(), tokenizer(), "king - king")


def test_rows_without_a_token_are_not_named() -> None:
    """Models round their vocabulary up."""
    rows = torch.cat([table(), table()[[tokenizer().id_of(" king")]]])
    assert tokenizer().vocab_size not in [n.id for n in neighbours(rows, tokenizer(), "king", k=400).found]
