"""OpenAI's Responses API: answers that may be kept, in memory, and gone on from."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from glassformer.serve.answers import Answer, CallDelta
from glassformer.serve.exchange import AnswerWriter, Exchange, PreparedRequest, answered
from glassformer.serve.models import Models, Served
from glassformer.serve.openai_schemas import described
from glassformer.serve.preparing import prepared, prepared_chat
from glassformer.serve.problems import Refusal, openai
from glassformer.serve.responses_requests import Item, ResponseAsk, ResponseNamedTool, chat_of, messages_of
from glassformer.serve.streams import event

_KEPT = 1000  # answers
_KEPT_CHARACTERS = 50_000_000


@dataclass
class Kept:
    """An answer that is kept: itself, the items it answered, and the whole conversation as messages."""

    response: dict[str, Any]
    items: list[Item]
    messages: list[dict[str, Any]]

    @property
    def size(self) -> int:
        """Characters, about."""
        return sum(len(str(message)) for message in self.messages)


class Store:
    """Answers in memory; the oldest go when there are too many, and all of them when the server ends."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._sizes = 0

    def keep(self, id: str, kept: Kept) -> None:
        """Keep an answer."""
        self._kept[id] = kept
        self._sizes += kept.size
        while len(self._kept) > 1 and (len(self._kept) > _KEPT or self._sizes > _KEPT_CHARACTERS):
            _, old = self._kept.popitem(last=False)
            self._sizes -= old.size

    def get(self, id: str, param: str | None = None) -> Kept:
        """An answer.

        Raises:
            Refusal: one that is not kept.
        """
        if id not in self._kept:
            raise Refusal(404, f"There is no response {id[:100]!r} here (any more).", param=param)
        return self._kept[id]

    def drop(self, id: str) -> None:
        """Forget an answer."""
        self._sizes -= self.get(id).size
        del self._kept[id]


class ResponseAnswer(BaseModel):
    """An answer to `POST /v1/responses`."""

    id: str
    object: str
    created_at: int
    status: str
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None


def add(api: APIRouter, models: Models) -> None:
    """Put the routes in."""
    store = Store()

    @api.post("/v1/responses", responses=described(ResponseAnswer, stream=True))
    async def respond(ask: ResponseAsk, request: Request) -> Response:
        """Answer an input, from the start or from where an earlier answer ended."""
        earlier = []
        if ask.previous_response_id is not None:
            earlier = store.get(ask.previous_response_id, "previous_response_id").messages
        chat = chat_of(ask, earlier)

        async def prepare(served: Served) -> PreparedRequest:
            return await prepared(request, prepared_chat, served, chat)

        writing = partial(ResponseWriter, ask=ask, earlier=earlier, store=store)
        return await answered(models, ask.model, request, prepare, writing, stream=bool(ask.stream))

    @api.get("/v1/responses/{id}", responses=described(ResponseAnswer))
    async def kept(id: str) -> dict[str, Any]:
        """An answer that is kept."""
        return store.get(id).response

    @api.delete("/v1/responses/{id}", responses=described(ResponseAnswer))
    async def drop(id: str) -> dict[str, Any]:
        """Forget an answer."""
        store.drop(id)
        return {"id": id, "object": "response", "deleted": True}

    @api.get("/v1/responses/{id}/input_items", responses=described(ResponseAnswer))
    async def items(id: str) -> dict[str, Any]:
        """What an answer answered."""
        found = store.get(id).items
        first, last = (found[0].get("id"), found[-1].get("id")) if found else (None, None)
        return {"object": "list", "data": found, "first_id": first, "last_id": last, "has_more": False}


