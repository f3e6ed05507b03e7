"""A vocabulary by outline: which tokens look alike to the rules that find words.

A token's outline is the classes of its characters, runs shortened. Word boundaries depend on nothing else, so of tens
of thousands of tokens a few thousand outlines remain, and each is read once. This module knows tokens' bytes; it knows
no probabilities.
"""

from __future__ import annotations

import codecs
import re
import weakref
from typing import TYPE_CHECKING

import numpy as np

from glassformer.tokenizer.word_breaks import classes

if TYPE_CHECKING:
    from glassformer.predict.word_state import WordOutcomes
    from glassformer.tokenizer.tokenizer import Tokenizer

# Longer runs of these settle nothing more.
_RUNS = re.compile(r"(A|0|S|X)\1+")
_BROKEN = classes("\ufffd")
# The class of every ASCII character: most tokens are made of these alone, and a table reads them at once.
_ASCII = bytes(ord(classes(chr(byte))) for byte in range(128)) + bytes(128)
_made: weakref.WeakKeyDictionary[Tokenizer, dict[int, Spellings]] = weakref.WeakKeyDictionary()


def shorten(known: str) -> str:
    """Classes with runs of one class shortened to one, where a run settles what one does."""
    return _RUNS.sub(r"\1", known)


def _decoded(spelled: bytes) -> str:
    """As far as its characters are whole."""
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return codecs.getincrementaldecoder("utf-8")("replace").decode(spelled)


def _outline(spelled: bytes) -> str:
    return shorten(spelled.translate(_ASCII).decode("ascii") if spelled.isascii() else classes(_decoded(spelled)))


class Spellings:
    """The outlines of a vocabulary.

    Attributes:
        bytes: of every id; b"" for special tokens and for ids that stand for nothing.
        outcomes: a place for readers to keep what outlines settle where.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        silent = tokenizer.special_ids
        self.bytes = [b"" if id in silent else tokenizer.token_bytes(id) for id in range(vocab)]
        self.outcomes: dict[tuple[str, str, bytes], WordOutcomes] = {}
        self._after: dict[bytes, tuple[list[str | None], np.ndarray]] = {}

    def after(self, pending: bytes) -> tuple[list[str | None], np.ndarray]:
        """Outlines, and which one each token (vocab,) has, when `pending` bytes of a character stand before it.

        The outline None is that of tokens without text.
        """
        if pending not in self._after:
            if len(self._after) > 64:  # each costs a number per token
                self._after.clear()
            self._after[pending] = self._outlines(pending)
        return self._after[pending]

    def _outlines(self, pending: bytes) -> tuple[list[str | None], np.ndarray]:
        known: dict[str | None, int] = {}
        found = np.empty(len(self.bytes), dtype=np.int32)
        if pending:
            plain, before = self.after(b"")
        for id, spelled in enumerate(self.bytes):
            outline: str | None = None
            if pending and spelled and not 0x80 <= spelled[0] < 0xC0:
                outline = _BROKEN + (plain[before[id]] or "")  # the character that was pending stays broken
            elif spelled:
                outline = _outline(pending + spelled)
            found[id] = known.setdefault(outline, len(known))
        return list(known), found


def spellings(tokenizer: Tokenizer, vocab: int) -> Spellings:
    """The outlines of a tokenizer's vocabulary; made once."""
    of_tokenizer = _made.setdefault(tokenizer, {})
    if vocab not in of_tokenizer:
        of_tokenizer[vocab] = Spellings(tokenizer, vocab)
    return of_tokenizer[vocab]
