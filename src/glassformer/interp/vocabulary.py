"""What inspection asks of a tokenizer, and tokens as people name them.

A model's tokenizer satisfies the protocol; nothing here knows which one it is.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Protocol

from glassformer.errors import TextError, TokenizerError, UsageError


class Vocabulary(Protocol):
    """Tokens to text and back."""

    @property
    def vocab_size(self) -> int:
        """The number of ids."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The ids that have a token."""

    @property
    def special_ids(self) -> Set[int]:
        """The ids of tokens that mark text and are none of it."""

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        """The ids of a text; `bos` says whether the begin-of-text token comes first, None as the tokenizer does."""

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for."""

    def token_text(self, id: int) -> str:
        """A token as people read it."""


def known_ids(vocabulary: Vocabulary | None, rows: int) -> list[int]:
    """The ids that have a token, of a model with so many rows; all of its rows where no vocabulary is known."""
    return list(range(rows)) if vocabulary is None else [i for i in vocabulary.token_ids if i < rows]


def token_id(token: str | int, vocabulary: Vocabulary | None, vocab_size: int) -> int:
    """The id of a token named by its exact text or its id.

    Raises:
        TextError: for a text that is not one token, saying how it splits; for an id out of range.
        UsageError: for a text where no vocabulary is known.
    """
    if isinstance(token, int):
        if not 0 <= token < vocab_size:
            raise TextError(f"There is no token {token}: the vocabulary has {vocab_size:,}, 0 to {vocab_size - 1}.")
        return token
    if vocabulary is None:
        raise UsageError(f"This trace knows no vocabulary, so {token!r} cannot be looked up; give the token's id.")
    if not token:
        raise TextError("The empty text is not a token; name one such as ' Paris', its space included.")
    id_of = getattr(vocabulary, "id_of", None)
    if id_of is not None and (found := id_of(token)) is not None and found < vocab_size:
        return int(found)
    try:
        ids = vocabulary.encode(token, False)
    except TokenizerError as error:
        raise TextError(f"{token!r} is not a token of this model: {error}") from None
    if len(ids) == 1:
        return ids[0]
    pieces = ", ".join(repr(vocabulary.token_text(i)) for i in ids)
    raise TextError(f"{token!r} is not one token here but {len(ids)}: {pieces}. Name one of those, or another token.")


def shown(text: str) -> str:
    """A token on one line: line breaks and tabs as their escapes, spaces as they are."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
