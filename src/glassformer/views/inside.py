"""Views inside: attention, one cell, the lens, one token's journey, the reasons, neurons, meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glassformer.errors import ShapeError
from glassformer.views.arrays import packed

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.interp.why import Why
    from glassformer.views.session import Check, Studio

# Numbers of one pattern tile that a view may ask for at once.
_TILE = 1 << 22


def thumbnails(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """Every head's pattern shrunk to at most `size` × `size`, each cell the largest weight it covers."""
    trace = studio.trace(ask)
    config = trace.config
    size = min(ask.size, trace.length)
    small = torch.zeros(config.n_layers, config.attention.n_heads, size, size)
    for layer in range(config.n_layers):
        check()
        small[layer] = _shrunk(trace, layer, size)
    return {
        "layers": config.n_layers,
        "heads": config.attention.n_heads,
        "size": size,
        "length": trace.length,
        "data": packed((small.clamp(0, 1) * 255).round(), torch.uint8),
        "roles": _roles(small, trace, check),
    }


def _shrunk(trace: Trace, layer: int, size: int) -> Tensor:
    """(head, size, size): the largest weight in each of size × size fields, rows computed in strips."""
    if trace.length == size:
        return trace.pattern(layer).float()
    edges = [round(i * trace.length / size) for i in range(size + 1)]
    heads = trace.config.attention.n_heads
    out = torch.zeros(heads, size, size)
    for i in range(size):
        rows = trace.pattern(layer, queries=slice(edges[i], edges[i + 1])).float().amax(1)
        out[:, i] = F.adaptive_max_pool1d(rows, size)
    return out


def _roles(small: Tensor, trace: Trace, check: Check) -> list[list[str | None]]:
    """What each head mostly does on this text: the largest of three shares of its attention, if above a half."""
    out: list[list[str | None]] = []
    n = trace.length
    if n < 3:
        return [[None] * small.shape[1] for _ in range(small.shape[0])]
    # A sample of rows is enough for a label; the heads view measures over all of them.
    rows = torch.linspace(1, n - 1, min(n - 1, 128)).long().unique().tolist()
    for layer in range(small.shape[0]):
        check()
        at = [trace.pattern(layer, queries=q)[:, : q + 1].float() for q in rows]
        shares = {
            "first": torch.stack([p[:, 0] for p in at]).mean(0),
            "previous": torch.stack([p[:, -2] for p in at]).mean(0),
            "self": torch.stack([p[:, -1] for p in at]).mean(0),
        }
        best = torch.stack(list(shares.values()))
        share, which = best.max(0)
        names = list(shares)
        out.append([names[int(w)] if s > 0.5 else None for s, w in zip(share, which, strict=True)])
    return out


