"""The OpenAI-compatible routes: models, completions, chat completions; and the server's health and metrics."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from glassformer.errors import TextError, UsageError
from glassformer.generate.request import Request as Asked
from glassformer.generate.sampling import Sampling
from glassformer.serve.app import problem
from glassformer.serve.openai_exchange import Chat, Completion, Plan, Serving, Unknown, answered, told
from glassformer.serve.openai_requests import ChatAsk, CompletionAsk, Problem, Sampled
from glassformer.serve.scoring import prompt_entries
from glassformer.serve.telemetry import CONTENT_TYPE

ROUTES = frozenset({"/v1/models", "/v1/completions", "/v1/chat/completions", "/healthz", "/metrics", "/openapi.json"})
BODY_SECONDS = 30.0
_JSON = re.compile(r"\s*application/([^/;\s]+\+)?json\s*(;|$)", re.IGNORECASE)
_USUAL = 16  # tokens of a completion that does not say how many
_PROBLEMS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Problem}, "5XX": {"model": Problem}}


class _Careful(APIRoute):
    """Reads the body with a time limit and says what is wrong with it before its fields are looked at."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            if request.method == "POST":
                refusal = await _unreadable(request)
                if refusal is not None:
                    return refusal
            return await inner(request)

        return handler


async def _unreadable(request: Request) -> Response | None:
    try:
        body = await asyncio.wait_for(request.body(), BODY_SECONDS)
    except TimeoutError:
        return problem(408, f"The request's body did not arrive within {BODY_SECONDS:g} s.")
    except ClientDisconnect:  # or the guard, which hangs up on bodies that are longer than they said
        return problem(413, "The request's body is longer than this server reads.")
    try:
        json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        return problem(400, f"The request's body is not UTF-8 text (its byte {error.start} cannot be decoded).")
    except json.JSONDecodeError as error:
        return problem(400, f"The request's body is not JSON ({error.msg} at character {error.pos}).")
    except (ValueError, RecursionError):
        return problem(400, "The request's body is JSON that cannot be read: too deep, or with numbers too long.")
    kind = request.headers.get("content-type", "")
    if not _JSON.match(kind):
        said = f"said to be {kind[:100]!r}" if kind else "of no kind that is said"
        return problem(415, f"The request's body is {said}; send it with the header 'Content-Type: application/json'.")
    return None


def router(serving: Serving) -> APIRouter:
    """The routes for one model."""
    api = APIRouter(route_class=_Careful)
    desk = serving.desk

    @api.get("/v1/models", responses=_PROBLEMS)
    async def models() -> dict[str, Any]:
        """The models served."""
        return {"object": "list", "data": [serving.card()]}

    @api.get("/v1/models/{name:path}", responses=_PROBLEMS)
    async def model(name: str) -> Any:
        """One model."""
        try:
            serving.known(name)
        except Unknown as error:
            return told(error)
        return serving.card()

    @api.post("/v1/completions", responses=_PROBLEMS)
    async def completions(ask: CompletionAsk, request: Request) -> Response:
        """Continue a text."""

        async def plan() -> Plan:
            made = await run_in_threadpool(_completion_plan, serving, ask)
            if ask.echo and ask.logprobs is not None:
                for ids in made.prompts:
                    score = partial(prompt_entries, serving.model, ids, ask.logprobs)
                    made.scored.append(await serving.scoring.run(request, score))
            return made

        return await answered(serving, ask, request, plan, Completion(serving, ask))

    @api.post("/v1/chat/completions", responses=_PROBLEMS)
    async def chat(ask: ChatAsk, request: Request) -> Response:
        """Answer a conversation."""

        async def plan() -> Plan:
            return await run_in_threadpool(_chat_plan, serving, ask)

        return await answered(serving, ask, request, plan, Chat(serving, ask))

    @api.get("/healthz", responses=_PROBLEMS)
    async def healthz() -> Response:
        """Whether the server takes requests."""
        if desk.draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ok", "model": serving.names[0], "precision": desk.engine.precision})

    @api.get("/metrics")
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(await run_in_threadpool(desk.metrics.text), media_type=CONTENT_TYPE)

    return api


# From what is asked to what the engine is asked


def _completion_plan(serving: Serving, ask: CompletionAsk) -> Plan:
    prompts = [serving.model.ids(one) for one in ask.prompt]
    texts = [one if isinstance(one, str) else serving.model.decode(one) for one in ask.prompt]
    for ids in prompts:
        if len(ids) > (room := serving.desk.engine.capacity):
            raise TextError(
                f"The prompt is {len(ids)} tokens long and {serving.names[0]} reads at most {room} here, the answer "
                "included; shorten it."
            )
    asked: list[Asked] = []
    if ask.max_tokens != 0:
        for ids in prompts:
            room = serving.desk.engine.capacity - len(ids)
            usual = min(_USUAL, max(1, room), serving.most_tokens or _USUAL)
            most = usual if ask.max_tokens is None else ask.max_tokens
            asked += _asked(serving, ask, ids, most, ask.logprobs)
    return Plan(prompts, asked, texts if ask.echo else [""] * len(texts), [])


def _chat_plan(serving: Serving, ask: ChatAsk) -> Plan:
    tokenizer = serving.model.tokenizer
    ids = serving.model.ids(tokenizer.encode(tokenizer.render_chat(ask.conversation()), bos=False))
    most = ask.max_completion_tokens or ask.max_tokens
    top = (ask.top_logprobs or 0) if ask.logprobs else None
    return Plan([ids], _asked(serving, ask, ids, most, top), [""], [])


def _asked(serving: Serving, ask: Sampled, ids: list[int], most: int | None, logprobs: int | None) -> list[Asked]:
    engine, limit = serving.desk.engine, serving.most_tokens
    if limit is not None and (most or 0) > limit:
        raise UsageError(f"max_tokens is {most} and this server gives at most {limit} tokens an answer.")
    if most is not None and len(ids) < engine.capacity < len(ids) + most:
        raise TextError(
            f"The prompt is {len(ids)} token{'s' * (len(ids) > 1)} long and max_tokens asks for {most} more; "
            f"{serving.names[0]} reads at most {engine.capacity}, the answer included."
        )
    made = []
    for number in range(ask.n or 1):
        sampling = Sampling(
            temperature=1.0 if ask.temperature is None else ask.temperature,
            top_k=ask.top_k or 0,
            top_p=1.0 if ask.top_p is None else ask.top_p,
            min_p=ask.min_p or 0.0,
            repetition_penalty=1.0 if ask.repetition_penalty is None else ask.repetition_penalty,
            presence_penalty=ask.presence_penalty or 0.0,
            frequency_penalty=ask.frequency_penalty or 0.0,
            logit_bias=ask.logit_bias,
            seed=None if ask.seed is None else ask.seed + number,
        )
        one = Asked(tuple(ids), most or limit, sampling, tuple(ask.stop), logprobs=logprobs)
        engine.check(one)
        made.append(one)
    return made
