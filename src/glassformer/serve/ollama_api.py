"""Ollama's API: `/api/chat`, `/api/generate`, `/api/embed`, `/api/tags` and what its clients ask beside them.

A request becomes a chat or completion of OpenAI's kind and is answered like one; only its words differ.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BeforeValidator, Field
from starlette.concurrency import run_in_threadpool

from glassformer import __version__
from glassformer.errors import near
from glassformer.serve import ollama_schemas as schemas
from glassformer.serve.answers import Call
from glassformer.serve.embeddings import embed, written
from glassformer.serve.exchange import AnswerWriter, Exchange, PreparedRequest, answered
from glassformer.serve.fields import Ask, sampling_fields
from glassformer.serve.models import Models, Served
from glassformer.serve.ollama_schemas import described
from glassformer.serve.openai_requests import ChatAsk, CompletionAsk, FunctionAsk, ToolAsk
from glassformer.serve.preparing import prepared, prepared_chat, requests
from glassformer.serve.problems import Refusal
from glassformer.serve.streams import dumped
from glassformer.serve.translating import Chat, translated
from glassformer.views import Cancelled

# How a model is computed, which is said when the server starts, and never what is answered.
_MACHINE = frozenset(
    {
        "num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "use_mlock", "num_thread", "num_keep", "numa",
        "low_vram", "vocab_only", "f16_kv", "penalize_newline", "logits_all", "embedding_only",
    }
)  # fmt: skip
_OPTIONS = {name: name for name in (*sampling_fields(), *CompletionAsk.NEUTRAL, "stop")} | {"num_predict": "max_tokens"}
_NAMES = {
    **{told: f"options.{name}" for name, told in _OPTIONS.items()},
    "response_format": "format",
    "reasoning_effort": "think",
    "chat_template_kwargs": "think",
}
Named = Annotated[str, Field(max_length=500), BeforeValidator(lambda name: _bare(name))]


def _bare(name: object) -> Any:
    """Clients of Ollama put the usual tag after a name."""
    return name.removesuffix(":latest") if isinstance(name, str) else name


class _Asked(Ask):
    model: Named
    stream: bool | None = None
    options: dict[str, Any] | None = Field(default=None, description="Samplers, by Ollama's names.")
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    IGNORED: ClassVar[frozenset[str]] = frozenset({"keep_alive", "truncate", "shift"})

    def settings(self) -> dict[str, Any]:
        """The samplers as a chat takes them; one that there is not is refused."""
        told: dict[str, Any] = {}
        for name, value in (self.options or {}).items():
            if name in _MACHINE or value is None:
                continue
            if name not in _OPTIONS:
                where = f"options.{name[:100]}"
                raise Refusal(400, f"{where}: There is no such option.{near(name, _OPTIONS)}", param=where)
            told[_OPTIONS[name]] = value
        if told.get("max_tokens") == -2:  # fill the context
            told["max_tokens"] = -1
        return told

    def chat_settings(self) -> dict[str, Any]:
        """… with what only a chat has."""
        told = self.settings()
        if self.think is not None:
            told["chat_template_kwargs"] = {"enable_thinking": bool(self.think)}
            if isinstance(self.think, str):
                told["reasoning_effort"] = self.think
        if self.format:
            json_object = {"type": "json_object"}
            schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": self.format}}
            told["response_format"] = json_object if self.format == "json" else schema
        return told


class CalledTool(Ask):
    """What was called."""

    name: str
    arguments: dict[str, Any]
    index: int | None = None


class CallMade(Ask):
    """A call that an assistant made."""

    function: CalledTool
    id: str | None = None


class OllamaMessage(Ask):
    """One message."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Annotated[list[Any], Field(max_length=0)] | None = Field(default=None, description="None can be read.")
    tool_calls: list[CallMade] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaTool(ToolAsk):
    """A tool that may be called."""

    type: Literal["function"] = "function"
    function: FunctionAsk


class OllamaChatAsk(_Asked):
    """`POST /api/chat`."""

    messages: list[OllamaMessage] = Field(default=[], max_length=4000)
    tools: list[OllamaTool] | None = None


