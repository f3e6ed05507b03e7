"""Attention: every head small, one head's pattern in tiles, one cell down to its scalars, what each head does."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from glassformer.errors import CheckpointError, FileError, ShapeError, SiteError
from glassformer.system import files, sealed
from glassformer.system.folders import cache_directory
from glassformer.views.arrays import packed
from glassformer.views.asks import Ask, Count, Strict, TokenChoice
from glassformer.views.registry import Check, Json, view
from glassformer.views.session import plain

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.lm import Model
    from glassformer.views.report_data import ReportDraft
    from glassformer.views.session import Session

HEADS = "glassformer.heads/1"
# Numbers of one pattern tile that a view may ask for at once.
_TILE = 1 << 22
# Bytes of attention patterns in a report, before base64: leaves room for the rest under 5 MB.
PATTERN_BYTES = 1_450_000
# Numbers of a column, and keys of a row, that the picture of a cell shows.
COLUMN = 48
ROW = 16
# Cells that a report takes apart.
CELLS = 8
# Of these, the scores that it takes apart, and tokens from which on only one.
REASONS, LONG = 6, 32


class ThumbnailsAsk(Ask):
    size: int = Field(default=24, ge=4, le=64, description="Cells on a thumbnail's side, at most.")


@view(
    "thumbnails",
    ThumbnailsAsk,
    room="attention",
    report=lambda draft: draft.kept("thumbnails"),
    trims=("size",),
)
def thumbnails(session: Session, ask: ThumbnailsAsk, check: Check) -> Json:
    """Every head's pattern shrunk to at most `size` × `size`, each cell the largest weight it covers."""
    trace = session.trace(ask)
    config = trace.config
    size = min(ask.size, trace.length)
    small = torch.zeros(config.n_layers, config.most_heads, size, size)
    for layer in range(config.n_layers):
        check()
        if heads := config.n_heads(layer):
            small[layer, :heads] = _shrunk(trace, layer, size)
    return {
        "layers": config.n_layers,
        "heads": config.most_heads,
        "size": size,
        "length": trace.length,
        "data": packed((small.clamp(0, 1) * 255).round(), torch.uint8),
    }


def _shrunk(trace: Trace, layer: int, size: int) -> Tensor:
    """(head, size, size): the largest weight in each of size × size fields, rows computed in strips."""
    if trace.length == size:
        return trace.pattern(layer).float()
    edges = [round(i * trace.length / size) for i in range(size + 1)]
    heads = trace.config.n_heads(layer)
    out = torch.zeros(heads, size, size)
    for i in range(size):
        keys = edges[i + 1]  # later ones are not seen
        rows = trace.pattern(layer, queries=slice(edges[i], keys), keys=slice(keys)).float().amax(1)
        out[:, i] = F.adaptive_max_pool1d(F.pad(rows, (0, trace.length - keys)), size)
    return out


