"""Parts of the `tokenizers` library's tokenizers and of the configurations beside them, as plain data.

How tokens spell bytes, what a decoder or a normaliser does step by step, what a configuration calls a token. It knows
no text and holds no state.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from glassformer.errors import TokenizerError

DEFAULT_TEMPLATE = "default"  # the name of a chat template that has no other
# Names that configurations give to tokens, and that chat templates may use.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@functools.cache
def byte_letters() -> dict[str, int]:
    """The printable letter that stands for each byte in a byte-level vocabulary (GPT-2's scheme) -> the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


@functools.cache
def byte_points() -> dict[int, int]:
    """For `str.translate`: a byte-level token to its bytes as characters of Latin-1, which are the same numbers.

    A character below 256 that stands for no byte becomes one that Latin-1 cannot encode, as all others are.
    """
    return dict.fromkeys(range(256), 0x100) | {ord(letter): byte for letter, byte in byte_letters().items()}


def byte_token(token: str) -> int | None:
    """`"<0x0A>"` -> 10; None for every other token."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return None
    return None


def content_of(token: object) -> str | None:
    """A token in a configuration is its text or an object with its text."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def ids_in(value: object) -> list[int]:
    """An id in a configuration is a number or a list of them."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]


def component(part: Any) -> Mapping[str, Any] | None:
    """A part of a backend (decoder, normaliser, ...) as it stands in tokenizer.json, without the whole vocabulary."""
    return None if part is None else json.loads(part.__getstate__())


def steps_of(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A component as a flat list of steps."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        inner = next(value for value in part.values() if isinstance(value, list))
        return [step for member in inner for step in steps_of(member)]
    return [part]


def decoder_kind(decoder: object) -> tuple[str, bool]:
    """How tokens become bytes ("bytes", "spaces" or "plain"), and whether a text's first space is dropped."""
    steps = steps_of(component(decoder))
    types = [step["type"] for step in steps]
    if types == ["ByteLevel"]:
        return "bytes", False
    if types == ["Metaspace"] and steps[0].get("replacement") == "▁":
        return "spaces", steps[0].get("prepend_scheme", "always") != "never"
    if types == ["Fuse"]:
        return "plain", False
    if types and set(types) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        replaces = [(s["pattern"].get("String"), s["content"]) for s in steps if s["type"] == "Replace"]
        strips = [s for s in steps if s["type"] == "Strip"]
        plain = all((s["content"], s["start"], s["stop"]) == (" ", 1, 0) for s in strips)
        if replaces == [("▁", " ")] and plain and len(strips) <= 1:
            return "spaces", bool(strips)
    named = "+".join(types) or "none"
    raise TokenizerError(
        f"The tokenizer's decoder ({named}) is not one whose exact bytes are known; "
        "byte-level and SentencePiece-style tokenizers are."
    )


def is_whole(backend: Any) -> bool:
    """Whether every text can be encoded: by byte fallback, or by an unknown token that was meant."""
    model = backend.model
    if type(model).__name__ == "Unigram":
        return True
    return bool(getattr(model, "byte_fallback", False)) or getattr(model, "unk_token", None) is not None
