"""What OpenAI's clients may ask, checked: completions and chat completions.

It knows the request's shape; it does not know models, and nothing here is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from glassformer.serve.fields import MOST_CHOICES, MOST_PROMPTS, MOST_TOP, NULL, TEXT, Ask, Most, Sampled, nullable


def _prompts(value: Any) -> list[str | list[int]]:
    """A prompt is a text, several, token ids, or several lists of them."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("a prompt is a text, token ids, or a list of either, and not empty")
    if all(_is_id(one) for one in value):
        return [value]
    if len(value) > MOST_PROMPTS:
        raise ValueError(f"one request takes at most {MOST_PROMPTS} prompts; this one has {len(value)}")
    for one in value:
        if not (isinstance(one, str) or (isinstance(one, list) and one and all(_is_id(i) for i in one))):
            raise ValueError("each prompt of a list is a text or a list of token ids, and not empty")
    return value


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _content(value: Any) -> Any:
    """A message's content is a text, or parts of which each is one."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get(kind) if kind in ("text", "refusal") else None
        if not isinstance(text, str):
            raise ValueError('content parts must be {"type": "text", "text": "..."}; this model reads text only')
        texts.append(text)
    return "".join(texts)


_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PART: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": TEXT},
    "required": ["type", "text"],
}


def _many(item: Mapping[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": most}


Prompts = Annotated[
    list[str | list[int]],
    BeforeValidator(_prompts),
    nullable(TEXT, _many(TEXT, MOST_PROMPTS), _IDS, _many(_IDS, MOST_PROMPTS)),
]
Content = Annotated[str, BeforeValidator(_content), nullable(TEXT, _many(_PART, 1000), NULL)]


class StreamOptions(Ask):
    """How an answer is streamed."""

    include_usage: bool | None = None
    continuous_usage_stats: Literal[False] | None = None
    IGNORED: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})


class Streamed(Sampled):
    """An answer that may come in pieces."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _streams(self) -> Streamed:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for stream: true")
        return self

    @property
    def counted(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionAsk(Streamed):
    """`POST /v1/completions`."""

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = Field(
        default=None, description="16 by default; 0 with echo; -1 for as many as fit."
    )
    logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP)
    echo: bool | None = None
    best_of: int | None = Field(default=None, ge=1, le=MOST_CHOICES, description="Only the value of n is taken.")

    @model_validator(mode="after")
    def _agrees(self) -> CompletionAsk:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of other than n is not supported by this server")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens of 0 makes sense only with echo; ask for at least 1")
        if len(self.prompt) * (self.n or 1) > MOST_PROMPTS:
            raise ValueError(
                f"one request gives at most {MOST_PROMPTS} answers; {len(self.prompt)} prompts × n {self.n} are more"
            )
        return self


class Message(Ask):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = ""
    name: str | None = Field(default=None, max_length=200)
    tool_call_id: str | None = Field(default=None, max_length=200)
    reasoning_content: str | None = Field(default=None, description="What an assistant thought before it answered.")
    reasoning: str | None = Field(default=None, description="The same, as others spell it.")
    IGNORED: ClassVar[frozenset[str]] = frozenset({"refusal", "annotations", "id", "object", "parsed"})
    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {"tool_calls": ([],), "audio": (), "function_call": ()}


class ChatAsk(Streamed):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=4000)
    max_tokens: Most = None
    max_completion_tokens: Most = Field(default=None, description="Comes before max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP)
    reasoning_effort: str | None = Field(default=None, max_length=20, description="Handed to the chat template.")
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="Names for the chat template.")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(
        default=None, description="Go on with the last message instead of answering it."
    )
    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Sampled.NEUTRAL,
        "echo": (False,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "response_format": ({"type": "text"},),
    }

    @model_validator(mode="after")
    def _together(self) -> ChatAsk:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        return self
