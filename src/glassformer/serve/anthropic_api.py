"""Anthropic's Messages API: `/v1/messages` and its count of tokens.

A request becomes a chat of OpenAI's kind and is answered like one; only its words differ.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from glassformer.serve.answers import Answer
from glassformer.serve.exchange import AnswerWriter, Exchange, PreparedRequest, answered
from glassformer.serve.fields import IGNORED, NEUTRAL, Ask, Name, Stops
from glassformer.serve.models import Models, Served
from glassformer.serve.openai_requests import ChatAsk
from glassformer.serve.openai_schemas import described
from glassformer.serve.preparing import chat_text, prepared, prepared_chat
from glassformer.serve.problems import Refusal, anthropic
from glassformer.serve.streams import event
from glassformer.serve.translating import Chat

Block = dict[str, Any]
_NAMES = {"stop": "stop_sequences", "chat_template_kwargs": "thinking", "tool_choice.function": "tool_choice"}
_CALL = {"function": "", "function.arguments": ".input"}
_IDS = {"tool_use": "id", "tool_result": "tool_use_id"}


class InputMessage(Ask):
    """One turn: a text, or blocks of text, calls of tools and their results."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolDeclared(Ask):
    """A tool that may be called."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")
    description: str | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    IGNORED: ClassVar[frozenset[str]] = frozenset({"cache_control", "strict", "eager_input_streaming"})


class ToolChoice(Ask):
    """How tools may be used."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Ask):
    """Whether the model thinks before it answers."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: str | None = None


class CountAsk(Ask):
    """`POST /v1/messages/count_tokens`."""

    model: Name | None = None
    messages: list[InputMessage] = Field(min_length=1, max_length=4000)
    system: str | list[Block] | None = None
    tools: list[ToolDeclared] | None = Field(default=None, max_length=200)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    IGNORED: ClassVar[frozenset[str]] = IGNORED | {"cache_control", "inference_geo"}
    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = NEUTRAL | {"mcp_servers": ([],), "container": ()}


class MessagesAsk(CountAsk):
    """`POST /v1/messages`."""

    max_tokens: int = Field(ge=1, le=2**31 - 1)
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1)
    stop_sequences: Stops = Field(default=[])
    stream: bool | None = None


class MessageUsage(BaseModel):
    """Tokens read and computed."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int


