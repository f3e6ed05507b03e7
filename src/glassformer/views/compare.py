"""Two texts, two models or two checkpoints side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from glassformer.errors import ShapeError, UsageError
from glassformer.views.arrays import packed
from glassformer.views.asks import Ask, Count, Edits, Strict, Text
from glassformer.views.next import difference, listed
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.views.report_data import ReportDraft
    from glassformer.views.session import Session


# Heads whose difference between two texts a report keeps as a picture, and the longest text that it patches.
DIFFERENCES = 4
PATCHED = 24


class Side(Strict):
    """One side: a text in a model, with edits."""

    model: str | None = None
    text: Text
    bos: bool | None = None
    edits: Edits = Field(default=[])


class CompareAsk(Strict):
    a: Side = Field(description="One side: a text in a model, with edits.")
    b: Side = Field(description="The other side.")
    what: Literal["next", "lens", "attention"] = Field(default="next", description="What is compared.")
    position: int = Field(default=-1, description="Token after which both are asked for the next one.")
    layer: int | None = Field(default=None, description="Layer of the head whose patterns are sent.")
    head: int | None = Field(default=None, description="That head.")
    top: Count = Field(default=20, description="Tokens listed.")


def _other(draft: ReportDraft) -> Json:
    other = draft.options.other or {}
    return {"text": other.get("text") or draft.text, "model": other.get("model") or draft.model, "bos": draft.bos}


def _compared(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    """The other text or model beside this one: next token, lens, heads with pictures of a few.

    What cannot be laid side by side is kept as the sentence that says so.
    """
    sides = {"a": draft.same, "b": _other(draft)}
    shown = {"a": {"edits": draft.edits}, "b": {**sides["b"], "model": (draft.options.other or {}).get("model")}}
    for what in ("next", "lens", "attention"):
        for _, answer in draft.tried("compare", **sides, what=what):
            yield {**shown, "what": what}, answer
            for found in answer.get("heads", [])[:DIFFERENCES]:
                at = {"layer": found["layer"], "head": found["head"]}
                for _, one in draft.tried("compare", **sides, what=what, **at):
                    kept = {k: v for k, v in one.items() if k not in ("a_pattern", "b_pattern")}
                    yield {**shown, "what": what, **at}, kept


@view(
    "compare",
    CompareAsk,
    room="compare",
    report=_compared,
    trims=("top",),
)
def compare(session: Session, ask: CompareAsk, check: Check) -> Json:
    """Both sides, and what differs, most first.

    Raises:
        UsageError: when the two cannot be laid side by side, saying why.
    """
    sides = [Ask(model=s.model, text=s.text, bos=s.bos, edits=s.edits) for s in (ask.a, ask.b)]
    models = [session.model(s.model) for s in sides]
    lengths = [len(session.ids(side)) for side in sides]
    if ask.what != "next" and lengths[0] != lengths[1]:
        raise ShapeError(
            f"The two texts are {lengths[0]} and {lengths[1]} tokens long; to compare inside, they must have as many "
            "tokens each."
        )
    traces = []
    for side in sides:
        check()
        traces.append(session.trace(side))
    out: Json = {
        "what": ask.what,
        "a": {"model": models[0].name, "tokens": traces[0].tokens},
        "b": {"model": models[1].name, "tokens": traces[1].tokens},
    }
    if ask.what == "next":
        logits = [t.logits(t.position(ask.position)).float() for t in traces]
        out["position"] = ask.position
        for name, model, x in zip(("a", "b"), models, logits, strict=True):
            out[name]["next"] = listed(model, x, ask.top)
        if len(logits[0]) != len(logits[1]):
            raise UsageError(
                f"{models[0].name} and {models[1].name} have different vocabularies: their predictions share no axis."
            )
        return out | difference(models[0], logits[0], logits[1], ask.top)
    if ask.what == "lens":
        return out | _lens(traces, check)
    return out | _attention(traces, ask, check)


def _lens(traces: list[Trace], check: Check) -> Json:
    tables = [t.lens(1).to_dict() for t in traces]
    rows = {row["place"]: row for row in tables[1]["rows"]}
    shared = [row for row in tables[0]["rows"] if row["place"] in rows]
    differing = [
        {"place": row["place"], "position": p, "a": x["top"][0], "b": y["top"][0]}
        for row in shared
        for p, (x, y) in enumerate(zip(row["cells"], rows[row["place"]]["cells"], strict=True))
        if x["top"][0]["id"] != y["top"][0]["id"]
    ]
    differing.sort(key=lambda d: -max(d["a"]["probability"], d["b"]["probability"]))
    return {"places": [row["place"] for row in shared], "differing": differing[:200], "count": len(differing)}


def _attention(traces: list[Trace], ask: CompareAsk, check: Check) -> Json:
    heads = [[t.config.n_heads(i) for i in range(t.config.n_layers)] for t in traces]
    layers = min(t.config.n_layers for t in traces)
    if heads[0][:layers] != heads[1][:layers]:
        a, b = (max(each) for each in heads)
        raise UsageError(f"The two models have {a} and {b} heads a layer, so their heads do not pair up.")
    ranked = []
    for layer in range(layers):
        check()
        if not heads[0][layer]:
            continue
        apart = (traces[0].pattern(layer).double() - traces[1].pattern(layer).double()).abs().sum(-1) / 2
        ranked += [
            {"layer": layer, "head": h, "mean": float(apart[h].mean()), "largest": float(apart[h].max())}
            for h in range(heads[0][layer])
        ]
    ranked.sort(key=lambda d: -d["mean"])
    out: Json = {"heads": ranked, "unit": "share of attention moved, averaged over queries"}
    if ask.layer is not None and ask.head is not None:
        grids = [t.pattern(ask.layer, ask.head).float() for t in traces]
        out["a_pattern"], out["b_pattern"] = (packed(g) for g in grids)
        out["difference"] = packed(torch.sub(*grids))
    return out


class PatchAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    clean: Text = Field(description="Text whose answer is brought back.")
    corrupted: Text = Field(description="Text that is read again with one place at a time as in the other.")
    bos: bool | None = Field(default=None, description="Whether the beginning-of-text token is put first.")
    what: Literal["stream", "attention", "feed_forward", "heads"] = Field(
        default="stream", description="Places that are carried over."
    )


def _patched(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    other = _other(draft)
    given = draft.options.given.get("patched", {})
    if (draft.options.other or {}).get("model") or draft.edits:
        return
    asked = {"clean": draft.text, "corrupted": other["text"]}
    for what in ("stream", "attention", "feed_forward", "heads"):
        if what in given:
            yield {**asked, "what": what}, given[what]
        elif what in ("stream", "heads"):
            if draft.count > PATCHED:
                left_out = f"A report patches texts of up to {PATCHED} tokens; glassformer patch --html takes longer."
                yield {**asked, "what": what}, {"problem": left_out}
            else:
                yield from draft.tried("patch", **asked, what=what)


@view(
    "patch",
    PatchAsk,
    room="compare",
    report=_patched,
    python="model.patch([({clean!r}, {corrupted!r})], {what!r})",
)
def patch(session: Session, ask: PatchAsk, check: Check) -> Json:
    """Which places bring the first text's answer back when they are put into the reading of the second."""
    from glassformer.interp.patching import patch as patched

    clean, corrupted = (
        session.trace(Ask(model=ask.model, text=text, bos=ask.bos)) for text in (ask.clean, ask.corrupted)
    )
    first = int(clean.logits(-1).argmax())
    # Where both go on with the same token, its lead over the vocabulary's mean is what is brought back.
    same = first == int(corrupted.logits(-1).argmax())
    found = patched(
        [(clean, corrupted)],
        ask.what,
        answer=first if same else None,
        attribution=False,
        progress=lambda done, total, what: check(),
    )
    return {"model": session.model(ask.model).name, **found.to_dict()}
