"""Finding a part by what it does, and one number over many texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from glassformer.errors import UsageError
from glassformer.tokenizer.spelling import spelled_alone
from glassformer.views.asks import Against, At, Edits, Strict, Text, TokenChoice
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.interp.trace import Trace
    from glassformer.lm import Model
    from glassformer.views.session import Session

What = Literal["heads_reading", "heads_adding", "neurons_writing", "experts", "tokens"]


class FindAsk(At):
    what: What = Field(
        description="Heads that read one word from another, heads that add to a token, neurons whose column points to "
        "a token, experts that the text goes to, or tokens by their letters."
    )
    key: int | None = Field(default=None, description="Word that is read; by default the one before.")
    token: TokenChoice = None
    letters: str = Field(default="", max_length=100, description="Letters that a token holds.")
    top: int = Field(default=20, ge=1, le=500, description="Parts listed.")


@view("find", FindAsk)
def find(session: Session, ask: FindAsk, check: Check) -> Json:
    """Heads, neurons, experts or tokens by what they do, the strongest first, each with the number it was found by."""
    if ask.what == "tokens":
        return _tokens(session, ask)
    trace = session.trace(ask)
    finder = {"heads_reading": _reading, "heads_adding": _adding, "neurons_writing": _writing, "experts": _experts}
    return {"what": ask.what, **finder[ask.what](trace, ask, check)}


def _tokens(session: Session, ask: FindAsk) -> Json:
    if not ask.letters:
        raise UsageError("Give some letters that the token holds.")
    tokenizer, wanted = session.model(ask.model).tokenizer, ask.letters.casefold()
    rows: list[Json] = []
    for id in range(tokenizer.vocab_size):
        text = tokenizer.token_text(id)
        if wanted in text.casefold():
            rows.append({"kind": "token", "id": id, "token": text, "value": len(text)})
    rows.sort(key=lambda row: (row["value"], row["id"]))
    return {"what": "tokens", "unit": "letters", "count": len(rows), "rows": rows[: ask.top]}


def _reading(trace: Trace, ask: FindAsk, check: Check) -> Json:
    query = trace.position(ask.position)
    key = trace.position(max(0, query - 1) if ask.key is None else ask.key)
    rows: list[Json] = []
    for layer in range(trace.config.n_layers):
        check()
        if trace.config.n_heads(layer):
            row = trace.pattern(layer, queries=slice(query, query + 1))[:, 0, key].double().tolist()
            rows += [{"kind": "head", "layer": layer, "head": h, "value": x} for h, x in enumerate(row)]
    rows.sort(key=lambda row: -abs(row["value"]))
    return {"unit": "weight", "query": query, "key": key, "count": len(rows), "rows": rows[: ask.top]}


def _adding(trace: Trace, ask: FindAsk, check: Check) -> Json:
    from glassformer.interp.decompose import KINDS

    found = trace.why(ask.token, None, ask.position, words=0, parts=0, progress=lambda done, total, what: check())
    sums: dict[tuple[int, int], float] = {}
    parts = found.parts
    for i in (parts.kind == KINDS.index("head")).nonzero()[:, 0].tolist():
        at = (int(parts.layer[i]), int(parts.head[i]))
        sums[at] = sums.get(at, 0.0) + float(parts.claimed[i])
    rows: list[Json] = [{"kind": "head", "layer": layer, "head": head, "value": x} for (layer, head), x in sums.items()]
    rows.sort(key=lambda row: -abs(row["value"]))
    token = spelled_alone(trace.vocabulary, [found.target.way.token])[0]
    return {"unit": found.target.way.unit, "token": token, "count": len(rows), "rows": rows[: ask.top]}


def _writing(trace: Trace, ask: FindAsk, check: Check) -> Json:
    """By the cosine of a neuron's column with what raises the token's logit against the vocabulary's mean."""
    from glassformer.interp.logit_target import target

    goal = target(trace, ask.token, None, ask.position)
    rows: list[Json] = []
    for layer, choice in enumerate(trace.config.layers):
        check()
        if choice.feed_forward is None:
            continue
        columns = trace.forward.block(layer).mlp.columns.double()
        reading = goal.reading.to(columns)
        cosine = (reading @ columns) / (columns.norm(dim=0) * reading.norm()).clamp(min=1e-30)
        best = cosine.abs().topk(min(ask.top, len(cosine))).indices.tolist()
        post = trace.forward.get(f"blocks.{layer}.mlp.post", slice(goal.position, goal.position + 1))[0, 0]
        rows += [
            {"kind": "neuron", "layer": layer, "index": i, "value": float(cosine[i]), "activation": float(post[i])}
            for i in best
        ]
    rows.sort(key=lambda row: -abs(row["value"]))
    token = spelled_alone(trace.vocabulary, [goal.way.token])[0]
    return {"unit": "cosine", "token": token, "count": len(rows), "rows": rows[: ask.top]}