def _patterns(draft: ReportDraft) -> Json:
    """Lower triangles of the heads' patterns in 16 bits; of a long text, only of the heads that matter most."""
    trace = draft.session.trace(draft.request)
    n, layers = trace.length, trace.config.n_layers
    every = [(layer, h) for layer in range(layers) for h in range(trace.config.n_heads(layer))]
    rows, columns = torch.tril_indices(n, n)
    most = max(1, PATTERN_BYTES // (2 * len(rows)))
    order = list(dict.fromkeys([*draft.heads, *every]))[:most]
    found = {}
    for layer in range(layers):
        here = [h for at, h in order if at == layer]
        if not here:
            continue
        draft.check()
        grid = trace.pattern(layer).float().cpu()
        for head in here:
            small = (grid[head][rows, columns] * 65535).round().to(torch.int32).to(torch.uint16)
            found[f"{layer},{head}"] = base64.b64encode(small.numpy().tobytes()).decode("ascii")
    return {"size": n, "heads": found, "all": len(found) == len(every)}


class AttentionAsk(Ask):
    layer: int = Field(description="Layer, from 0; negative from the last.")
    head: int | None = Field(default=None, description="Head, from 0; none for the mean of the layer's heads.")
    q0: int = Field(default=0, ge=0, description="First query of the tile.")
    q1: int | None = Field(default=None, ge=1, description="Query after the tile's last.")
    k0: int = Field(default=0, ge=0, description="First key of the tile.")
    k1: int | None = Field(default=None, ge=1, description="Key after the tile's last.")
    stride: int = Field(default=1, ge=1, le=4096, description="Tokens a cell covers each way; it shows the largest.")


@view(
    "attention",
    AttentionAsk,
    room="attention",
    report=_patterns,
    python="model.trace({text!r}).pattern({layer}, {head})",
)
def attention(session: Session, ask: AttentionAsk, check: Check) -> Json:
    """A tile of one head's pattern (or the heads' mean), computed now; with `stride`, the largest of each field."""
    n = len(session.ids(ask))
    q0, q1, _ = slice(ask.q0, ask.q1).indices(n)
    k0, k1, _ = slice(ask.k0, ask.k1).indices(n)
    if q0 >= q1 or k0 >= k1:
        raise ShapeError(f"The tile is empty; the text has positions 0 to {n - 1}.")
    rows = -(-(q1 - q0) // ask.stride)
    columns = -(-(k1 - k0) // ask.stride)
    if rows * columns > _TILE:
        raise ShapeError(f"The tile would hold {rows} × {columns} numbers; ask for a smaller one or a larger stride.")
    trace = session.trace(ask)
    strip = max(ask.stride, (512 // ask.stride) * ask.stride)
    pieces, error = [], 0.0
    for at in range(q0, q1, strip):
        check()
        whole = trace.pattern(ask.layer, ask.head, slice(at, min(at + strip, q1))).double()
        if ask.head is None:
            whole = whole.mean(0)
        error = max(error, float((whole.sum(-1) - 1).abs().max()))
        part = whole[:, k0:k1].float()
        if ask.stride > 1:
            part = F.max_pool2d(part[None], ask.stride, ceil_mode=True)[0]
        pieces.append(part)
    return {
        "layer": trace.layer(ask.layer),
        "head": None if ask.head is None else trace.head(ask.head, trace.layer(ask.layer)),
        "q0": q0,
        "q1": q1,
        "k0": k0,
        "k1": k1,
        "stride": ask.stride,
        "tile": packed(torch.cat(pieces)),
        "row_sum_error": error,
    }


def _kept_cells(draft: ReportDraft) -> list[dict[str, int]]:
    """Of the heads that matter most, the cell that the last token looks at most; of the first, its row."""
    trace = draft.session.trace(draft.request)
    last = draft.count - 1
    wanted = []
    for layer, head in draft.heads[:CELLS]:
        row = trace.pattern(layer, head, last).flatten()
        wanted.append((layer, head, last, int(row[: draft.count].argmax())))
    if draft.heads:
        layer, head = draft.heads[0]
        wanted += [(layer, head, last, key) for key in range(min(draft.count, CELLS))]
    if "stage" in draft.rooms:
        from glassformer.views.stage import strongest

        wanted += strongest(draft)
    return [dict(zip(("layer", "head", "query", "key"), at, strict=True)) for at in dict.fromkeys(wanted)]


def _cells(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    for at in _kept_cells(draft):
        yield from draft.tried("cell", **at)


def _reasons(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    """Of the first cells, why the head looks there; of a long text, whose grids of words are large, of one."""
    for at in _kept_cells(draft)[: REASONS if draft.count <= LONG else 1]:
        yield from draft.tried("reasons", **at, most=24)


class CellAsk(Ask):
    layer: int = Field(description="Layer, from 0; negative from the last.")
    head: int = Field(description="Head, from 0.")
    query: int = Field(description="Token that looks.")
    key: int = Field(description="Token that is looked at.")
    token: TokenChoice = None


@view(
    "cell",
    CellAsk,
    room="attention",
    report=_cells,
    python="model.trace({text!r}).cell({layer}, {head}, {query}, {key})",
)
def cell(session: Session, ask: CellAsk, check: Check) -> Json:
    """One attention cell down to its scalars, with its picture's columns, angle, row and addition."""
    trace = session.trace(ask)
    found = trace.cell(ask.layer, ask.head, ask.query, ask.key, token=ask.token)
    q, k = found.rot_q.double(), found.rot_k.double()
    place = "resid_pre" if trace.config.copies is None else "resid_active"
    before = trace.at(f"blocks.{found.layer}.{place}", found.query).double()
    after = before * trace.config.layers[found.layer].stream_scale(1) + found.write.double()
    dims = _thin(trace.config.d_model)
    return {
        **found.to_dict(),
        "columns": _columns(trace, found.layer, (found.query, found.key)),
        "norms": {"q": float(q.norm()), "k": float(k.norm())},
        "cosine": float(F.cosine_similarity(q, k, dim=0)),
        "row": _row(trace, found),
        "stream": {
            "before": float(before.norm()),
            "after": float(after.norm()),
            "turned": float(F.cosine_similarity(before, after, dim=0)),
            "columns": {
                name: x.cpu()[dims].tolist()
                for name, x in (("before", before), ("write", found.write), ("after", after))
            },
        },
    }


class ReasonsAsk(Ask):
    layer: int = Field(description="Layer, from 0; negative from the last.")
    head: int = Field(description="Head, from 0.")
    query: int = Field(default=-1, description="Token that looks.")
    key: int | None = Field(default=None, description="Token that is looked at; by default the one it weighs most.")
    against: int | None = Field(default=None, description="Another token, whose score is subtracted.")
    most: Count = Field(default=20, description="Pairs and parts listed, the largest first.")


@view(
    "reasons",
    ReasonsAsk,
    room="attention",
    report=_reasons,
    trims=("most",),
    python="model.trace({text!r}).reasons({layer}, {head}, {query}, {key}, {against})",
)
def reasons(session: Session, ask: ReasonsAsk, check: Check) -> Json:
    """Why a head looks there: one attention score as a sum over pairs of earlier parts, and the words they were read
    from."""
    found = session.trace(ask).reasons(ask.layer, ask.head, ask.query, ask.key, ask.against)
    return found.to_dict(ask.most)


class MapsAsk(Ask):
    layer: int = Field(description="Layer, from 0; negative from the last.")
    head: int = Field(description="Head, from 0.")
    query: int = Field(description="Token that looks.")
    key: int = Field(description="Token that is looked at.")


@view("maps", MapsAsk, room="attention")
def maps(session: Session, ask: MapsAsk, check: Check) -> Json:
    """The matrices between the stream and one score's query and key, with norm and rotation as they ran, thinned out to
    what a picture shows."""
    from glassformer.interp.frozen import key_side, query_side

    trace = session.trace(ask)
    layer = trace.layer(ask.layer)
    head, query, key = trace.head(ask.head, layer), trace.position(ask.query), trace.position(ask.key)
    if trace.config.copies:
        raise SiteError("This model's stream stands in copies that layers mix, so no one matrix leads to a query.")
    part = trace.forward.attention(layer)
    donor = trace.forward.keys_of(layer)
    dims = _thin(trace.config.d_model)
    sides = {
        "query": (layer, query, query_side(trace.forward, layer, head, query)),
        "key": (donor, key, key_side(trace.forward, layer, head // (part.heads // part.kv_heads), key)),
    }
    out: Json = {"layer": layer, "head": head, "dims": dims.tolist(), "width": trace.config.d_model}
    for name, (at, position, side) in sides.items():
        stream = trace.at(f"blocks.{at}.resid_pre", position).double()
        apart = (side.matrix @ stream + side.bias - side.value).abs().max()
        out[name] = {
            "matrix": packed(side.matrix[:, dims.to(stream.device)]),
            "bias": float(side.bias.norm()),
            "stream": stream.cpu()[dims].tolist(),
            "value": side.value.tolist(),
            "apart": float(apart),
        }
    return out


def _thin(width: int) -> Tensor:
    """Dimensions that a picture of a column shows: an even sample."""
    return torch.arange(min(COLUMN, width)) * width // min(COLUMN, width)


def _columns(trace: Trace, layer: int, positions: tuple[int, int]) -> Json:
    """What the query's and the key's projection read, thinned out to `COLUMN` numbers at the dimensions named."""
    width = trace.config.d_model
    dims = _thin(width)
    try:
        read = [trace.at(f"blocks.{layer}.ln1.normed", at).float().cpu() for at in positions]
    except SiteError:  # a design without a norm before attention reads the stream itself
        read = [trace.at(f"blocks.{layer}.resid_pre", at).float().cpu() for at in positions]
    return {"width": width, "dims": dims.tolist(), "query": read[0][dims].tolist(), "key": read[1][dims].tolist()}


def _row(trace: Trace, found: Any) -> Json:
    """The cell's row: scores and weights of the keys that weigh most, in the order of the text."""
    scores = trace.scores(found.layer, found.head, found.query).double().flatten()
    weights = trace.pattern(found.layer, found.head, found.query).double().flatten()[: len(scores)]
    seen = min(found.query + 1, len(scores))
    chosen = {*weights[:seen].topk(min(ROW, seen)).indices.tolist(), found.key} & set(range(seen))
    keys = sorted(chosen)
    return {
        "keys": keys,
        "scores": [float(scores[i]) if torch.isfinite(scores[i]) else None for i in keys],
        "weights": [float(weights[i]) for i in keys],
        "others": seen - len(keys),
        "rest": float(weights[:seen].sum() - weights[keys].sum()),
        "later": trace.length - seen,
    }


class HeadsAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")


@view(
    "heads",
    HeadsAsk,
    room="attention",
    report=lambda draft: None if draft.options.light and "heads" not in draft.options.given else draft.kept("heads"),
    python="model.heads()",
)
def heads(session: Session, ask: HeadsAsk, check: Check) -> Json:
    """What each head of the model does, scored on sequences of its own; the same for every text, and kept on disk."""
    name, model = ask.model or session.current, session.model(ask.model)
    if name not in session.scored:
        session.scored[name] = _scored(model, check)
    return {"model": model.name, **session.scored[name]}


def _scored(model: Model, check: Check) -> Json:
    """The scores that were kept for this model, or made now and kept: by the weights' digest and all else they hang on.

    What cannot be kept is made again by the next server.
    """
    from glassformer.interp.fingerprint import fingerprint
    from glassformer.interp.heads import DEFINITIONS, LENGTH, SHUFFLES, head_scores

    tokenizer = model.tokenizer
    bos = tokenizer.bos_id if tokenizer.adds_bos else None
    vocabulary = [bos, sorted(tokenizer.special_ids), sorted(tokenizer.token_ids)]
    said = json.dumps([fingerprint(model.transformer), vocabulary, DEFINITIONS, LENGTH, SHUFFLES])
    place = cache_directory() / "heads" / f"{files.sha256_of(said)}.json"
    with suppress(CheckpointError, KeyError):
        kept: Json = sealed.read(place, HEADS, "scores of heads", raises=CheckpointError)["scores"]
        return kept
    scores = head_scores(model.transformer, vocabulary=tokenizer, bos=bos, progress=lambda done, total, what: check())
    found: Json = plain(scores.to_dict())
    with suppress(FileError):
        sealed.write(place, {"format": HEADS, "scores": found}, raises=FileError)
    return found
