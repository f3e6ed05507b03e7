"""The report: one HTML file with the real numbers of one text inside, that works offline.

It asks the studio's views and keeps their answers; the page's own modules draw them. What would make
the file large (every position's whole distribution, every cell's drill-down) is kept where one looks
first, and the page says so elsewhere.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from glassformer.errors import TextError
from glassformer.studio import bundle, requests

if TYPE_CHECKING:
    from glassformer.studio.studio import Check, Studio

ROOMS = ("attention", "depth", "why", "size")
# Bytes of attention patterns in a report, before base64: leaves room for the rest under 5 MB.
PATTERN_BYTES = 1_600_000
# A text up to this many tokens has every position's journey inside.
ALL_JOURNEYS = 12
CELLS = 24
EFFECTS = 6
LONGEST = 512


def _never() -> None:
    return None


def build(
    studio: Studio,
    text: str,
    edits: Sequence[Any] = (),
    *,
    model: str | None = None,
    rooms: Sequence[str] = ROOMS,
    title: str | None = None,
    check: Check = _never,
) -> str:
    """The report of a text, as HTML.

    Args:
        edits: what is switched off, as the views take it.
        model: of the studio; the current one by default.
        rooms: which of `ROOMS` it has.
        title: of the page; by default the text's beginning.
        check: called between views; raises `Cancelled` to stop.

    Raises:
        TextError: for a text of more than 512 tokens, or one the model cannot read.
    """
    data = collect(studio, text, edits, model=model, rooms=rooms, check=check)
    short = text if len(text) <= 60 else text[:59] + "…"
    return bundle.page(title or f"{short} · Glassformer", data, "start")


def collect(
    studio: Studio,
    text: str,
    edits: Sequence[Any] = (),
    *,
    model: str | None = None,
    rooms: Sequence[str] = ROOMS,
    check: Check = _never,
) -> dict[str, Any]:
    """What a report holds, as plain data."""
    plain = [edit if isinstance(edit, dict) else edit.model_dump() for edit in edits]
    same = {"text": text, "model": model, "edits": plain}

    def ask(view: str, **more: Any) -> dict[str, Any]:
        check()
        return studio.view(view, {**same, **more}, check)

    tokens = ask("tokens")
    count = len(tokens["tokens"])
    if count > LONGEST:
        raise TextError(f"A report holds at most {LONGEST} tokens and this text has {count}; shorten it.")
    data: dict[str, Any] = {**same, "rooms": list(rooms), "tokens": tokens, "next": _nexts(ask, count)}
    data["words"] = ask("words")
    if "why" in rooms:
        data["why"] = ask_without_edits(studio, "why", same, check)
        data["neurons"] = ask_without_edits(studio, "neurons", same, check, top=16)
        data["effects"] = _effects(ask, data["why"]["parts"], plain)
    if "attention" in rooms:
        data["thumbnails"] = ask("thumbnails")
        data["heads"] = studio.view("heads", {"model": model}, check)
        first = _telling_heads(data.get("why"))
        data["attention"] = _patterns(studio, same, first, check)
        data["cells"] = _cells(ask, studio, same, first, count)
    if "depth" in rooms:
        data["lens"] = ask("lens", top=3)
        at = range(count) if count <= ALL_JOURNEYS else [count - 1]
        data["journeys"] = {str(i): ask("journey", position=i) for i in at}
    if "size" in rooms:
        data["size"] = {
            "": studio.view("size", {"model": model}, check),
            "gpt3": studio.view("size", {"name": "gpt3"}, check),
        }
    shorter: dict[str, Any] = _rounded(data)
    return shorter


def _rounded(value: Any) -> Any:
    """Numbers to six significant digits, more than the page shows: a third of the file."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value


def ask_without_edits(studio: Studio, view: str, same: dict[str, Any], check: Check, **more: Any) -> dict[str, Any]:
    """A view that explains the model as it is."""
    check()
    return studio.view(view, {"text": same["text"], "model": same["model"], **more}, check)


def _nexts(ask: Callable[..., dict[str, Any]], count: int) -> dict[str, Any]:
    """Every position's likeliest tokens, and the last one's whole distribution for the sliders."""
    found = {}
    for position in range(count):
        last = position == count - 1
        one = ask("next", position=position, top=200 if last else 12)
        if not last:
            one["logits"] = None
        found[str(position)] = one
    return found


def _telling_heads(why: dict[str, Any] | None) -> list[tuple[int, int]]:
    """Heads in the order in which the prediction depends on them."""
    parts = [] if why is None else [p for p in why["parts"] if p["kind"] == "head"]
    return list(dict.fromkeys((p["layer"], p["head"]) for p in parts))


def _patterns(studio: Studio, same: dict[str, Any], first: list[tuple[int, int]], check: Check) -> dict[str, Any]:
    """Lower triangles of the heads' patterns in 16 bits; of a long text, only of the heads that matter most."""
    trace = studio.trace(requests.parsed(requests.Ask, same))
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


def _cells(
    ask: Callable[..., dict[str, Any]], studio: Studio, same: dict[str, Any], first: list[tuple[int, int]], count: int
) -> dict[str, Any]:
    """Drill-downs: of the heads that matter most, the cell that the last token looks at most; of the first, its row."""
    trace = studio.trace(requests.parsed(requests.Ask, same))
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


def _effects(
    ask: Callable[..., dict[str, Any]], parts: list[dict[str, Any]], edits: list[dict[str, Any]]
) -> list[dict[str, Any]]:
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
