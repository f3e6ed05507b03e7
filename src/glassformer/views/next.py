"""Views of what comes next: tokens, distributions, whole words, and how edits change them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glassformer.views.arrays import packed

if TYPE_CHECKING:
    from glassformer.lm import Model
    from glassformer.views.session import Check, Studio


def tokens(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """The text as the model cut it: ids, bytes, where each token stands, and the words."""
    from glassformer.interp.token_words import words as by_word

    model = studio.model(ask.model)
    ids = studio.ids(ask)
    tokenizer = model.tokenizer
    out: list[dict[str, Any]] = []
    at = 0
    for id in ids:
        special = id in tokenizer.special_ids
        spelled = tokenizer.token_bytes(id)
        out.append(
            {
                "id": id,
                "text": tokenizer.token_text(id) if special else spelled.decode("utf-8", "replace"),
                "bytes": spelled.hex(),
                "special": special,
                "start": at,
                "end": at + (0 if special else len(spelled)),
            }
        )
        at += 0 if special else len(spelled)
    return {
        "model": model.name,
        "precision": model.precision,
        "context": model.config.context,
        "layers": model.config.n_layers,
        "heads": model.config.attention.n_heads,
        "text": ask.text,
        "tokens": out,
        "words": [{"text": w.text, "tokens": list(w.positions)} for w in by_word(ids, tokenizer)],
    }


def _logits(studio: Studio, ask: Any) -> tuple[int, Tensor]:
    trace = studio.trace(ask)
    position = trace.position(ask.position)
    return position, trace.logits(position).float()


def _listed(model: Model, logits: Tensor, top: int) -> list[dict[str, Any]]:
    probabilities = torch.softmax(logits.double(), -1)
    best = probabilities.topk(min(top, len(logits)))
    return [
        {
            "id": id,
            "token": model.tokenizer.token_bytes(id).decode("utf-8", "replace") or model.tokenizer.token_text(id),
            "bytes": model.tokenizer.token_bytes(id).hex(),
            "logit": float(logits[id]),
            "probability": p,
        }
        for id, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _entropy(logits: Tensor) -> float:
    logprobs = torch.log_softmax(logits.double(), -1)
    return float(-(logprobs.exp() * logprobs).nan_to_num(0.0).sum())


def next_token(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """The whole distribution after a position: the likeliest spelled out, and every logit."""
    position, logits = _logits(studio, ask)
    model = studio.model(ask.model)
    return {
        "model": model.name,
        "precision": model.precision,
        "position": position,
        "entropy": _entropy(logits),
        "tokens": _listed(model, logits, ask.top),
        "logits": packed(logits),
    }


def vocab(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """The texts of token ids."""
    tokenizer = studio.model(ask.model).tokenizer
    known = range(tokenizer.vocab_size)
    return {"texts": [tokenizer.token_text(i) if i in known else f"<{i}>" for i in ask.ids]}


def words(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """Whole next words after a position, each as an interval."""
    model, ids = studio.edited(ask), studio.ids(ask)
    position = (
        ask.position % len(ids) if -len(ids) <= ask.position < len(ids) else studio.trace(ask).position(ask.position)
    )
    check()
    return model.next(ids[: position + 1]).words(ask.limit).to_json()


def effects(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """The prediction without and with the edits, side by side, and how far apart they are."""
    model = studio.model(ask.model)
    plain = ask.model_copy(update={"edits": []})
    position, before = _logits(studio, plain)
    check()
    _, after = _logits(studio, ask)
    return {
        "position": position,
        "before": {"tokens": _listed(model, before, ask.top), "entropy": _entropy(before)},
        "after": {"tokens": _listed(model, after, ask.top), "entropy": _entropy(after)},
        **difference(model, before, after, ask.top),
    }


def difference(model: Model, before: Tensor, after: Tensor, top: int) -> dict[str, Any]:
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
