"""What comes next: the text as tokens, the distribution after a position, whole words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from glassformer.model.choices import Experts
from glassformer.tokenizer.spelling import is_whole, spelled, spelled_after
from glassformer.views.arrays import packed
from glassformer.views.asks import Ask, At, Count, Strict
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.lm import Model
    from glassformer.views.report_data import ReportDraft
    from glassformer.views.session import Session


@view("tokens", Ask, python="model.encode({text!r})")
def tokens(session: Session, ask: Ask, check: Check) -> Json:
    """The text as the model cut it: ids, bytes, where each token stands, and the words."""
    from glassformer.interp.token_words import words as by_word

    model = session.model(ask.model)
    # Without a text there is still a model to name.
    ids = session.ids(ask) if ask.text else []
    tokenizer = model.tokenizer
    pieces = [tokenizer.token_bytes(id) for id in ids]
    out: list[Json] = []
    at = 0
    for id, piece, text in zip(ids, pieces, spelled(pieces), strict=True):
        special = id in tokenizer.special_ids
        out.append(
            {
                "id": id,
                "text": tokenizer.token_text(id) if special else text,
                "bytes": piece.hex(),
                "special": special,
                "start": at,
                "end": at + (0 if special else len(piece)),
            }
        )
        at += 0 if special else len(piece)
    return {
        "model": model.name,
        "precision": model.precision,
        "context": model.config.context,
        "layers": model.config.n_layers,
        "heads": model.config.most_heads,
        "experts": [i for i, layer in enumerate(model.config.layers) if isinstance(layer.feed_forward, Experts)],
        "text": ask.text,
        "tokens": out,
        "words": [{"text": w.text, "tokens": list(w.positions)} for w in by_word(ids, tokenizer)],
    }


def logits_at(session: Session, ask: At) -> tuple[int, Tensor]:
    """The position asked for, counted from the start, and its logits (vocab) in float32."""
    trace = session.trace(ask)
    position = trace.position(ask.position)
    return position, trace.logits(position).float()


def listed(model: Model, logits: Tensor, top: int, before: Sequence[int] = ()) -> list[Json]:
    """The likeliest tokens; `before` are the ids that they follow, of whose last character they may be parts."""
    pending = [model.tokenizer.token_bytes(id) for id in before]
    probabilities = torch.softmax(logits.double(), -1)
    best = probabilities.topk(min(top, len(logits)))
    return [
        {
            "id": id,
            "token": spelled_after(pending, model.tokenizer.token_bytes(id)) or model.tokenizer.token_text(id),
            "whole": is_whole(model.tokenizer.token_bytes(id)),
            "bytes": model.tokenizer.token_bytes(id).hex(),
            "logit": float(logits[id]),
            "probability": p,
        }
        for id, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def entropy(logits: Tensor) -> float:
    """Entropy of the softmax of logits (vocab), in nats."""
    logprobs = torch.log_softmax(logits.double(), -1)
    return float(-(logprobs.exp() * logprobs).nan_to_num(0.0).sum())


def _nexts(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    """Every position's likeliest tokens, and the last one's whole distribution for the sliders."""
    for position in range(draft.count):
        last = position == draft.count - 1
        found = draft.ask("next", position=position, top=200 if last else 12)
        yield {"position": position, "edits": draft.edits}, found if last else {**found, "logits": None}


class NextAsk(At):
    top: Count = Field(default=200, description="Tokens listed.")


@view("next", NextAsk, report=_nexts, trims=("top",), python="model.trace({text!r}).logits({position})")
def next_token(session: Session, ask: NextAsk, check: Check) -> Json:
    """The whole distribution after a position: the likeliest spelled out, and every logit."""
    position, logits = logits_at(session, ask)
    model = session.model(ask.model)
    return {
        "model": model.name,
        "precision": model.precision,
        "position": position,
        "entropy": entropy(logits),
        "tokens": listed(model, logits, ask.top, session.ids(ask)[: position + 1]),
        "logits": packed(logits),
    }


class VocabAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    ids: list[int] = Field(max_length=5000, description="Token ids.")


@view("vocab", VocabAsk, python="[model.tokenizer.token_text(i) for i in {ids}]")
def vocab(session: Session, ask: VocabAsk, check: Check) -> Json:
    """The texts of token ids."""
    tokenizer = session.model(ask.model).tokenizer
    known = range(tokenizer.vocab_size)
    pieces = [tokenizer.token_bytes(i) if i in known else f"<{i}>".encode() for i in ask.ids]
    return {"texts": [spelled([piece])[0] for piece in pieces], "whole": [is_whole(piece) for piece in pieces]}


class WordsAsk(At):
    limit: Count = Field(default=10, description="Words listed.")


@view(
    "words",
    WordsAsk,
    report=lambda draft: (
        None if draft.options.light else draft.kept("words", position=draft.explained, edits=draft.edits)
    ),
    trims=("limit",),
)
def words(session: Session, ask: WordsAsk, check: Check) -> Json:
    """Whole next words after a position, each as an interval."""
    model, ids = session.edited(ask), session.ids(ask)
    position = (
        ask.position % len(ids) if -len(ids) <= ask.position < len(ids) else session.trace(ask).position(ask.position)
    )
    check()
    return model.next(ids[: position + 1]).words(ask.limit).to_json()


def difference(model: Model, before: Tensor, after: Tensor, top: int) -> Json:
    """KL divergence of `after` from `before`, in nats, and the tokens whose probability moved most."""
    p, q = torch.log_softmax(before.double(), -1), torch.log_softmax(after.double(), -1)
    moved = q.exp() - p.exp()
    most = moved.abs().topk(min(top, len(moved))).indices.tolist()
    return {
        "kl": float((p.exp() * (p - q)).nan_to_num(0.0).sum().clamp(min=0)),
        "changed": [
            {"id": i, "token": model.tokenizer.token_text(i), "before": float(p[i].exp()), "after": float(q[i].exp())}
            for i in most
        ],
    }
