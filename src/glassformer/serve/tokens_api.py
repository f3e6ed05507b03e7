"""Text to token ids and back: `/tokenize`, `/detokenize` and `/tokenizer_info`, in the words of vLLM and llama.cpp."""

from __future__ import annotations

from typing import Any, ClassVar

from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator
from starlette.concurrency import run_in_threadpool

from glassformer.serve.fields import Ask, Name
from glassformer.serve.models import Models
from glassformer.serve.openai_requests import ChatAsk, Message
from glassformer.serve.openai_schemas import described
from glassformer.serve.preparing import chat_text


class TokenizeAsk(Ask):
    """`POST /tokenize`: a text, or a conversation."""

    model: Name | None = None
    prompt: str | None = None
    content: str | None = Field(default=None, description="The same as prompt, as llama.cpp spells it.")
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=4000)
    add_special_tokens: bool | None = Field(default=None, description="false leaves the begin-of-text token away.")
    add_special: bool | None = Field(default=None, description="The same, as llama.cpp spells it.")
    return_token_strs: bool | None = None
    with_pieces: bool | None = Field(default=None, description="Each token with its text, as llama.cpp does.")
    IGNORED: ClassVar[frozenset[str]] = frozenset({"parse_special"})

    @model_validator(mode="after")
    def _one(self) -> TokenizeAsk:
        if sum(one is not None for one in (self.prompt, self.content, self.messages)) != 1:
            raise ValueError("one of prompt, content and messages is needed")
        return self


class Tokens(BaseModel):
    """A text's tokens."""

    tokens: list[int] | list[dict[str, Any]]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class DetokenizeAsk(Ask):
    """`POST /detokenize`."""

    model: Name | None = None
    tokens: list[int] = Field(max_length=1_000_000)


class Text(BaseModel):
    """The text of tokens."""

    prompt: str
    content: str


class TokenizerInfo(BaseModel):
    """What a client that renders conversations and counts tokens needs to know."""

    model: str
    model_max_length: int
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None


def add(api: APIRouter, models: Models) -> None:
    """Put the routes in."""

    @api.post("/tokenize", responses=described(Tokens))
    async def tokenize(ask: TokenizeAsk) -> dict[str, Any]:
        """The token ids of a text or a conversation, and what each stands for."""
        served = await models.get(ask.model)
        tokenizer = served.model.tokenizer

        def encode() -> list[int]:
            if ask.messages is not None:
                return tokenizer.encode(chat_text(served, ChatAsk(messages=ask.messages)).text, bos=False)
            bare = ask.add_special_tokens is False or ask.add_special is False
            return tokenizer.encode(ask.prompt or ask.content or "", bos=False if bare else None)

        ids = await run_in_threadpool(encode)
        told: dict[str, Any] = {"count": len(ids), "max_model_len": served.capacity, "tokens": ids}
        if ask.with_pieces:
            told["tokens"] = [{"id": id, "piece": tokenizer.token_text(id)} for id in ids]
        if ask.return_token_strs:
            told["token_strs"] = [tokenizer.token_text(id) for id in ids]
        return told

    @api.get("/tokenizer_info", responses=described(TokenizerInfo))
    async def info(model: Name | None = None) -> dict[str, Any]:
        """The special tokens and the chat template."""
        served = await models.get(model)
        tokenizer = served.model.tokenizer
        named = tokenizer.named_tokens()
        return {
            "model": served.name,
            "model_max_length": served.capacity,
            "vocab_size": served.model.config.vocab_size,
            **{name: named.get(name) or None for name in ("bos_token", "eos_token", "pad_token", "unk_token")},
            "chat_template": tokenizer.chat_template,
        }

    @api.post("/detokenize", responses=described(Text))
    async def detokenize(ask: DetokenizeAsk) -> dict[str, str]:
        """The text of token ids."""
        served = await models.get(ask.model)
        text = await run_in_threadpool(served.model.decode, served.known_ids(ask.tokens))
        return {"prompt": text, "content": text}