def attention(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """A tile of one head's pattern (or the heads' mean), computed now; with `stride`, the largest of each field."""
    trace = studio.trace(ask)
    n = trace.length
    q0, q1 = max(0, ask.q0), min(n, n if ask.q1 is None else ask.q1)
    k0, k1 = max(0, ask.k0), min(n, n if ask.k1 is None else ask.k1)
    if q0 >= q1 or k0 >= k1:
        raise ShapeError(f"The tile is empty; the text has positions 0 to {n - 1}.")
    rows = -(-(q1 - q0) // ask.stride)
    columns = -(-(k1 - k0) // ask.stride)
    if rows * columns > _TILE:
        raise ShapeError(f"The tile would hold {rows} × {columns} numbers; ask for a smaller one or a larger stride.")
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
        "head": None if ask.head is None else trace.head(ask.head),
        "q0": q0,
        "q1": q1,
        "k0": k0,
        "k1": k1,
        "stride": ask.stride,
        "tile": packed(torch.cat(pieces)),
        "row_sum_error": error,
    }


def cell(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """One attention cell down to its scalars."""
    return studio.trace(ask).cell(ask.layer, ask.head, ask.query, ask.key, token=ask.token).to_dict()


def lens(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """The lens table over a stretch of positions."""
    trace = studio.trace(ask)
    return trace.lens(ask.top, positions=range(*slice(ask.start, ask.stop).indices(trace.length))).to_dict()


def journey(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """What every layer's attention and feed-forward added to the stream at one position, and what it then says."""
    trace = studio.trace(ask)
    position = trace.position(ask.position)
    read = trace.lens(ask.top, positions=[position], follow=ask.token).to_dict()
    rows = {row["place"]: row["cells"][0] for row in read["rows"]}
    steps = [_step("embed", "embed", None, trace.at("embed", position), rows.get("embed"))]
    stream = trace.at("blocks.0.resid_pre", position)
    for layer in range(trace.config.n_layers):
        check()
        for kind, site, place in (("attn", "attn.out", "resid_mid"), ("mlp", "mlp.out", "resid_post")):
            added = trace.at(f"blocks.{layer}.{site}", position)
            stream = stream + added
            steps.append(
                _step(f"blocks.{layer}.{site}", kind, layer, added, rows.get(f"blocks.{layer}.{place}"), stream)
            )
    return {"position": position, "followed": read["followed"][0], "steps": steps}


def _step(
    label: str, kind: str, layer: int | None, added: Tensor, cell: dict[str, Any] | None, stream: Tensor | None = None
) -> dict[str, Any]:
    stream = added if stream is None else stream
    return {
        "label": label,
        "kind": kind,
        "layer": layer,
        "added_norm": float(added.double().norm()),
        "norm": float(stream.double().norm()),
        "turned": float(F.cosine_similarity(stream.double(), (stream - added).double(), dim=0))
        if kind != "embed"
        else 1.0,
        "top": [] if cell is None else cell["top"],
        "followed": None if cell is None else cell["followed"],
        "rank": None if cell is None else cell["rank"],
        "entropy": None if cell is None else cell["entropy"],
    }


def why(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """The account of a prediction, with its receipts."""
    trace = studio.trace(ask)
    options: dict[str, Any] = {"parts": ask.parts, "progress": lambda done, total, what: check()}
    if not ask.words:
        options["words"] = 0
    return told(trace, trace.why(ask.token, ask.against, ask.position, **options))


def told(trace: Trace, found: Why) -> dict[str, Any]:
    """An account as the page draws it."""
    # A long text has a part for every head at every token: the largest are sent, and all of them summed by layer.
    return {
        **found.to_dict(parts=False),
        "tokens": trace.tokens,
        "parts": found.ranked_parts(),
        "part_count": len(found.parts),
        "layers": _by_layer(found.parts),
    }


def _by_layer(parts: Any) -> list[dict[str, Any]]:
    """Claimed contributions summed over heads, sources and positions: what each half layer adds, in order."""
    from glassformer.interp.decompose import KINDS

    sums: dict[tuple[int, str], float] = {}
    for layer, kind, claimed in zip(parts.layer.tolist(), parts.kind.tolist(), parts.claimed.tolist(), strict=True):
        name = KINDS[kind]
        key = (layer, "attention" if name == "head" else name)
        sums[key] = sums.get(key, 0.0) + claimed
    return [{"layer": None if i < 0 else i, "kind": kind, "claimed": x} for (i, kind), x in sorted(sums.items())]


def heads(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """What each head of the model does, scored on sequences of its own; the same for every text."""
    from glassformer.interp.heads import head_scores

    name = ask.model or studio.current
    if name not in studio.scored:
        model = studio.model(ask.model)
        found = head_scores(
            model.transformer,
            vocabulary=model.tokenizer,
            bos=model.tokenizer.bos_id if model.tokenizer.adds_bos else None,
            progress=lambda done, total, what: check(),
        )
        studio.scored[name] = found.to_dict()
    return {"model": studio.model(ask.model).name, **studio.scored[name]}


def neurons(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """The feed-forward neurons that pushed a prediction most, and what each writes."""
    from glassformer.interp.neurons import top_neurons

    return top_neurons(studio.trace(ask), ask.token, ask.against, ask.position, k=ask.top).to_dict()


def meaning(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """One word's vector in several texts, layer by layer."""
    from glassformer.interp.meaning import meaning as meant

    model = studio.model(ask.model)
    return meant(ask.word, [model.trace(text, ask.bos) for text in ask.texts]).to_dict()
