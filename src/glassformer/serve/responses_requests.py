"""What may be asked of OpenAI's Responses API, and the chat that it means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from glassformer.serve.fields import IGNORED, NEUTRAL, Ask, Name
from glassformer.serve.openai_requests import ChatAsk
from glassformer.serve.problems import Refusal
from glassformer.serve.translating import Chat

_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
    "tool_choice.function": "tool_choice",
}
_CALL = {"function": "", "id": ".call_id"}

Item = dict[str, Any]


class ResponseTool(Ask):
    """A function that may be called."""

    type: Literal["function"]
    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseNamedTool(Ask):
    """The tool that must be called."""

    type: Literal["function"]
    name: str


class TextFormat(Ask):
    """The form of the answer's text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> TextFormat:
        if self.type == "json_schema" and self.schema_ is None:
            raise ValueError("a json_schema is asked for and there is no schema")
        return self


class TextAsk(Ask):
    """How the answer is written."""

    format: TextFormat | None = None
    IGNORED: ClassVar[frozenset[str]] = frozenset({"verbosity"})


class ReasoningAsk(Ask):
    """How much the model thinks."""

    effort: str | None = Field(default=None, max_length=20)
    IGNORED: ClassVar[frozenset[str]] = frozenset({"summary", "generate_summary"})


class ResponseAsk(Ask):
    """`POST /v1/responses`."""

    model: Name | None = None
    input: str | list[Item] = Field(max_length=1_000_000)
    instructions: str | None = None
    tools: list[ResponseTool] | None = Field(default=None, max_length=200)
    tool_choice: Literal["none", "auto", "required"] | ResponseNamedTool | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    text: TextAsk | None = None
    reasoning: ReasoningAsk | None = None
    store: bool | None = Field(default=None, description="Kept in memory for previous_response_id; true by default.")
    previous_response_id: str | None = Field(default=None, max_length=200)
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    IGNORED: ClassVar[frozenset[str]] = (IGNORED - {"store", "metadata"}) | {"include", "stream_options"}
    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = NEUTRAL | {
        "background": (False,),
        "conversation": (),
        "max_tool_calls": (),
        "prompt": (),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
        "context_management": ([],),
    }


def chat_of(ask: ResponseAsk, earlier: Iterable[Mapping[str, Any]]) -> ChatAsk:
    """The same request as a chat that goes on from `earlier` messages.

    Raises:
        Refusal: items that cannot be read.
    """
    chat = Chat(_NAMES | {f"tools.{at}.function": f"tools.{at}" for at in range(len(ask.tools or ()))})
    if ask.instructions is not None:
        chat.add({"role": "system", "content": ask.instructions}, "instructions", content="instructions")
    for message in earlier:
        chat.add(message, "previous_response_id")
    _read(ask.input, chat)
    told: dict[str, Any] = {
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "max_completion_tokens": ask.max_output_tokens,
        "parallel_tool_calls": ask.parallel_tool_calls,
        "reasoning_effort": None if ask.reasoning is None else ask.reasoning.effort,
    }
    if ask.tools:
        told["tools"] = [
            {"type": "function", "function": one.model_dump(exclude={"type"}, exclude_none=True)} for one in ask.tools
        ]
    if isinstance(ask.tool_choice, ResponseNamedTool):
        told["tool_choice"] = {"type": "function", "function": {"name": ask.tool_choice.name}}
    else:
        told["tool_choice"] = ask.tool_choice
    form = None if ask.text is None else ask.text.format
    if form is not None and form.type == "json_schema":
        schema = {"name": form.name or "answer", "schema": form.schema_, "strict": form.strict}
        told["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif form is not None and form.type == "json_object":
        told["response_format"] = {"type": "json_object"}
    return chat.ask(told)


def messages_of(given: str | list[Item]) -> list[dict[str, Any]]:
    """Items as messages.

    Raises:
        Refusal: an item that cannot be read.
    """
    chat = Chat({})
    _read(given, chat)
    return chat.messages


def _read(given: str | list[Item], chat: Chat) -> None:
    """Items as further messages of a chat; calls that follow each other are one message's."""
    if isinstance(given, str):
        chat.add({"role": "user", "content": given}, "input", content="input")
        return
    first = len(chat.messages)
    thought: str | None = None
    for number, item in enumerate(given):
        where = f"input.{number}"
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message":
            chat.add({"role": item.get("role"), "content": _text(item.get("content"), f"{where}.content")}, where)
        elif kind == "function_call":
            if len(chat.messages) == first or chat.messages[-1]["role"] != "assistant":
                chat.add({"role": "assistant", "content": ""}, where)
            chat.call(item.get("call_id"), item.get("name"), item.get("arguments"), where, _CALL)
        elif kind == "function_call_output":
            said = _text(item.get("output"), f"{where}.output")
            told = {"role": "tool", "tool_call_id": item.get("call_id"), "content": said}
            chat.add(told, where, tool_call_id=f"{where}.call_id")
        elif kind == "reasoning":
            parts = [*(item.get("content") or ()), *(item.get("summary") or ())]
            thought = "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
            continue
        else:
            raise Refusal(400, f"{where}: an item of type {str(kind)[:50]!r} cannot be read.", param=where)
        if thought and chat.messages[-1]["role"] == "assistant":
            chat.messages[-1]["reasoning_content"] = thought
        thought = None


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        text = (
            None
            if kind not in ("input_text", "output_text", "text", "refusal")
            else part.get("text", part.get("refusal"))
        )
        if not isinstance(text, str):
            raise Refusal(400, f"{where}: only text can be read; this model reads text only.", param=where)
        texts.append(text)
    return "".join(texts)