class OllamaGenerateAsk(_Asked):
    """`POST /api/generate`."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = Field(default=None, description="The prompt as it stands, without the chat template.")
    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "suffix": ("",),
        "template": ("",),
        "context": ([],),
        "images": ([],),
    }


class OllamaEmbedAsk(Ask):
    """`POST /api/embed`."""

    model: Named
    input: str | list[str] | None = None
    prompt: str | None = Field(default=None, description="One text, as the older route takes it.")
    dimensions: int | None = Field(default=None, ge=1)
    IGNORED: ClassVar[frozenset[str]] = frozenset({"options", "keep_alive", "truncate"})


class OllamaShowAsk(Ask):
    """`POST /api/show`."""

    model: Named | None = None
    name: Named | None = None
    IGNORED: ClassVar[frozenset[str]] = frozenset({"verbose", "system", "template", "options"})


def add(api: APIRouter, models: Models) -> None:
    """Put the routes in."""

    @api.post("/api/chat", responses=described(schemas.OllamaChat, stream=True))
    async def chat(ask: OllamaChatAsk, request: Request) -> Response:
        """Answer a conversation."""
        if not ask.messages:
            return JSONResponse(_loaded((await models.get(ask.model)).name, "message"))
        made = _chat_of(ask)

        async def prepare(served: Served) -> PreparedRequest:
            return await prepared(request, prepared_chat, served, made)

        writing = partial(OllamaWriter, chat=True)
        return await answered(models, ask.model, request, prepare, writing, stream=ask.stream is not False)

    @api.post("/api/generate", responses=described(schemas.OllamaText, stream=True))
    async def generate(ask: OllamaGenerateAsk, request: Request) -> Response:
        """Answer, or with `raw` continue, a text."""
        if not ask.prompt:
            return JSONResponse(_loaded((await models.get(ask.model)).name, "response"))

        async def prepare(served: Served) -> PreparedRequest:
            return await run_in_threadpool(_prepared_generate, served, ask)

        writing = partial(OllamaWriter, chat=False)
        return await answered(models, ask.model, request, prepare, writing, stream=ask.stream is not False)

    async def embedded(ask: OllamaEmbedAsk, request: Request) -> tuple[Served, list[Any], int]:
        served = await models.get(ask.model)
        given = ask.input if ask.input is not None else ask.prompt
        if given is None:
            raise Refusal(400, "input: a text or several are needed.")
        texts = [given] if isinstance(given, str) else given
        if not texts:
            raise Refusal(400, "input: at least one text is needed.")
        vectors, read = await embed(models, served, request, texts, "mean")
        return served, [written(vector[: ask.dimensions], None) for vector in vectors], read

    @api.post("/api/embed", responses=described(schemas.OllamaVectors))
    async def embed_texts(ask: OllamaEmbedAsk, request: Request) -> Response:
        """Vectors of texts: the model's hidden states after the last layer, averaged, of length 1."""
        start = time.monotonic_ns()
        try:
            served, vectors, read = await embedded(ask, request)
        except Cancelled:
            return Response(status_code=499)
        took = time.monotonic_ns() - start
        told = {"model": served.name, "embeddings": vectors, "total_duration": took, "load_duration": 0}
        return JSONResponse(told | {"prompt_eval_count": read})

    @api.post("/api/embeddings", responses=described(schemas.OllamaVector))
    async def embed_text(ask: OllamaEmbedAsk, request: Request) -> Response:
        """One text's vector, in the older shape."""
        try:
            _, vectors, _ = await embedded(ask, request)
        except Cancelled:
            return Response(status_code=499)
        return JSONResponse({"embedding": vectors[0]})

    @api.get("/api/tags", responses=described(schemas.OllamaModels), response_model=None)
    async def tags() -> dict[str, Any]:
        """The models served."""
        return {"models": [_card(card) for card in models.cards()]}

    @api.get("/api/ps", responses=described(schemas.OllamaModels), response_model=None)
    async def running() -> dict[str, Any]:
        """The models in memory."""
        return {"models": [_card(card) for card in models.cards() if card.get("loaded", True)]}

    @api.get("/api/version", responses=described(schemas.OllamaVersion), response_model=None)
    async def version() -> dict[str, str]:
        """Our version."""
        return {"version": __version__}

    @api.post("/api/show", responses=described(schemas.OllamaDesign), response_model=None)
    async def show(ask: OllamaShowAsk) -> dict[str, Any]:
        """One model's design."""
        served = await models.get(ask.model or ask.name)
        config, tokenizer = served.model.config, served.model.tokenizer
        capabilities = ["completion", "embedding"] + (["tools"] if tokenizer.chat_template else [])
        info = {
            "general.architecture": "glassformer",
            "glassformer.context_length": served.capacity,
            "glassformer.embedding_length": config.d_model,
            "glassformer.block_count": config.n_layers,
        }
        template = tokenizer.chat_template or ""
        details = _card(served.card())["details"]
        return {"template": template, "details": details, "model_info": info, "capabilities": capabilities}


def _card(card: Mapping[str, Any]) -> dict[str, Any]:
    details = {
        "parent_model": "",
        "format": "glassformer",
        "family": "glassformer",
        "families": ["glassformer"],
        "parameter_size": "",
        "quantization_level": card.get("precision", ""),
    }
    changed = datetime.fromtimestamp(card["created"], UTC).isoformat()
    return {
        "name": card["id"],
        "model": card["id"],
        "modified_at": changed,
        "size": 0,
        "digest": "",
        "details": details,
    }