class ResponseWriter(AnswerWriter):
    """A response, whole or as events."""

    def __init__(self, served: Served, ask: ResponseAsk, earlier: list[dict[str, Any]], store: Store) -> None:
        self.id = f"resp_{uuid.uuid4().hex}"
        self._ask, self._earlier, self._store = ask, earlier, store
        self._model, self._created = served.name, int(time.time())
        self._number = -1
        self._ids: dict[str, str] = {}

    def _item_id(self, kind: str) -> str:
        """The id of a part of the answer: the same whenever it is told."""
        prefix = {"reasoning": "rs", "message": "msg"}.get(kind, "fc")
        return self._ids.setdefault(kind, f"{prefix}_{uuid.uuid4().hex}")

    def _reasoning(self, text: str) -> Item:
        return {
            "id": self._item_id("reasoning"),
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": text}],
        }

    def _message(self, text: str | None, status: str) -> Item:
        content = [] if text is None else [self._part(text)]
        id = self._item_id("message")
        return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _part(self, text: str) -> Item:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _call(self, index: int, id: str, name: str, arguments: str, status: str) -> Item:
        return {
            "id": self._item_id(f"call {index}"),
            "type": "function_call",
            "call_id": id,
            "name": name,
            "arguments": arguments,
            "status": status,
        }

    def _output(self, answer: Answer) -> list[Item]:
        status = "incomplete" if answer.finish == "length" else "completed"
        out = [self._reasoning(answer.reasoning)] if answer.reasoning else []
        if answer.text or not (answer.calls or answer.reasoning):
            out.append(self._message(answer.text, "completed" if answer.calls else status))
        for i, call in enumerate(answer.calls, 1):  # only the last can have been cut off
            own = status if i == len(answer.calls) else "completed"
            out.append(self._call(i - 1, call.id, call.name, call.arguments, own))
        return out

    def _response(self, status: str, output: list[Item], exchange: Exchange | None) -> dict[str, Any]:
        ask = self._ask
        choice = ask.tool_choice.model_dump() if isinstance(ask.tool_choice, ResponseNamedTool) else ask.tool_choice
        used = None
        if exchange is not None:
            used = {
                "input_tokens": exchange.read,
                "input_tokens_details": {"cached_tokens": exchange.job.cached},
                "output_tokens": exchange.written,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": exchange.read + exchange.written,
            }
        form = {"type": "text"}
        if ask.text is not None and ask.text.format is not None:
            form = ask.text.format.model_dump(by_alias=True, exclude_none=True)
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": ask.instructions,
            "max_output_tokens": ask.max_output_tokens,
            "metadata": ask.metadata or {},
            "model": self._model,
            "output": output,
            "parallel_tool_calls": ask.parallel_tool_calls is not False,
            "previous_response_id": ask.previous_response_id,
            "reasoning": {"effort": None if ask.reasoning is None else ask.reasoning.effort, "summary": None},
            "store": ask.store is not False,
            "temperature": ask.temperature,
            "text": {"format": form},
            "tool_choice": choice or "auto",
            "tools": [tool.model_dump() for tool in ask.tools or ()],
            "top_p": ask.top_p,
            "truncation": "disabled",
            "usage": used,
        }

    def whole(self, exchange: Exchange) -> dict[str, Any]:
        [answer] = exchange.answers
        status = "incomplete" if answer.finish == "length" else "completed"
        told = self._response(status, self._output(answer), exchange)
        if self._ask.store is not False:
            given = self._ask.input
            items = [{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else list(given)
            items = [{"id": f"in_{i}_{self.id}", **item} for i, item in enumerate(items)]
            messages = [*self._earlier, *messages_of(given), *messages_of(told["output"])]
            self._store.keep(self.id, Kept(told, items, messages))
        return told

    def _event(self, kind: str, **data: object) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **data}, kind)

    async def events(self, exchange: Exchange) -> AsyncGenerator[bytes]:
        yield self._event("response.created", response=self._response("in_progress", [], None))
        yield self._event("response.in_progress", response=self._response("in_progress", [], None))
        [answer] = exchange.answers
        parts = _Parts(self, answer)
        async for _, delta in exchange.deltas():
            if delta.reasoning:
                for told in parts.reasoning(delta.reasoning):
                    yield told
            if delta.text:
                for told in parts.text(delta.text):
                    yield told
            for call in delta.calls:
                for told in parts.call(call):
                    yield told
        if not (answer.text or answer.reasoning or answer.calls):
            for told in parts.text(""):
                yield told
        for told in parts.close():
            yield told
        whole = self.whole(exchange)
        yield self._event(f"response.{whole['status']}", response=whole)

    def failure(self, found: Refusal) -> bytes:
        error = openai(found)["error"]
        failed = self._response("failed", [], None) | {"error": {"code": "server_error", "message": error["message"]}}
        return self._event("response.failed", response=failed)


class _Parts:
    """The events of an answer's parts: each is opened, grows, and is closed before the next."""

    def __init__(self, writer: ResponseWriter, answer: Answer) -> None:
        self._writer, self._answer = writer, answer
        self._open: str | None = None
        self._index = -1

    def _begin(self, kind: str, item: Item) -> list[bytes]:
        told = self.close()
        self._open, self._index = kind, self._index + 1
        return [*told, self._writer._event("response.output_item.added", output_index=self._index, item=item)]

    def reasoning(self, text: str) -> list[bytes]:
        told = (
            [] if self._open == "reasoning" else self._begin("reasoning", self._writer._reasoning("") | {"content": []})
        )
        return [*told, self._told("response.reasoning_text.delta", content_index=0, delta=text)]

    def text(self, text: str) -> list[bytes]:
        told = []
        if self._open != "message":
            told = self._begin("message", self._writer._message(None, "in_progress"))
            part = self._writer._part("")
            told.append(self._told("response.content_part.added", content_index=0, part=part))
        return [*told, self._told("response.output_text.delta", content_index=0, delta=text, logprobs=[])]

    def call(self, new: CallDelta) -> list[bytes]:
        told = []
        if new.name is not None:
            item = self._writer._call(new.index, new.id or "", new.name, "", "in_progress")
            told = self._begin(f"call {new.index}", item)
        if new.arguments:
            told.append(self._told("response.function_call_arguments.delta", delta=new.arguments))
        return told

    def _told(self, kind: str, **data: object) -> bytes:
        id = self._writer._item_id(self._open or "")
        return self._writer._event(kind, item_id=id, output_index=self._index, **data)

    def close(self) -> list[bytes]:
        """The events that end the part that is open."""
        writer, answer, told = self._writer, self._answer, []
        if self._open is None:
            return []
        if self._open == "reasoning":
            item = writer._reasoning(answer.reasoning)
            told = [self._told("response.reasoning_text.done", content_index=0, text=answer.reasoning)]
        elif self._open == "message":
            status = "incomplete" if answer.finish == "length" else "completed"
            item = writer._message(answer.text, status)
            part = writer._part(answer.text)
            told = [
                self._told("response.output_text.done", content_index=0, text=answer.text, logprobs=[]),
                self._told("response.content_part.done", content_index=0, part=part),
            ]
        else:
            index = int(self._open.split()[1])
            call = answer.calls[index]
            status = "incomplete" if answer.finish == "length" else "completed"
            item = writer._call(index, call.id, call.name, call.arguments, status)
            told = [self._told("response.function_call_arguments.done", arguments=call.arguments, name=call.name)]
        told.append(writer._event("response.output_item.done", output_index=self._index, item=item))
        self._open = None
        return told
