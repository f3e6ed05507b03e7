"""OpenAI's routes: models, completions and chat completions."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from glassformer.serve.edits import edited
from glassformer.serve.exchange import PreparedRequest, answered
from glassformer.serve.models import Models, Served
from glassformer.serve.openai_requests import ChatAsk, CompletionAsk
from glassformer.serve.openai_schemas import ChatCompletion, Completion, ModelCard, ModelList, described
from glassformer.serve.openai_writers import ChatWriter, CompletionWriter
from glassformer.serve.preparing import prepared, prepared_chat, requests
from glassformer.serve.scoring import prompt_entries

_USUAL = 16  # tokens of a completion that does not say how many


def add(api: APIRouter, models: Models) -> None:
    """Put the routes in."""

    @api.get("/v1/models", responses=described(ModelList))
    async def list_models() -> dict[str, Any]:
        """The models served."""
        return {"object": "list", "data": models.cards()}

    @api.get("/v1/models/{name:path}", responses=described(ModelCard))
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        return models.card(name) if name else await list_models()

    @api.post("/v1/completions", responses=described(Completion, stream=True))
    async def completions(ask: CompletionAsk, request: Request) -> Response:
        """Continue a text."""

        async def prepare(served: Served) -> PreparedRequest:
            made, hidden = await prepared(request, prepared_completion, served, ask)
            if ask.echo and ask.logprobs is not None:
                for ids, first in zip(made.prompts, hidden, strict=True):
                    score = partial(prompt_entries, edited(served, ask.edits), ids, first, ask.logprobs)
                    made.scored.append(await models.scoring.run(request, score))
            return made

        writing = partial(CompletionWriter, ask=ask)
        return await answered(models, ask.model, request, prepare, writing, stream=bool(ask.stream))

    @api.post("/v1/chat/completions", responses=described(ChatCompletion, stream=True))
    async def chat(ask: ChatAsk, request: Request) -> Response:
        """Answer a conversation."""

        async def prepare(served: Served) -> PreparedRequest:
            return await prepared(request, prepared_chat, served, ask)

        writing = partial(ChatWriter, ask=ask)
        return await answered(models, ask.model, request, prepare, writing, stream=bool(ask.stream))


def prepared_completion(served: Served, ask: CompletionAsk) -> tuple[PreparedRequest, list[int]]:
    """What the engine is asked, and how many first tokens of each prompt are not in its text."""
    tokenizer = served.model.tokenizer
    answer = 0 if ask.max_tokens == 0 else 1
    prompts, echoes, hidden = [], [], []
    for one in ask.prompt:
        ids = served.ids(one, answer=answer)
        put_before = 0
        if isinstance(one, str) and tokenizer.adds_bos:
            put_before = len(ids) - len(tokenizer.encode(one, bos=False))
        prompts.append(ids)
        hidden.append(put_before)
        if not ask.echo:
            continue
        # With log-probabilities the text is what the tokens spell, which their offsets refer to.
        echoes.append(one if isinstance(one, str) and ask.logprobs is None else tokenizer.decode(ids[put_before:]))
    asked = []
    if answer:
        for ids in prompts:
            asked += requests(served, ask, ids, ask.max_tokens, ask.logprobs, usual=_USUAL)
    return PreparedRequest(prompts, asked, echoes, edits=ask.edits), hidden
