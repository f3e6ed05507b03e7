"""Vectors of texts: the model's own hidden states after its last layer, averaged or of the last token, and normalised.

A language model was trained to say the next word, not to lay alike texts together: these are its hidden states, and
answers name them so.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from torch import Tensor

from glassformer.interp.edits import record
from glassformer.interp.taps import compose
from glassformer.serve.fields import Ask, Name
from glassformer.serve.models import Models, Served
from glassformer.serve.openai_requests import Prompts
from glassformer.serve.openai_schemas import described
from glassformer.serve.problems import Refusal
from glassformer.views import Cancelled

if TYPE_CHECKING:
    from glassformer.lm import Model

_STATE = "final.normed"
Pooling = Literal["mean", "last"]


class EmbeddingAsk(Ask):
    """`POST /v1/embeddings`."""

    model: Name | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1, description="The first so many numbers, normalised again.")
    pooling: Pooling | None = Field(default=None, description="mean of all tokens (the usual), or the last token's.")
    IGNORED: ClassVar[frozenset[str]] = frozenset({"user", "input_type", "truncate"})


class Embedding(BaseModel):
    """One text's vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """The vectors of a request's texts: hidden states after the last layer, of length 1."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    kind: str
    usage: EmbeddingUsage


@torch.inference_mode()
def hidden_state(model: Model, ids: Sequence[int], pooling: Pooling, check: Callable[[], None]) -> Tensor:
    """(d_model) the mean of the tokens' states after the last norm, or the last one's, with length 1."""
    check()
    kept = record(_STATE)
    tokens = torch.tensor([list(ids)], device=model.transformer.device)
    model.transformer(tokens, tap=compose(*model.taps, kept, config=model.config), last=True)
    states = kept[_STATE][0].float().cpu()
    check()
    found = states.mean(0) if pooling == "mean" else states[-1]
    return torch.nn.functional.normalize(found, dim=0)


async def embed(
    models: Models, served: Served, request: Request, texts: Sequence[str | list[int]], pooling: Pooling
) -> tuple[list[Tensor], int]:
    """Every text's vector, and how many tokens were read; one text at a time, each waiting its turn.

    Raises:
        Refusal: no place. TextError: an empty text, or one that is too long. Cancelled: the client has left.
    """
    with served.queue.preparing():
        prompts = [served.ids(one, answer=0) for one in texts]
        found = []
        for ids in prompts:
            found.append(await models.scoring.run(request, partial(hidden_state, served.model, ids, pooling)))
    return found, sum(map(len, prompts))


def add(api: APIRouter, models: Models) -> None:
    """Put the route in."""

    @api.post("/v1/embeddings", responses=described(Embeddings))
    async def embeddings(ask: EmbeddingAsk, request: Request) -> Response:
        """Vectors of texts."""
        try:
            served = await models.get(ask.model)
            width = served.model.config.d_model
            if ask.dimensions is not None and ask.dimensions > width:
                raise Refusal(400, f"dimensions is {ask.dimensions} and this model has {width}.", param="dimensions")
            pooling = ask.pooling or "mean"
            vectors, read = await embed(models, served, request, ask.input, pooling)
        except Cancelled:
            return Response(status_code=499)
        data = [
            {"object": "embedding", "index": index, "embedding": written(vector[: ask.dimensions], ask.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        kind = f"hidden states after the last layer, {pooling} of the tokens, length 1"
        used = {"prompt_tokens": read, "total_tokens": read}
        return JSONResponse({"object": "list", "data": data, "model": served.name, "kind": kind, "usage": used})


def written(vector: Tensor, encoding: str | None) -> list[float] | str:
    """A vector as numbers, or as base64 of little-endian float32."""
    vector = torch.nn.functional.normalize(vector, dim=0)
    if encoding == "base64":
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode("ascii")
    return vector.tolist()
