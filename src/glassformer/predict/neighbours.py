"""Which tokens stand near a word, or near a sum of words, in a model's vector tables.

Similarity is the cosine between rows of the embedding (or unembedding) matrix, nothing more: a row is what a
token means before any context. This module knows matrices and a tokenizer; it knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glassformer.errors import TextError, UsageError

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer

_SIGNS = {"+": 1, "-": -1, "−": -1, "–": -1}
_ROWS = 16_384  # converted and compared at a time


@dataclass(frozen=True)
class Term:
    """One word of a question.

    Attributes:
        word: as it was asked for.
        sign: +1 or -1.
        ids: the tokens whose vectors stand for it; the mean, when there are several.
        pieces: their texts.
    """

    word: str
    sign: int
    ids: tuple[int, ...]
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Neighbour:
    """A token and the cosine between its vector and the one asked for."""

    id: int
    token: str
    similarity: float


@dataclass(frozen=True)
class Neighbours:
    """The answer.

    Attributes:
        terms: what was asked.
        found: nearest first; the words asked for are not among them.
        given: the words asked for, with their own similarity.
        notes: what one should know before believing it.
    """

    terms: tuple[Term, ...]
    found: tuple[Neighbour, ...]
    given: tuple[Neighbour, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""

        def listed(items: Sequence[Neighbour]) -> list[dict[str, Any]]:
            return [{"id": n.id, "token": n.token, "similarity": n.similarity} for n in items]

        return {
            "terms": [
                {"word": t.word, "sign": t.sign, "ids": list(t.ids), "pieces": list(t.pieces)} for t in self.terms
            ],
            "neighbours": listed(self.found),
            "given": listed(self.given),
            "notes": list(self.notes),
        }


def parse(expression: str) -> list[tuple[str, int]]:
    """ "king - man + woman" -> [("king", 1), ("man", -1), ("woman", 1)]; signs stand between spaces.

    Raises:
        TextError: a sign without a word.
    """
    found: list[tuple[str, int]] = []
    sign, words = 1, []
    parts = expression.split()
    for at, part in enumerate([*parts, "+"]):
        if part not in _SIGNS:
            words.append(part)
            continue
        if words:
            found.append((" ".join(words), sign))
        elif at and parts:
            raise TextError(f"{expression!r} has a sign without a word; write it as in: king - man + woman")
        sign, words = _SIGNS[part], []
    if not found:
        raise TextError("There is no word; give at least one, as in: king - man + woman")
    return found


def term(tokenizer: Tokenizer, word: str, sign: int, rows: int) -> Term:
    """The tokens of a word: with a space in front if that is one token, else without, else several."""
    ids: list[int] = []
    for spelled in (word if word.startswith(" ") else f" {word}", word):
        id = tokenizer.id_of(spelled)
        if id is not None and id < rows:
            ids = [id]
            break
    if not ids:
        ids = [i for i in tokenizer.encode(f" {word.lstrip()}", bos=False) if i < rows]
    if not ids:
        raise TextError(f"The tokenizer has no token for {word!r}.")
    return Term(word, sign, tuple(ids), tuple(tokenizer.token_text(i) for i in ids))


def neighbours(
    matrix: Tensor,
    tokenizer: Tokenizer,
    expression: str = "",
    *,
    plus: Sequence[str] = (),
    minus: Sequence[str] = (),
    k: int = 10,
) -> Neighbours:
    """The rows of a matrix nearest to a word or to a sum of words.

    Every word's vector is brought to length 1 before they are added, so that no word counts by the length of its
    vector. The words asked for are left out of the answer and reported apart.

    Args:
        matrix: (vocab, d_model), of any dtype.
        expression: a word, or words with signs between spaces.
        plus, minus: more words.
        k: how many neighbours.

    Raises:
        TextError: no word, or one that has no token.
        UsageError: k below 1.
    """
    if k < 1:
        raise UsageError(f"The number of neighbours to show is 1 or more; {k} is not.")
    asked = parse(expression) if expression.strip() or not (plus or minus) else []
    asked += [(word, 1) for word in plus] + [(word, -1) for word in minus]
    terms = tuple(term(tokenizer, word, sign, len(matrix)) for word, sign in asked)
    query = torch.zeros(matrix.shape[1], dtype=torch.float32, device=matrix.device)
    for one in terms:
        rows = matrix[list(one.ids)].float()
        query += one.sign * torch.nn.functional.normalize(rows.mean(0), dim=0)
    if float(query.norm()) < 1e-6:
        raise TextError("The words cancel out: nothing is left to look near.")
    query = torch.nn.functional.normalize(query, dim=0)

    similarity = torch.cat([torch.nn.functional.cosine_similarity(p.float(), query[None]) for p in matrix.split(_ROWS)])
    silent = [id for id in range(len(matrix)) if not tokenizer.token_bytes(id)]
    similarity = similarity.cpu()
    similarity[silent] = -torch.inf
    used = sorted({id for one in terms for id in one.ids})
    own = [Neighbour(id, tokenizer.token_text(id), float(similarity[id])) for id in used]
    own.sort(key=lambda n: -n.similarity)
    similarity[used] = -torch.inf
    order = torch.sort(similarity, descending=True, stable=True).indices[:k].tolist()
    found = [Neighbour(id, tokenizer.token_text(id), float(similarity[id])) for id in order if similarity[id] > -2]
    return Neighbours(terms, tuple(found), tuple(own), tuple(_notes(terms, found, own)))


def _notes(terms: Sequence[Term], found: Sequence[Neighbour], own: Sequence[Neighbour]) -> list[str]:
    notes = []
    for one in terms:
        if len(one.ids) > 1:
            pieces = " + ".join(repr(piece) for piece in one.pieces)
            notes.append(
                f"{one.word!r} is {len(one.ids)} tokens ({pieces}); the mean of their vectors stands for it, which "
                "the model itself never uses."
            )
        elif not one.pieces[0].startswith(" ") and not one.word.startswith(" "):
            notes.append(f"{one.word!r} is one token only without a space in front, as inside a word.")
    if len(terms) > 1 and found and own[0].similarity > found[0].similarity:
        notes.append(
            f"{own[0].token!r}, one of the words asked for, is nearer ({own[0].similarity:.3f}) than everything "
            "listed: much of such a sum is the word it starts from."
        )
    return notes
