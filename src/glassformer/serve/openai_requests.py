"""What OpenAI's clients may ask, checked: every field typed and bounded, what we cannot do refused by name.

It knows the request's shape; it does not know models, and nothing here is computed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

MOST_STOPS = 4
LONGEST_STOP = 500
MOST_CHOICES = 16
MOST_PROMPTS = 64
MOST_TOP = 20
_MOST_BIASES = 1024
_ID = re.compile(r"[0-9]{1,9}", re.ASCII)


class _Ask(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _listed(value: Any) -> Any:
    """A stop is a string or several."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _biases(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError("a logit bias maps token ids to numbers")
    for key in value:
        if not (isinstance(key, str) and _ID.fullmatch(key)):
            raise ValueError(f'a logit bias is for token ids such as "42"; {str(key)[:50]!r} is none')
    return {int(key): number for key, number in value.items()}


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
        if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise ValueError('content parts must be {"type": "text", "text": "..."}; this model reads text only')
        texts.append(part["text"])
    return "".join(texts)


def _schema(*kinds: Mapping[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": list(kinds)})


_TEXT: dict[str, Any] = {"type": "string"}
_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_STOP: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
_PART: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _TEXT},
    "required": ["type", "text"],
}
_BIAS: dict[str, Any] = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
}


def _many(item: Mapping[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": most}


Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Stops = Annotated[
    list[Stop],
    Field(max_length=MOST_STOPS),
    BeforeValidator(_listed),
    _schema(_STOP, {**_many(_STOP, MOST_STOPS), "minItems": 0}, {"type": "null"}),
]
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[
    dict[int, Bias], Field(max_length=_MOST_BIASES), BeforeValidator(_biases), _schema(_BIAS, {"type": "null"})
]
Prompts = Annotated[
    list[str | list[int]],
    BeforeValidator(_prompts),
    _schema(_TEXT, _many(_TEXT, MOST_PROMPTS), _IDS, _many(_IDS, MOST_PROMPTS)),
]
Content = Annotated[str, BeforeValidator(_content), _schema(_TEXT, _many(_PART, 1000), {"type": "null"})]
Ignored = Annotated[Any, Field(description="Taken and not used.")]
Refused = Annotated[Any, Field(description="Not supported: only null, or what means nothing, is taken.")]
_NOTHING: tuple[Any, ...] = (None, [], {}, "", False, "none", "auto", ["text"], {"type": "text"})


class StreamOptions(_Ask):
    """How an answer is streamed."""

    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class Sampled(_Ask):
    """What both kinds of completion take."""

    model: Annotated[str, Field(max_length=500)] | None = None
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1, description="Only the k likeliest; 0 for all.")
    min_p: float | None = Field(
        default=None, ge=0, le=1, description="At least so much of the likeliest's probability."
    )
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: Biases = {}
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: Stops = []
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Ignored = None
    store: Ignored = None
    metadata: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None

    @model_validator(mode="after")
    def _possible(self) -> Sampled:
        for name in REFUSED & set(type(self).model_fields):
            if getattr(self, name) not in _NOTHING:
                raise ValueError(f"{name} is not supported by this server")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for stream: true")
        return self


REFUSED = frozenset(
    {
        "suffix", "tools", "tool_choice", "functions", "function_call", "response_format", "modalities", "audio",
        "prediction", "web_search_options",
    }
)  # fmt: skip


class CompletionAsk(Sampled):
    """`POST /v1/completions`."""

    prompt: Prompts
    max_tokens: int | None = Field(default=None, ge=0, le=2**31 - 1, description="16 by default; 0 with echo.")
    logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP)
    echo: bool | None = None
    best_of: int | None = Field(default=None, ge=1, le=MOST_CHOICES, description="Only the value of n is taken.")
    suffix: Refused = None

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


class Message(_Ask):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = ""
    name: str | None = Field(default=None, max_length=200)
    tool_call_id: str | None = Field(default=None, max_length=200)
    refusal: Ignored = None
    annotations: Ignored = None


class ChatAsk(Sampled):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=4000)
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1, description="Comes before max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP)
    reasoning_effort: Ignored = None
    verbosity: Ignored = None
    parallel_tool_calls: Ignored = None
    tools: Refused = None
    tool_choice: Refused = None
    functions: Refused = None
    function_call: Refused = None
    response_format: Refused = None
    modalities: Refused = None
    audio: Refused = None
    prediction: Refused = None
    web_search_options: Refused = None

    @model_validator(mode="after")
    def _together(self) -> ChatAsk:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as templates take them."""
        out = []
        for one in self.messages:
            role = "system" if one.role == "developer" else one.role
            told = {"role": role, "content": one.content}
            out.append(told | ({"name": one.name} if one.name is not None else {}))
        return out


class ProblemText(BaseModel):
    """What went wrong, for people and programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Problem(BaseModel):
    """An error in OpenAI's shape."""

    error: ProblemText
