"""What a report keeps of each room: answers of the views, cut to what a file can hold.

What would make the file large (every cell's drill-down, a long text's every pattern) is kept where one looks
first. It asks the studio's views; how they are drawn and put into a file is others' business.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from glassformer.errors import GlassformerError
from glassformer.views import options

if TYPE_CHECKING:
    from glassformer.views.session import Check, Studio

# Bytes of attention patterns in a report, before base64: leaves room for the rest under 5 MB.
PATTERN_BYTES = 1_600_000
CELLS = 24
EFFECTS = 6
# Heads whose difference between two texts is kept as a picture, and the longest text that is patched.
DIFFERENCES = 4
PATCHED = 24

Asker = Callable[..., dict[str, Any]]
Head = tuple[int, int]


def nexts(ask: Asker, count: int) -> dict[str, Any]:
    """Every position's likeliest tokens, and the last one's whole distribution for the sliders."""
    found = {}
    for position in range(count):
        last = position == count - 1
        one = ask("next", position=position, top=200 if last else 12)
        if not last:
            one["logits"] = None
        found[str(position)] = one
    return found


def telling_heads(why: dict[str, Any] | None) -> list[Head]:
    """Heads in the order in which the prediction depends on them."""
    parts = [] if why is None else [p for p in why["parts"] if p["kind"] == "head"]
    return list(dict.fromkeys((p["layer"], p["head"]) for p in parts))


def patterns(studio: Studio, same: dict[str, Any], first: Sequence[Head], check: Check) -> dict[str, Any]:
    """Lower triangles of the heads' patterns in 16 bits; of a long text, only of the heads that matter most."""
    trace = studio.trace(options.parsed(options.Ask, same))
    n, layers, heads = trace.length, trace.config.n_layers, trace.config.attention.n_heads
    rows, columns = torch.tril_indices(n, n)
    most = max(1, PATTERN_BYTES // (2 * len(rows)))
    order = list(dict.fromkeys([*first, *((layer, h) for layer in range(layers) for h in range(heads))]))[:most]
    found = {}
    for layer in range(layers):
        here = [h for at, h in order if at == layer]
        if not here:
            continue
        check()
        grid = trace.pattern(layer).float().cpu()
        for head in here:
            small = (grid[head][rows, columns] * 65535).round().to(torch.int32).to(torch.uint16)
            found[f"{layer},{head}"] = base64.b64encode(small.numpy().tobytes()).decode("ascii")
    return {"size": n, "heads": found, "all": len(found) == layers * heads}


def cells(ask: Asker, studio: Studio, same: dict[str, Any], first: Sequence[Head], count: int) -> dict[str, Any]:
    """Drill-downs: of the heads that matter most, the cell that the last token looks at most; of the first, its row."""
    trace = studio.trace(options.parsed(options.Ask, same))
    wanted = []
    for layer, head in first[:CELLS]:
        row = trace.pattern(layer, head, count - 1).flatten()
        wanted.append((layer, head, count - 1, int(row[:count].argmax())))
    if first:
        layer, head = first[0]
        wanted += [(layer, head, count - 1, key) for key in range(min(count, CELLS))]
    return {
        ",".join(map(str, at)): ask("cell", layer=at[0], head=at[1], query=at[2], key=at[3])
        for at in dict.fromkeys(wanted)
    }


def effects(ask: Asker, parts: list[dict[str, Any]], edits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Before and after, for each of the largest parts switched off alone (and for the report's own edits)."""
    tries: list[list[dict[str, Any]]] = [edits] if edits else []
    for part in parts:
        if part["kind"] == "head":
            edit = {"kind": "ablate_head", "layer": part["layer"], "head": part["head"]}
        elif part["kind"] == "feed_forward":
            edit = {"kind": "ablate_mlp", "layer": part["layer"]}
        else:
            continue
        if [edit] not in tries:
            tries.append([edit])
        if len(tries) >= EFFECTS:
            break
    return [{"edits": one, **ask("effects", edits=one, top=8)} for one in tries]


def lens(found: dict[str, Any]) -> dict[str, Any]:
    """The lens table with every token's text once: a third of its size; the page puts it together again."""
    texts: dict[int, str] = {}
    rows = []
    for row in found["rows"]:
        packed = []
        for cell in row["cells"]:
            texts.update((t["id"], t["token"]) for t in cell["top"])
            tops = [x for t in cell["top"] for x in (t["id"], t["probability"])]
            packed.append([cell["followed"], cell["rank"], cell["entropy"], *tops])
        rows.append({"place": row["place"], "cells": packed})
    return {**found, "rows": rows, "texts": {str(id): text for id, text in texts.items()}}


def compared(studio: Studio, same: dict[str, Any], other: dict[str, Any], check: Check) -> dict[str, Any]:
    """The other text or model beside this one: next token, lens, heads with pictures of a few, and patching.

    What cannot be laid side by side is kept as the sentence that says so.
    """
    b = {"text": other.get("text") or same["text"], "model": other.get("model") or same["model"], "bos": same["bos"]}

    def ask(view: str, **more: Any) -> dict[str, Any]:
        check()
        try:
            return studio.view(view, more, check)
        except GlassformerError as error:
            return {"problem": str(error)}

    sides = {"a": same, "b": b}
    found: dict[str, Any] = {"other": {"text": b["text"], "model": other.get("model")}}
    found |= {what: ask("compare", **sides, what=what) for what in ("next", "lens", "attention")}
    heads = [(x["layer"], x["head"]) for x in found["attention"].get("heads", [])[:DIFFERENCES]]
    found["differences"] = {
        f"{layer},{head}": ask("compare", **sides, what="attention", layer=layer, head=head).get("difference")
        for layer, head in heads
    }
    if other.get("model") or same["edits"]:
        return found
    long = len(studio.ids(options.parsed(options.Ask, same))) > PATCHED
    left_out = {"problem": f"A report patches texts of up to {PATCHED} tokens; glassformer patch --html takes longer."}
    texts = {"model": same["model"], "bos": same["bos"], "clean": same["text"], "corrupted": b["text"]}
    found["patch"] = {what: left_out if long else ask("patch", **texts, what=what) for what in ("stream", "heads")}
    return found


def learning(studio: Studio, same: dict[str, Any], run: str | None, check: Check) -> dict[str, Any]:
    """A run's curves, samples and probes where there is one, and one gradient step on the text."""
    found: dict[str, Any] = {"runs": {"runs": []}}
    if run is not None:
        found["run"] = studio.view("run", {"name": run}, check)
        listed = studio.view("runs", {}, check)["runs"]
        found["runs"] = {"runs": [one for one in listed if one["name"] == run]}
    try:
        found["run_step"] = studio.view("run_step", {k: same[k] for k in ("text", "model", "bos")}, check)
    except GlassformerError as error:
        found["run_step"] = {"problem": str(error)}
    return found
