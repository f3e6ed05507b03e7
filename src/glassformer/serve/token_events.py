"""An answer as `Model.generate` gives it, for `gf.connect`: an event a token, with probability and alternatives."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from glassformer.generate.tokens import generated_tokens
from glassformer.serve.exchange import AnswerWriter, Exchange, PreparedRequest, answered
from glassformer.serve.models import Models, Served
from glassformer.serve.openai_api import prepared_completion
from glassformer.serve.openai_requests import CompletionAsk
from glassformer.serve.openai_schemas import streamed
from glassformer.serve.preparing import prepared
from glassformer.serve.problems import Refusal, openai
from glassformer.serve.streams import event


class GenerateAsk(CompletionAsk):
    """`POST /v1/verbs/generate`: a completion, drawn as the request says and not as the model's files do."""

    logprobs: int = Field(default=0, ge=0, le=1000, description="Likeliest tokens listed with each.")


class TokenWriter(AnswerWriter):
    """Each token as an event; the whole is the text."""

    def __init__(self, served: Served) -> None:
        self.id, self._tokenizer = f"tokens-{uuid.uuid4().hex}", served.model.tokenizer

    def whole(self, exchange: Exchange) -> dict[str, Any]:
        return {"text": [answer.text for answer in exchange.answers]}

    async def events(self, exchange: Exchange) -> AsyncGenerator[bytes]:
        counts = [0] * len(exchange.answers)
        async with aclosing(exchange.job.events(exchange.http)) as steps:
            async for index, step in steps:
                exchange.answers[index].push(step)
                for token in generated_tokens([step], self._tokenizer):
                    yield event(replace(token, index=counts[index]).to_dict())
                    counts[index] += 1

    def failure(self, found: Refusal) -> bytes:
        return event(openai(found), "error")


def add(api: APIRouter, models: Models) -> None:
    """Put the route in."""

    @api.post("/v1/verbs/generate", response_class=Response, responses=streamed("An event a token."))
    async def generate(ask: GenerateAsk, request: Request) -> Response:
        """Continue a text, token by token, as a stream of events."""

        def asked_for(served: Served, ask: GenerateAsk) -> PreparedRequest:
            made, _ = prepared_completion(served, ask)
            made.asked = [replace(one, sampling=ask.sampling(), stop=tuple(ask.stop)) for one in made.asked]
            return made

        async def prepare(served: Served) -> PreparedRequest:
            return await prepared(request, asked_for, served, ask)

        return await answered(models, ask.model, request, prepare, TokenWriter, stream=True)
