"""A conversation as the text that a model goes on from, by its own template."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glassformer.errors import TextError

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer


def rendered(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    go_on: bool = False,
    answer: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt for a conversation.

    Args:
        go_on: go on with the last message, which is left open, instead of answering it.
        answer: whether the text ends where the assistant begins.
        variables: more names for the template.

    Raises:
        TokenizerError: no chat template, or a broken one.
        TextError: messages that it refuses, or a last one that it does not repeat as it stands.
    """
    variables = dict(variables or {})
    if not go_on:
        return tokenizer.render_chat(messages, generation_prompt=answer, **variables)
    last = messages[-1]
    if not isinstance(last.get("content"), str) or not last["content"].strip():
        raise TextError("The last message has no text to go on from.")
    # The template is asked where the message ends: what follows the mark is what closes it.
    mark = uuid.uuid4().hex
    marked = [*messages[:-1], {**last, "content": last["content"].rstrip() + mark}]
    text, found, _ = tokenizer.render_chat(marked, generation_prompt=False, **variables).rpartition(mark)
    if not found:
        raise TextError("The model's chat template does not repeat the last message, so it cannot be gone on with.")
    return text
