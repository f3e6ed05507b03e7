"""Two texts, two models or two checkpoints side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from glassformer.errors import ShapeError, UsageError
from glassformer.views import next, options
from glassformer.views.arrays import packed

if TYPE_CHECKING:
    from glassformer.views.session import Check, Studio


def compare(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """Both sides, and what differs, most first.

    Raises:
        UsageError: when the two cannot be laid side by side, saying why.
    """
    sides = [options.Ask(model=s.model, text=s.text, bos=s.bos, edits=s.edits) for s in (ask.a, ask.b)]
    models = [studio.model(s.model) for s in sides]
    traces = []
    for side in sides:
        check()
        traces.append(studio.trace(side))
    out: dict[str, Any] = {
        "what": ask.what,
        "a": {"model": models[0].name, "tokens": traces[0].tokens},
        "b": {"model": models[1].name, "tokens": traces[1].tokens},
    }
    if ask.what == "next":
        logits = [t.logits(-1).float() for t in traces]
        for name, model, x in zip(("a", "b"), models, logits, strict=True):
            out[name]["next"] = next._listed(model, x, ask.top)
        if len(logits[0]) != len(logits[1]):
            raise UsageError(
                f"{models[0].name} and {models[1].name} have different vocabularies: their predictions share no axis."
            )
        return out | next.difference(models[0], logits[0], logits[1], ask.top)
    if len(traces[0]) != len(traces[1]):
        raise ShapeError(
            f"The two texts are {len(traces[0])} and {len(traces[1])} tokens long; to compare inside, they must have "
            "as many tokens each."
        )
    if ask.what == "lens":
        return out | _lens(traces, check)
    return out | _attention(traces, ask, check)


def _lens(traces: list[Any], check: Check) -> dict[str, Any]:
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


def _attention(traces: list[Any], ask: Any, check: Check) -> dict[str, Any]:
    a, b = (t.config.attention.n_heads for t in traces)
    layers = min(t.config.n_layers for t in traces)
    if a != b:
        raise UsageError(f"The two models have {a} and {b} heads a layer, so their heads do not pair up.")
    ranked = []
    for layer in range(layers):
        check()
        apart = (traces[0].pattern(layer).double() - traces[1].pattern(layer).double()).abs().sum(-1) / 2
        ranked += [
            {"layer": layer, "head": h, "mean": float(apart[h].mean()), "largest": float(apart[h].max())}
            for h in range(a)
        ]
    ranked.sort(key=lambda d: -d["mean"])
    out: dict[str, Any] = {"heads": ranked, "unit": "share of attention moved, averaged over queries"}
    if ask.layer is not None and ask.head is not None:
        grids = [t.pattern(ask.layer, ask.head).float() for t in traces]
        out["a_pattern"], out["b_pattern"] = (packed(g) for g in grids)
        out["difference"] = packed(torch.sub(*grids))
    return out


def patch(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """Which places bring the first text's answer back when they are put into the reading of the second."""
    from glassformer.interp.patching import patch as patched

    clean, corrupted = (
        studio.trace(options.Ask(model=ask.model, text=text, bos=ask.bos)) for text in (ask.clean, ask.corrupted)
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
    return {"model": studio.model(ask.model).name, **found.to_dict()}
