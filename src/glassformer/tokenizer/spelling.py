"""Tokens as people read them: the bytes of one character, spread over several tokens, are shown as that character.

A token that holds a part of a character is spelled as the character and which of its tokens this is, "鼹²⁄₃"; bytes
that belong to no character are spelled in hexadecimal, "‹e9 bc›".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_ABOVE = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_BELOW = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def spelled(pieces: Sequence[bytes]) -> list[str]:
    """The text of each token of a text, given each one's bytes."""
    owner = [at for at, piece in enumerate(pieces) for _ in piece]
    out = [""] * len(pieces)
    start = 0
    for part in _characters(b"".join(pieces)):
        tokens = list(dict.fromkeys(owner[start : start + len(part)]))
        text = _text(part)
        for number, at in enumerate(tokens, 1):
            if text is None:
                mine = bytes(b for b, who in zip(part, owner[start:], strict=False) if who == at)
                out[at] += _hexadecimal(mine)
            elif len(tokens) == 1:
                out[at] += text
            else:
                out[at] += f"{text}{str(number).translate(_ABOVE)}⁄{str(len(tokens)).translate(_BELOW)}"
        start += len(part)
    return [text.replace("›‹", " ") for text in out]


def spelled_alone(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """Each token's text by itself, as pages show it; a special token's as it is named."""
    special = tokenizer.special_ids
    return [tokenizer.token_text(i) if i in special else spelled([tokenizer.token_bytes(i)])[0] for i in ids]


def spelled_after(before: Iterable[bytes], piece: bytes) -> str:
    """The text of a token that follows others, which may have begun a character that it goes on with."""
    pending = b"".join(list(before)[-4:])
    last = [part for part in _characters(pending) if _text(part) is None]
    begun = last[-1] if last and pending.endswith(last[-1]) else b""
    if begun and _text((begun + piece)[: _length(begun[0])]) is not None:
        return spelled([*(bytes([b]) for b in begun), piece])[-1]
    return spelled([piece])[0]


def is_whole(piece: bytes) -> bool:
    """Whether a token's bytes are whole characters."""
    return all(_text(part) is not None for part in _characters(piece))


def _text(part: bytes) -> str | None:
    try:
        return part.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _hexadecimal(part: bytes) -> str:
    return f"‹{part.hex(' ')}›"


def _length(first: int) -> int:
    """Bytes of the character that a byte begins; 1 for one that begins none."""
    return 1 if first < 0xC2 or first > 0xF4 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4


def _characters(data: bytes) -> Iterator[bytes]:
    """Each character's bytes, and each run of bytes that is none."""
    at = 0
    while at < len(data):
        end = at + _length(data[at])
        if _text(data[at:end]) is None:
            # The longest beginning of a character, so that what follows starts afresh.
            while end > at + 1 and not (end <= len(data) and all(0x80 <= b < 0xC0 for b in data[at + 1 : end])):
                end -= 1
        yield data[at:end]
        at = end