def _experts(trace: Trace, ask: FindAsk, check: Check) -> Json:
    """By the mean weight over the text."""
    from glassformer.interp.experts import expert_layers

    rows: list[Json] = []
    for layer in expert_layers(trace.config):
        check()
        weights = trace.tensor(f"blocks.{layer}.mlp.weights")[0].double()
        share = (weights > 0).double().mean(0)
        rows += [
            {"kind": "expert", "layer": layer, "expert": i, "value": float(x), "chosen": float(share[i])}
            for i, x in enumerate(weights.mean(0).tolist())
        ]
    rows.sort(key=lambda row: -abs(row["value"]))
    return {"unit": "mean weight", "count": len(rows), "rows": rows[: ask.top]}


Metric = Literal["probability", "logit_difference", "rank", "entropy", "surprise"]


class TextsAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    texts: Annotated[list[Text], Field(min_length=1, max_length=64)] = Field(description="The texts.")
    bos: bool | None = Field(default=None, description="Whether the beginning-of-text token is put first.")
    edits: Edits = Field(default=[])
    metric: Metric = Field(
        default="probability",
        description="Probability or rank of the token, its logit above the other's, the entropy of what comes next, or "
        "the mean surprise over the text.",
    )
    token: TokenChoice = None
    against: Against = None


@view(
    "texts",
    TextsAsk,
    room="texts",
    report=lambda draft: draft.kept("texts", texts=list(draft.options.texts)),
)
def texts(session: Session, ask: TextsAsk, check: Check) -> Json:
    """One number over several texts, in the model as it is and as it is changed."""
    model = session.model(ask.model)
    if ask.metric == "logit_difference" and (ask.token is None or ask.against is None):
        raise UsageError("A difference of logits needs two tokens: the token, and the one it is compared with.")
    rows: list[Json] = []
    for text in ask.texts:
        row: Json = {"text": text}
        for name, edits in (("plain", []), ("changed", ask.edits)):
            check()
            if name == "changed" and not edits:
                row |= {"changed": None, "difference": None}
                continue
            request = At(model=ask.model, text=text, bos=ask.bos, edits=edits)
            value, first = _measured(model, session.edited(request).logits(session.ids(request)), request, ask, session)
            row |= {name: value, f"{name}_first": first}
            if name == "changed":
                row["difference"] = value - row["plain"]
        rows.append(row)
    mean = {
        name: None if rows[0][name] is None else sum(row[name] for row in rows) / len(rows)
        for name in ("plain", "changed", "difference")
    }
    return {"model": model.name, "precision": model.precision, "metric": ask.metric, "rows": rows, "mean": mean}


def _measured(model: Model, logits: Tensor, request: At, ask: TextsAsk, session: Session) -> tuple[float, str]:
    """The metric of one text, and the model's first choice after it."""
    from glassformer.interp.vocabulary import token_id

    last = logits[-1].double()
    logprobs = torch.log_softmax(last, -1)
    first = int(last.argmax())
    tokenizer = model.tokenizer
    token = first if ask.token is None else token_id(ask.token, tokenizer, len(last))
    if ask.metric == "probability":
        value = float(logprobs[token].exp())
    elif ask.metric == "rank":
        value = float((last > last[token]).sum()) + 1
    elif ask.metric == "entropy":
        value = float(-(logprobs.exp() * logprobs).nan_to_num(0.0).sum())
    elif ask.metric == "logit_difference":
        assert ask.against is not None
        value = float(last[token] - last[token_id(ask.against, tokenizer, len(last))])
    else:
        ids = session.ids(request)
        if len(ids) < 2:
            raise UsageError(f"{request.text!r} is a single token, which surprises nobody; write at least two words.")
        steps = torch.log_softmax(logits[:-1].double(), -1)
        value = float(-steps[torch.arange(len(ids) - 1), torch.tensor(ids[1:], device=steps.device)].mean())
    return value, spelled_alone(tokenizer, [first])[0]