def _loaded(model: str, field: str) -> dict[str, Any]:
    """What an empty request is answered with: the model is there."""
    empty: object = {"role": "assistant", "content": ""} if field == "message" else ""
    return {"model": model, "created_at": _now(), field: empty, "done": True, "done_reason": "load"}


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _chat_of(ask: OllamaChatAsk) -> ChatAsk:
    chat = Chat(_NAMES)
    waiting: list[tuple[str, str]] = []  # calls that have no result yet: Ollama's results name the tool alone
    for number, one in enumerate(ask.messages):
        where = f"messages.{number}"
        told: dict[str, Any] = {"role": one.role, "content": one.content, "reasoning_content": one.thinking}
        if one.role == "tool":
            asked = one.tool_call_id, one.tool_name
            fits = [
                i for i, call in enumerate(waiting) if all(a in (None, b) for a, b in zip(asked, call, strict=True))
            ]
            for field in ("tool_call_id", "tool_name"):
                if (given := getattr(one, field)) is not None and not fits:
                    said = f"no earlier message makes a call of {given[:100]!r} that has no result yet."
                    raise Refusal(400, f"{where}.{field}: {said}")
            if fits:
                told["tool_call_id"] = waiting.pop(fits[0])[0]
            told["name"] = one.tool_name
        chat.add(told, where, reasoning_content=f"{where}.thinking", name=f"{where}.tool_name")
        for place, call in enumerate(one.tool_calls or ()):
            id = call.id or f"call_{number}_{place}"
            waiting.append((id, call.function.name))
            arguments = json.dumps(call.function.arguments, ensure_ascii=False)
            chat.call(id, call.function.name, arguments, f"{where}.tool_calls.{place}")
    tools = [tool.model_dump(exclude_none=True) for tool in ask.tools or ()]
    return chat.ask({**ask.chat_settings(), "tools": tools or None})


def _prepared_generate(served: Served, ask: OllamaGenerateAsk) -> PreparedRequest:
    prompt = ask.prompt or ""
    if ask.raw or served.model.tokenizer.chat_template is None:
        if ask.format:
            raise Refusal(400, "format: only prompts in the model's chat template can have one; leave raw away.")
        made = translated(CompletionAsk, {**ask.settings(), "prompt": prompt}, _NAMES)
        ids = served.ids(prompt)
        return PreparedRequest([ids], requests(served, made, ids, made.max_tokens, None))
    chat = Chat(_NAMES)
    if ask.system is not None:
        chat.add({"role": "system", "content": ask.system}, "system", content="system")
    chat.add({"role": "user", "content": prompt}, "prompt", content="prompt")
    return prepared_chat(served, chat.ask(ask.chat_settings()))


def _called(call: Call) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError:
        arguments = {}
    return {"id": call.id, "function": {"name": call.name, "arguments": arguments}}


class OllamaWriter(AnswerWriter):
    """Objects with a message or a response in them, whole or one a line."""

    media_type = "application/x-ndjson"
    alive = b""

    def __init__(self, served: Served, *, chat: bool) -> None:
        self._model, self._chat = served.name, chat

    def _told(self, text: str, thought: str, calls: list[Call], **more: object) -> dict[str, Any]:
        said: dict[str, Any] = {}
        if thought:
            said["thinking"] = thought
        if calls:
            said["tool_calls"] = [_called(call) for call in calls]
        if self._chat:
            said = {"message": {"role": "assistant", "content": text, **said}}
        else:
            said["response"] = text
        return {"model": self._model, "created_at": _now(), **said, "done": False, **more}

    def _end(self, exchange: Exchange) -> dict[str, Any]:
        [handle] = exchange.job.handles
        now = time.monotonic()
        first = handle.first or now

        def nanoseconds(seconds: float) -> int:
            return max(0, int(1e9 * seconds))

        [answer] = exchange.answers
        return {
            "done": True,
            "done_reason": "length" if answer.finish == "length" else "stop",
            "total_duration": nanoseconds(now - exchange.job.started),
            "load_duration": 0,
            "prompt_eval_count": exchange.read,
            "prompt_eval_duration": nanoseconds(first - handle.submitted),
            "eval_count": exchange.written,
            "eval_duration": nanoseconds(now - first),
        }

    def whole(self, exchange: Exchange) -> dict[str, Any]:
        [answer] = exchange.answers
        return self._told(answer.text, answer.reasoning, answer.calls) | self._end(exchange)

    async def events(self, exchange: Exchange) -> AsyncGenerator[bytes]:
        [answer] = exchange.answers
        async for _, delta in exchange.deltas():
            if delta.text or delta.reasoning:
                yield dumped(self._told(delta.text, delta.reasoning, [])) + b"\n"
        yield dumped(self._told("", "", answer.calls) | self._end(exchange)) + b"\n"

    def failure(self, found: Refusal) -> bytes:
        return dumped({"error": found.message}) + b"\n"