class MessageAnswer(BaseModel):
    """The assistant's turn."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessageUsage


class Counted(BaseModel):
    """Tokens of a conversation."""

    input_tokens: int


def add(api: APIRouter, models: Models) -> None:
    """Put the routes in."""

    @api.post("/v1/messages", responses=described(MessageAnswer, stream=True))
    async def messages(ask: MessagesAsk, request: Request) -> Response:
        """Answer a conversation."""
        chat = chat_of(ask)

        async def prepare(served: Served) -> PreparedRequest:
            return await prepared(request, prepared_chat, served, chat)

        return await answered(models, ask.model, request, prepare, MessageWriter, stream=bool(ask.stream))

    @api.post("/v1/messages/count_tokens", responses=described(Counted))
    async def count(ask: CountAsk) -> dict[str, int]:
        """The tokens of a conversation."""
        served, chat = await models.get(ask.model), chat_of(ask)
        text = (await run_in_threadpool(chat_text, served, chat)).text
        ids = await run_in_threadpool(served.model.encode, text, False)
        return {"input_tokens": len(ids)}


# From Anthropic's words to a chat


def chat_of(ask: CountAsk) -> ChatAsk:
    """The same request as a chat.

    Raises:
        Refusal: blocks that are no text, calls or results.
    """
    chat = Chat(_NAMES)
    if ask.system is not None:
        chat.add({"role": "system", "content": _text(ask.system, "system")}, "system", content="system")
    for number, message in enumerate(ask.messages):
        _turn(message, f"messages.{number}", chat)
    told: dict[str, Any] = {}
    for number in range(len(ask.tools or ())):
        where = f"tools.{number}"
        chat.names |= {f"{where}.function": where, f"{where}.function.parameters": f"{where}.input_schema"}
    if ask.tools:
        told["tools"] = [
            {
                "type": "function",
                "function": {"name": one.name, "description": one.description, "parameters": one.input_schema},
            }
            for one in ask.tools
        ]
    if (choice := ask.tool_choice) is not None:
        named = {"type": "function", "function": {"name": choice.name or ""}}
        told["tool_choice"] = {"auto": "auto", "any": "required", "none": "none", "tool": named}[choice.type]
        told["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    if ask.thinking is not None:
        told["chat_template_kwargs"] = {"enable_thinking": ask.thinking.type != "disabled"}
    # A last turn of the assistant's is gone on with.
    told["continue_final_message"] = ask.messages[-1].role == "assistant" and bool(chat.messages[-1].get("content"))
    if isinstance(ask, MessagesAsk):
        told |= {"max_tokens": ask.max_tokens, "temperature": ask.temperature, "top_p": ask.top_p, "top_k": ask.top_k}
        told["stop"] = ask.stop_sequences
    return chat.ask(told)


def _turn(message: InputMessage, where: str, chat: Chat) -> None:
    """One turn as further messages of a chat: results of tools first, then what is said and called."""
    if isinstance(message.content, str):
        chat.add({"role": message.role, "content": message.content}, where)
        return
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[tuple[Any, str, str, str]] = []
    results = 0
    for at, block in enumerate(message.content):
        place = f"{where}.content.{at}"
        kind = block.get("type")
        if kind == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif kind == "thinking" and isinstance(block.get("thinking"), str):
            thoughts.append(block["thinking"])
        elif kind == "redacted_thinking":
            continue
        elif kind in ("tool_use", "tool_result") and not isinstance(block.get(_IDS[kind]), str):
            raise Refusal(400, f"{place}.{_IDS[kind]}: a block of type {kind!r} has the field {_IDS[kind]!r}, a text.")
        elif kind == "tool_use" and isinstance(block.get("input"), dict) and isinstance(block.get("name"), str):
            calls.append((block["id"], block["name"], json.dumps(block["input"], ensure_ascii=False), place))
        elif kind == "tool_result":
            said = _text(block.get("content") or "", f"{place}.content")
            told = {"role": "tool", "tool_call_id": block["tool_use_id"], "content": said}
            chat.add(told, place, tool_call_id=f"{place}.tool_use_id")
            results += 1
        else:
            raise Refusal(
                400, f"{place}: a block of type {str(kind)[:50]!r} cannot be read; this model reads text only."
            )
    if texts or calls or not results:
        thought = {"reasoning_content": "".join(thoughts)} if thoughts else {}
        chat.add({"role": message.role, "content": "".join(texts), **thought}, where)
        for id, name, arguments, place in calls:
            chat.call(id, name, arguments, place, _CALL)


def _text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for block in content if isinstance(content, list) else [content]:
        if not (isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)):
            raise Refusal(400, f"{where}: only blocks of text can be read; this model reads text only.")
        texts.append(block["text"])
    return "".join(texts)


# From answers to Anthropic's words


def _reason(answer: Answer) -> str:
    if answer.finish == "length":
        return "max_tokens"
    if answer.calls:
        return "tool_use"
    return "end_turn" if answer.stopped_by is None else "stop_sequence"


class MessageWriter(AnswerWriter):
    """One message, whole or as events."""

    alive = b'event: ping\ndata: {"type": "ping"}\n\n'

    def __init__(self, served: Served) -> None:
        self.id = f"msg_{uuid.uuid4().hex[:24]}"
        self._model = served.name

    def _usage(self, exchange: Exchange) -> dict[str, int]:
        kept = exchange.job.cached
        return {
            "input_tokens": exchange.read - kept,
            "cache_read_input_tokens": kept,
            "cache_creation_input_tokens": 0,
            "output_tokens": exchange.written,
        }

    def _message(self, exchange: Exchange, content: list[Block], answer: Answer | None) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None if answer is None else _reason(answer),
            "stop_sequence": None if answer is None else answer.stopped_by,
            "usage": self._usage(exchange),
        }

    def whole(self, exchange: Exchange) -> dict[str, Any]:
        [answer] = exchange.answers
        content: list[Block] = []
        if answer.reasoning:
            content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
        if answer.text or not (answer.calls or answer.reasoning):
            content.append({"type": "text", "text": answer.text})
        for call in answer.calls:
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": _data(call.arguments)})
        return self._message(exchange, content, answer)

    async def events(self, exchange: Exchange) -> AsyncGenerator[bytes]:
        def told(kind: str, **data: object) -> bytes:
            return event({"type": kind, **data}, kind)

        yield told("message_start", message=self._message(exchange, [], None))
        index, open_kind = -1, ""
        async for _, delta in exchange.deltas():
            pieces: list[tuple[str, Block, Block]] = []
            if delta.reasoning:
                began: Block = {"type": "thinking", "thinking": "", "signature": ""}
                pieces.append(("thinking", began, {"type": "thinking_delta", "thinking": delta.reasoning}))
            if delta.text:
                pieces.append(("text", {"type": "text", "text": ""}, {"type": "text_delta", "text": delta.text}))
            for call in delta.calls:
                began = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
                pieces.append(
                    (f"call {call.index}", began, {"type": "input_json_delta", "partial_json": call.arguments})
                )
            for kind, began, new in pieces:
                if kind != open_kind:
                    if index >= 0:
                        yield told("content_block_stop", index=index)
                    index, open_kind = index + 1, kind
                    yield told("content_block_start", index=index, content_block=began)
                yield told("content_block_delta", index=index, delta=new)
        if index >= 0:
            yield told("content_block_stop", index=index)
        [answer] = exchange.answers
        ended = {"stop_reason": _reason(answer), "stop_sequence": answer.stopped_by}
        yield told("message_delta", delta=ended, usage=self._usage(exchange))
        yield told("message_stop")

    def failure(self, found: Refusal) -> bytes:
        return event(anthropic(found), "error")


def _data(arguments: str) -> Any:
    try:
        found = json.loads(arguments or "{}")
    except ValueError:
        return {"text": arguments}  # cut off by max_tokens: what there is
    return found if isinstance(found, dict) else {"value": found}
