"""Conversations in the rows of data sets: the four shapes that are known, read into messages with a role and a text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SHAPES = (
    ("messages",),  # of OpenAI's and Hugging Face's chats: role, content
    ("conversations",),  # ShareGPT: from, value
    ("instruction", "output"),  # Alpaca, with an input perhaps
    ("prompt", "completion"),  # TRL: texts, or lists of messages
)
"""What rows that hold conversations are known by."""
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"}
UNREADABLE = "conversations without roles and contents"
NOT_TEXT = "conversations with parts that are not text"


def conversation(record: dict[str, Any]) -> list[dict[str, Any]] | str | None:
    """The messages of a row of any of `SHAPES`, each with a role and a text as content; why there are none, or None
    for a row of no such shape."""
    shape = next((keys for keys in SHAPES if all(record.get(key) is not None for key in keys)), None)
    if shape is None:
        return None
    first = record[shape[0]]
    if shape == ("instruction", "output"):
        asked = [first, record.get("input")]
        told: object = [_said("user", "\n\n".join(str(a) for a in asked if a)), _said("assistant", record["output"])]
    elif shape == ("prompt", "completion"):
        told = [*_turn("user", first), *_turn("assistant", record["completion"])]
    else:
        told = first
    if isinstance(told, str) or not isinstance(told, Iterable):
        return UNREADABLE
    messages = []
    for message in told:
        if not isinstance(message, dict):
            return UNREADABLE
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value", ...))
        if not isinstance(role, str) or content is ...:
            return UNREADABLE
        text = _content(content)
        if text is None:
            return NOT_TEXT
        rest = {key: value for key, value in message.items() if key not in ("role", "from", "content", "value")}
        messages.append({"role": _ROLES.get(role, role), "content": text, **rest})
    return messages or UNREADABLE


def _said(role: str, content: object) -> dict[str, Any]:
    return {"role": role, "content": content}


def _turn(role: str, told: object) -> list[Any]:
    return list(told) if isinstance(told, (list, tuple)) else [_said(role, told)]


def _content(content: object) -> str | None:
    """A message's text: null is none, parts of text are joined; None where a part is something else."""
    if content is None:
        return ""
    if isinstance(content, str):
        return whole_characters(content)
    if not isinstance(content, (list, tuple)):
        return None
    parts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            return None
        parts.append(whole_characters(text))
    return "".join(parts)


def whole_characters(text: str) -> str:
    """The text with a sign in the place of lone surrogates, which JSON can spell."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
