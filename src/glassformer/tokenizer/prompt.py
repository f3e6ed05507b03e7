"""Remarks on a text that is about to be continued: allowed, and probably not meant."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from glassformer.tokenizer.tokenizer import TextWarning

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer


def trailing_space(tokenizer: Tokenizer, text: str) -> str | None:
    """The sentence for a text that ends in a space, where the tokenizer's words carry theirs in front; else None."""
    if not text.endswith(" ") or not text.strip() or tokenizer.id_of(" the") is None:
        return None
    return (
        "The text ends in a space, and this model's tokens carry their space in front (' the'), so it hardly ever saw "
        "a word follow one; leave the space away."
    )


def remark(tokenizer: Tokenizer, text: str, *, stacklevel: int = 3) -> None:
    """Warns about what is probably not meant.

    Warns:
        TextWarning: a trailing space.
    """
    said = trailing_space(tokenizer, text)
    if said is not None:
        warnings.warn(said, TextWarning, stacklevel=stacklevel)
