"""Tokens gathered into words, and numbers per token into numbers per word.

A word is one by Unicode's rules (UAX #29), with the white space before it; a token that reaches over
several words binds them into one, for its numbers cannot be told apart. Sums go where numbers add up
(contributions, attention received), averages where they do not; each function says which it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glassformer.interp.vocabulary import Vocabulary
from glassformer.tokenizer.word_breaks import boundaries

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Word:
    """A word of a text and the positions of its tokens.

    Attributes:
        text: as written, white space before it left out (white space that stands alone is kept).
        positions: of its tokens, in order.
        special: whether it is a special token rather than text.
    """

    text: str
    positions: tuple[int, ...]
    special: bool = False


def words(ids: Sequence[int], vocabulary: Vocabulary | None) -> list[Word]:
    """The words of a text of tokens; every token belongs to exactly one. Without a vocabulary, one per token."""
    if vocabulary is None:
        return [Word(f"<{id}>", (at,)) for at, id in enumerate(ids)]
    pieces = [vocabulary.token_bytes(id) for id in ids]
    special = [id in vocabulary.special_ids or not piece for id, piece in zip(ids, pieces, strict=True)]
    out: list[Word] = []
    at = 0
    while at < len(ids):
        end = at
        while end < len(ids) and not special[end]:
            end += 1
        out += _stretch(pieces[at:end], at)
        if end < len(ids):
            out.append(Word(pieces[end].decode("utf-8", "replace") or f"<{ids[end]}>", (end,), special=True))
        at = end + 1
    return out


def _stretch(pieces: list[bytes], start: int) -> list[Word]:
    """Words of a stretch of ordinary tokens that begins at position `start`."""
    # Bytes that are no characters stay apart as lone surrogates, so byte offsets can be counted back.
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    segment_of: list[int | None] = []
    cuts = boundaries(text)
    for number, (a, b) in enumerate(itertools.pairwise(cuts)):
        blank = text[a:b].isspace()
        for character in text[a:b]:
            segment_of += [None if blank else number] * len(character.encode("utf-8", "surrogateescape"))
    groups: list[tuple[list[int], set[int]]] = []
    offset = 0
    leading: list[int] = []  # blanks that belong to the word that follows
    for at, piece in enumerate(pieces):
        mine = {s for s in segment_of[offset : offset + len(piece)] if s is not None}
        offset += len(piece)
        if not mine:
            if piece.strip(b" ") == b"" and at + 1 < len(pieces):
                leading.append(at)
            else:
                groups.append(([*leading, at], set()))
                leading = []
        elif groups and not leading and mine & groups[-1][1]:
            groups[-1][0].append(at)
            groups[-1][1].update(mine)
        else:
            groups.append(([*leading, at], mine))
            leading = []
    if leading:
        groups.append((leading, set()))
    out = []
    for members, _ in groups:
        whole = b"".join(pieces[i] for i in members).decode("utf-8", "replace")
        out.append(Word(whole.strip() or whole, tuple(start + i for i in members)))
    return out


def sum_by_word(x: Tensor, by: Sequence[Word], axis: int = -1) -> Tensor:
    """Numbers per token along `axis` added up per word."""
    axis = axis % x.ndim
    index = torch.empty(x.shape[axis], dtype=torch.long, device=x.device)
    for number, word in enumerate(by):
        index[list(word.positions)] = number
    shape = list(x.shape)
    shape[axis] = len(by)
    return x.new_zeros(shape).index_add(axis, index, x)


def mean_by_word(x: Tensor, by: Sequence[Word], axis: int = -1) -> Tensor:
    """Numbers per token along `axis` averaged per word."""
    axis = axis % x.ndim
    counts = torch.tensor([len(word.positions) for word in by], device=x.device, dtype=x.dtype)
    shape = [1] * x.ndim
    shape[axis] = len(by)
    return sum_by_word(x, by, axis) / counts.view(shape)
