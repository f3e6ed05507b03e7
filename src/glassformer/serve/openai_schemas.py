"""What answers hold, for the description at /openapi.json: nothing is checked against these while answering."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class ProblemText(BaseModel):
    """What went wrong, for people and programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Problem(BaseModel):
    """An error in OpenAI's shape."""

    error: ProblemText


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    loaded: bool
    context_length: int | None = None
    max_model_len: int | None = None
    precision: str | None = None
    path: str | None = None


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"]
    data: list[ModelCard]


class CachedTokens(BaseModel):
    """Prompt tokens that were kept from an earlier prompt."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens read and computed."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class CompletionLogprobs(BaseModel):
    """Every token, its log-probability, the likeliest at its place, and the characters before it."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class _Envelope(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage


class Completion(_Envelope):
    """An answer to `POST /v1/completions`; streamed, each event holds one choice's news."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class TokenLogprob(BaseModel):
    """A token, its bytes, and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(TokenLogprob):
    """… with the likeliest at its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Every token of an answer."""

    content: list[ChatToken]
    refusal: None


class Function(BaseModel):
    """What is called, with its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: Function


class ChatMessage(BaseModel):
    """What the assistant said."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(_Envelope):
    """An answer to `POST /v1/chat/completions`; streamed, `message` is `delta`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "What is wrong with the request."},
    "5XX": {"model": Problem, "description": "What failed."},
}


def streamed(about: str, **more: object) -> dict[int | str, dict[str, Any]]:
    """The responses of a route whose answer is a stream of events, or of one of `more` media types with its schema."""
    content = {"text/event-stream": {"schema": {"type": "string"}}} | {
        kind: {"schema": how} for kind, how in more.items()
    }
    return {200: {"description": about, "content": content}, **_PROBLEMS}


def described(answer: type[BaseModel], *, stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """The responses of a route."""
    whole: dict[str, Any] = {"model": answer, "description": answer.__doc__}
    if stream:
        whole["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    return {200: whole, **_PROBLEMS}
