"""Chat templates: messages to the text a chat model was trained on.

Templates come with models, so they are other people's programs: they run in Jinja's immutable sandbox,
with the names the field's templates expect and nothing else.
"""

from __future__ import annotations

import contextvars
import datetime
import functools
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from glassformer.errors import TextError, TokenizerError


class _Refused(Exception):
    """What a template says about messages it does not take."""


def _raise(message: str) -> None:
    raise _Refused(message)


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes <, > and &, which would put other characters before the model.
    options.setdefault("ensure_ascii", False)
    return json.dumps(value, indent=indent, **options)


def _now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


_MARK = "glassformer_generation_mark"
_marks: contextvars.ContextVar[tuple[str, str]] = contextvars.ContextVar("marks", default=("", ""))
"""What is written where a `{% generation %}` block begins and ends."""


@functools.lru_cache(maxsize=32)
def _compiled(template: str) -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant says, for training; the text is its body's."""

        tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)

            def mark(end: bool) -> Any:
                call = nodes.Call(nodes.Name(_MARK, "load"), [nodes.Const(end)], [], None, None)
                return nodes.Output([call], lineno=line)

            return [mark(False), *body, mark(True)]

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    environment.globals[_MARK] = lambda end: _marks.get()[end]
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise TokenizerError(f"The model's chat template is not a valid Jinja template: {error}.") from None


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text of a conversation.

    Args:
        template: the Jinja template that came with the model.
        messages: `{"role": ..., "content": ...}` in order; other keys are handed to the template.
        generation_prompt: whether the text ends where the assistant begins to speak.
        variables: more names for the template (`bos_token`, `tools`, ...).

    Raises:
        TextError: messages that are empty, malformed, or refused by the template.
        TokenizerError: a template that is broken.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise TextError('A chat is a list of messages such as {"role": "user", "content": "Hello"}.')
    if not messages:
        raise TextError("A chat needs at least one message; none was given.")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TextError(
                f'Message {index} of the chat has no role; each is {{"role": "user", "content": "..."}} or alike.'
            )
        if "content" not in message:
            raise TextError(f"Message {index} of the chat (role {message['role']!r}) has no content.")
    compiled = _compiled(template)
    try:
        return str(
            compiled.render(
                # Templates look for absent keys and seldom for null ones, which clients send: as in transformers.
                messages=[{k: v for k, v in message.items() if v is not None} for message in messages],
                add_generation_prompt=generation_prompt,
                **{"tools": None, "documents": None, **(variables or {})},  # templates ask whether they are none
            )
        )
    except _Refused as refusal:
        raise TextError(f"The model's chat template refuses these messages: {refusal}") from None
    except Exception as error:  # a template is foreign code: whatever it does wrong is its own error
        kind = type(error).__name__
        raise TokenizerError(f"The model's chat template failed on these messages ({kind}: {error}).") from None


def render_marked(
    template: str, messages: Sequence[Mapping[str, Any]], *, variables: Mapping[str, Any] | None = None
) -> list[tuple[str, bool]] | None:
    """The text of a conversation in pieces, each with whether the template marks it as the assistant's by
    `{% generation %}`; None where it marks nothing. Raises as `render` does."""
    if "generation" not in template:
        return None
    begin, end = (f"\0{secrets.token_hex(8)}{side}" for side in "<>")
    token = _marks.set((begin, end))
    try:
        text = render(template, messages, generation_prompt=False, variables=variables)
    finally:
        _marks.reset(token)
    if begin not in text:
        return None
    before, *marked = text.split(begin)
    pieces = [(before.replace(end, ""), False)]
    for part in marked:
        inside, _, after = part.partition(end)
        pieces += [(inside, True), (after.replace(end, ""), False)]
    return pieces
