"""Ids to text, one id at a time.

A token may hold part of a character, so text comes out only once its bytes are certain. This module
knows bytes and special literals; which bytes an id stands for is the tokenizer's business.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Turns ids into text as they arrive, and never splits a character.

    The pieces joined equal the text of all ids decoded at once. Bytes that can never become a
    character come out as U+FFFD, as in `bytes.decode(errors="replace")`.

    Args:
        token_bytes: the exact bytes of an ordinary id.
        literal: the text of a special id, or None when the id is an ordinary one.
        strip: whether one leading space is dropped (SentencePiece puts one before a text).
    """

    def __init__(
        self, token_bytes: Callable[[int], bytes], literal: Callable[[int], str | None], *, strip: bool = False
    ) -> None:
        self._token_bytes = token_bytes
        self._literal = literal
        self._strip = strip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text that `id` makes certain; often a whole word, sometimes nothing yet."""
        literal = self._literal(id)
        if literal is None:
            text = self._decoder.decode(self._token_bytes(id))
        else:
            text = self._decoder.decode(b"", final=True) + literal
            self._decoder.reset()
        return self._trimmed(text)

    def finish(self) -> str:
        """What is left: U+FFFD for a character that never became whole, else nothing."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return self._trimmed(text)

    @property
    def pending(self) -> bytes:
        """Bytes of a character that is not whole yet."""
        return self._decoder.getstate()[0]

    def _trimmed(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text
