"""What answers in Ollama's shape hold, for the description at /openapi.json: nothing is checked against these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class OllamaProblem(BaseModel):
    """An error in Ollama's shape."""

    error: str


class _Answer(BaseModel):
    """Durations are in nanoseconds; they and the counts come with `done`."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class OllamaFunction(BaseModel):
    """A function that is called."""

    name: str
    arguments: dict[str, Any]


class OllamaCall(BaseModel):
    """A call of a tool."""

    id: str
    function: OllamaFunction


class OllamaSaid(BaseModel):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str
    thinking: str | None = None
    tool_calls: list[OllamaCall] | None = None


class OllamaChat(_Answer):
    """An answer to `POST /api/chat`; streamed, one object a line with a piece of the message."""

    message: OllamaSaid


class OllamaText(_Answer):
    """An answer to `POST /api/generate`; streamed, one object a line with a piece of the text."""

    response: str
    thinking: str | None = None


class OllamaVectors(BaseModel):
    """Vectors of texts."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaVector(BaseModel):
    """One text's vector."""

    embedding: list[float]


class OllamaDetails(BaseModel):
    """What kind of model it is."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaCard(BaseModel):
    """A model that is served."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails


class OllamaModels(BaseModel):
    """The models that are served, or in memory."""

    models: list[OllamaCard]


class OllamaVersion(BaseModel):
    """Our version."""

    version: str


class OllamaDesign(BaseModel):
    """One model's design."""

    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]


def described(answer: type[BaseModel], *, stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """The responses of a route."""
    whole: dict[str, Any] = {"model": answer, "description": answer.__doc__}
    if stream:
        whole["content"] = {"application/x-ndjson": {"schema": {"type": "string"}}}
    problem = {"model": OllamaProblem}
    return {200: whole, "4XX": problem, "5XX": problem}
