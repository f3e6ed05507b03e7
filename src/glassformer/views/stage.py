"""The stage's data: one forward of a text, small enough to be drawn whole at once.

Vectors come as signed 8-bit numbers with one scale each, so a number is `q · scale` and wrong by at most half a
scale. Of the many numbers of a vector in the stream an even sample is sent (`dims`); lengths are those of the
whole vectors. What each head carries from one word to another is asked of the trace as a grid per head, whatever
kind of mixer made it; of these, those above a stated share are sent.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from glassformer.errors import ShapeError, TextError
from glassformer.tokenizer.spelling import spelled, spelled_alone
from glassformer.views.arrays import packed
from glassformer.views.asks import Ask, At
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.tokenizer.tokenizer import Tokenizer
    from glassformer.views.report_data import ReportDraft
    from glassformer.views.session import Session

# Arcs and neurons that one drawing holds at most; a long text's threshold rises until they fit.
ARCS, NEURONS = 6000, 3000
# Arcs whose carried vector is sent: the strongest.
CARRIED = 160
# Share of a layer's feed-forward addition that a neuron needs to be sent, by length.
NEURON_SHARE = 0.2
TEMPERATURES = [round(0.1 * i, 1) for i in range(1, 21)]


class StageAsk(At):
    threshold: float = Field(default=0.1, ge=0.001, le=1, description="Least share of its layer that an arc carries.")
    cells: int = Field(default=24, ge=1, le=4096, description="Numbers of every vector, evenly spread.")
    top: int = Field(default=10, ge=1, le=50, description="Likeliest next tokens.")


class VectorAsk(At):
    site: str = Field(min_length=1, max_length=100, description="Named site, such as blocks.3.resid_pre.")


class ColumnsAsk(At):
    cells: int = Field(default=24, ge=1, le=4096, description="Numbers of every vector, evenly spread.")


@view("columns", ColumnsAsk, room="stage", python="model.trace({text!r})['embed']")
def columns(session: Session, ask: ColumnsAsk, check: Check) -> Json:
    """A text's tokens and the columns they begin as: what the stage draws first, without running the layers."""
    model, ids = session.model(ask.model), session.ids(ask)
    transformer, config = model.transformer, model.config
    if not -len(ids) <= ask.position < len(ids):
        raise ShapeError(f"The text has {len(ids)} tokens, so there is no position {ask.position}.")
    dims = _dims(ask.cells, config.d_model)
    with torch.inference_mode():
        rows = transformer.entering(transformer.embed(torch.tensor([ids], device=transformer.device)))
        x = transformer.gathered(rows[0])
    return {
        "model": model.name,
        "precision": model.precision,
        "position": range(len(ids))[ask.position],
        "layers": config.n_layers,
        "d_model": config.d_model,
        "vocab": config.vocab_size,
        "tokens": _tokens(model.tokenizer, ids),
        "dims": dims.tolist(),
        "embedding": _small(x[:, dims.to(x.device)]) | {"norm": packed(x.double().norm(dim=-1))},
    }


def _dims(cells: int, width: int) -> Tensor:
    """Which numbers of a vector are drawn: an even sample."""
    cells = min(cells, width)
    return torch.arange(cells) * width // cells


@view(
    "stage",
    StageAsk,
    room="stage",
    report=lambda draft: draft.kept("stage", position=draft.explained),
)
def stage(session: Session, ask: StageAsk, check: Check) -> Json:
    """A text's words, vectors, lanes, arcs, neurons, last vector and next word, drawn from one trace."""
    trace, model = session.trace(ask), session.model(ask.model)
    position = trace.position(ask.position)
    config = trace.config
    width = config.d_model
    dims = _dims(ask.cells, width)
    lanes, added, norms, sizes = _stream(trace, dims, check)
    arcs = _arcs(trace, ask.threshold, check)
    return {
        "model": model.name,
        "precision": model.precision,
        "position": position,
        "layers": config.n_layers,
        "d_model": width,
        "vocab": config.vocab_size,
        "tokens": _tokens(model.tokenizer, trace.ids),
        "dims": dims.tolist(),
        "embedding": _small(trace.tensor("embed")[0][:, dims.to(trace.transformer.device)])
        | {"norm": packed(trace.tensor("embed")[0].double().norm(dim=-1))},
        "lanes": _small(lanes) | {"norm": packed(norms)},
        "added": _small(added) | {"norm": packed(sizes)},
        "arcs": arcs,
        "carried": _carried(trace, arcs.pop("strongest"), dims),
        "neurons": _neurons(trace, sizes[:, 1], check),
        **_answer(trace, position, dims, ask.top),
    }


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Signed 8-bit numbers and the scale of each vector (last axis); `q · scale` is off by at most scale / 2."""
    scale = x.abs().amax(-1).double() / 127
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (x.double() / safe[..., None]).round().clamp(-127, 127).to(torch.int8), scale


def _tokens(tokenizer: Tokenizer, ids: list[int]) -> list[Json]:
    """Each token and its text, as the other rooms spell it where a character has several tokens."""
    pieces = spelled([tokenizer.token_bytes(id) for id in ids])
    special = tokenizer.special_ids
    return [
        {"id": id, "text": tokenizer.token_text(id) if id in special else piece}
        for id, piece in zip(ids, pieces, strict=True)
    ]


def _small(x: Tensor) -> Json:
    q, scale = quantised(x)
    return {"q": packed(q, torch.int8), "scale": packed(scale)}


def _stream(trace: Trace, dims: Tensor, check: Check) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The stream at every place and what was added between: cells and lengths.

    Returns:
        (place, token, cell) of the stream before the first layer and after each half layer; (layer, 2, token, cell)
        of what the mixer and the feed-forward added; the lengths of both.
    """
    stream = trace.transformer.gathered(trace.tensor("blocks.0.resid_pre")[0])
    dims = dims.to(stream.device)
    lanes, norms, added, sizes = [stream[:, dims]], [stream.double().norm(dim=-1)], [], []
    joined = {name: (write[0], after[0]) for name, write, _, after in trace.forward.joins()}
    for layer in range(trace.config.n_layers):
        check()
        choice = trace.config.layers[layer]
        for part in (choice.mixer, choice.feed_forward):
            write = torch.zeros_like(stream)
            if part is not None:
                write, stream = joined[f"blocks.{layer}.{part.prefix}.out"]
            if part is choice.feed_forward and choice.embedding is not None:  # drawn with what stands before it
                more, stream = joined[f"blocks.{layer}.ple.out"]
                write = write + more
            lanes.append(stream[:, dims])
            norms.append(stream.double().norm(dim=-1))
            added.append(write[:, dims])
            sizes.append(write.double().norm(dim=-1))
    shape = (trace.config.n_layers, 2, trace.length)
    return torch.stack(lanes), torch.stack(added).view(*shape, -1), torch.stack(norms), torch.stack(sizes).view(shape)


def _arcs(trace: Trace, threshold: float, check: Check) -> Json:
    """What heads carry between different words: share of all that its layer carries to the word, by length.

    Every share above `threshold` is sent, strongest first; when there are more than ARCS, only those and the
    threshold that this means.
    """
    from glassformer.interp.head_outputs import weighted_tiles

    rows = torch.empty(0, 5, dtype=torch.float64)
    found, total, held = [rows], 0, 0
    heads = [trace.config.n_heads(layer) for layer in range(trace.config.n_layers)]
    for layer in range(trace.config.n_layers):
        for first, tile in weighted_tiles(trace, layer) if heads[layer] else ():
            check()
            grid = tile.cpu() if tile.dtype == torch.float64 else tile.cpu().float()
            given = grid.sum(2).double().sum(0).clamp(min=1e-30)
            grid.diagonal(first, dim1=1, dim2=2).zero_()  # what a word carries to itself is no arc
            # Who comes near the threshold is sought in single precision, and only their shares are computed.
            at = _where(grid >= (given * threshold * (1 - 1e-6)).to(grid.dtype)[:, None])
            values = grid[at[:, 0], at[:, 1], at[:, 2]].double() / given[at[:, 1]]
            at, values = at[values >= threshold], values[values >= threshold]
            at[:, 1] += first
            found.append(torch.cat([torch.full((len(at), 1), float(layer)), at, values[:, None]], 1).double())
            total, held = total + len(at), held + len(at)
            if held > 4 * ARCS:
                found, held = [_most(torch.cat(found), ARCS)], ARCS
    rows = _most(torch.cat(found), ARCS)
    used = threshold if total <= ARCS else float(rows[-1, 4])
    names = ("layer", "head", "query", "key")
    return {
        "strongest": rows[:CARRIED, :4].long().tolist(),
        "count": len(rows),
        "found": total,
        "asked": threshold,
        "threshold": used,
        "heads": heads,
        **{name: packed(rows[:, i], torch.uint16) for i, name in enumerate(names)},
        "share": packed(rows[:, 4]),
    }


def _where(mask: Tensor) -> Tensor:
    """The indices of what is true, a row each, as `nonzero` gives them: a flat search is several times quicker."""
    flat = np.flatnonzero(mask.numpy())
    return torch.from_numpy(np.stack(np.unravel_index(flat, tuple(mask.shape)), axis=1))


def _most(rows: Tensor, most: int) -> Tensor:
    return rows[rows[:, 4].argsort(descending=True, stable=True)][:most]


def _carried(trace: Trace, arcs: list[list[int]], dims: Tensor) -> Json:
    """The vectors that the strongest arcs carry, in the arcs' order: cells and lengths of the whole."""
    from glassformer.interp.head_outputs import handed_over

    rows = torch.empty(len(arcs), trace.config.d_model)
    # Layer by layer, whose keys are turned once.
    for i, (layer, head, query, key) in sorted(enumerate(arcs), key=lambda arc: arc[1]):
        rows[i] = handed_over(trace, layer, head, query, [key])[0]
    return _small(rows[:, dims]) | {"norm": packed(rows.double().norm(dim=-1))}


def _neurons(trace: Trace, sizes: Tensor, check: Check) -> Json:
    """Neurons whose column, as scaled, is at least NEURON_SHARE as long as all that its layer adds to the word."""
    from glassformer.interp.neurons import strengths

    found, share_at = [], NEURON_SHARE
    for layer in range(trace.config.n_layers):
        check()
        if trace.config.layers[layer].feed_forward is None:
            continue
        strength, output = strengths(trace, layer)
        strength = strength.cpu() if strength.dtype == torch.float64 else strength.cpu().float()
        output, whole = output.cpu(), sizes[layer].cpu().clamp(min=1e-30)
        least = (whole * NEURON_SHARE * (1 - 1e-6)).to(strength.dtype)
        at = _where(strength >= least[:, None])  # as arcs are sought
        share = strength[at[:, 0], at[:, 1]].double() / whole[at[:, 0]]
        at, share = at[share >= NEURON_SHARE], share[share >= NEURON_SHARE]
        picked = [share, output[at[:, 0], at[:, 1]].double()]
        found.append(torch.cat([torch.full((len(at), 1), float(layer)), at, *[x[:, None] for x in picked]], 1))
    rows = torch.cat(found) if found else torch.empty(0, 5, dtype=torch.float64)
    order = rows[:, 3].argsort(descending=True, stable=True)
    if len(rows) > NEURONS:
        share_at = float(rows[order[NEURONS - 1], 3])
    rows = rows[order][:NEURONS]
    return {
        "count": len(rows),
        "threshold": share_at,
        "layer": packed(rows[:, 0], torch.uint16),
        "position": packed(rows[:, 1], torch.uint16),
        "index": packed(rows[:, 2], torch.int32),
        "share": packed(rows[:, 3]),
        "output": packed(rows[:, 4]),
    }


def _answer(trace: Trace, position: int, dims: Tensor, top: int) -> Json:
    """The last vector, its products with the likeliest tokens' columns, and the distribution."""
    last = trace.at("final.normed", position)
    logits = trace.logits(position).double()
    chances = torch.softmax(logits, -1)
    best = chances.topk(min(top, len(logits))).indices
    columns = trace.transformer.unembedding[best]
    products = (columns * last)[:, dims.to(last.device)]
    logprobs = torch.log_softmax(logits, -1)
    return {
        "final": _small(last[dims.to(last.device)]) | {"norm": float(last.double().norm())},
        "unembedding": _small(columns[:, dims.to(columns.device)]) | {"norm": packed(columns.double().norm(dim=-1))},
        "products": _small(products) | {"dot": packed((columns.double() * last.double()).sum(-1))},
        "next": [
            {"id": id, "token": token, "logit": float(logits[id]), "probability": float(chances[id])}
            for id, token in zip(best.tolist(), spelled_alone(trace.vocabulary, best.tolist()), strict=True)
        ],
        "rest": float(1 - chances[best].sum()),
        "entropy": float(-(chances * logprobs).nan_to_num(0.0).sum()),
        "uniform": math.log(len(logits)),
        "temperatures": [
            {"temperature": t, "probabilities": torch.softmax(logits / t, -1)[best].tolist()} for t in TEMPERATURES
        ],
    }


@view("vector", VectorAsk, python="model.trace({text!r}).at({site!r}, {position})")
def vector(session: Session, ask: VectorAsk, check: Check) -> Json:
    """A vector of one token at a named site, whole and exact."""
    trace = session.trace(ask)
    position = trace.position(ask.position)
    x = trace.at(ask.site, position)
    return {"site": ask.site, "position": position, "values": packed(x), "norm": float(x.double().norm())}


class CarryAsk(Ask):
    layer: int = Field(description="Layer.")
    head: int = Field(description="Head.")
    query: int = Field(default=-1, description="Token that takes; negative counts from the end.")
    cells: int = Field(default=24, ge=1, le=4096, description="Numbers of every vector, evenly spread.")
    top: int = Field(default=4, ge=1, le=20, description="Tokens that the sum raises and lowers most.")


def strongest(draft: ReportDraft, count: int = 16) -> list[tuple[int, int, int, int]]:
    """The strongest arcs of a report's text as (layer, head, query, key): those into the explained word first, and of
    these the ones that do not come from the first, where heads rest."""
    found = draft.ask("stage", position=draft.explained, edits=draft.edits)["arcs"]
    columns = [np.frombuffer(base64.b64decode(found[n]["base64"]), "uint16") for n in ("layer", "head", "query", "key")]
    arcs = [(int(a), int(b), int(c), int(d)) for a, b, c, d in zip(*columns, strict=True)]
    return sorted(arcs, key=lambda arc: (arc[2] != draft.explained, arc[3] == 0))[:count]


def _carries(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    asked = [(layer, head, at) for layer, head, query, _ in strongest(draft) for at in (query, draft.explained)]
    for layer, head, query in dict.fromkeys(asked):
        yield from draft.kept("carry", layer=layer, head=head, query=query)


@view(
    "carry",
    CarryAsk,
    room="stage",
    report=_carries,
    trims=("top",),
    python="model.trace({text!r}).contributions({layer}, {head}, {query})",
)
def carry(session: Session, ask: CarryAsk, check: Check) -> Json:
    """What every earlier token gives to one through one head, their sum, and the stream before and after it."""
    from glassformer.interp.circuits import unembedded

    trace = session.trace(ask)
    layer, query = trace.layer(ask.layer), trace.position(ask.query)
    head = trace.head(ask.head, layer)
    dims = _dims(ask.cells, trace.config.d_model).to(trace.transformer.device)
    writes = trace.contributions(layer, head, query)[: query + 1]
    place = "resid_pre" if trace.config.copies is None else "resid_active"
    before = trace.at(f"blocks.{layer}.{place}", query)
    whole = writes.sum(0)
    pushed = unembedded(trace.transformer, whole)
    best = [pushed.topk(min(ask.top, len(pushed)), largest=largest).indices.tolist() for largest in (True, False)]

    def small(x: Tensor) -> Json:
        return _small(x[..., dims]) | {"norm": packed(x.double().norm(dim=-1))}

    return {
        "layer": layer,
        "head": head,
        "query": query,
        "dims": dims.tolist(),
        "weights": packed(trace.pattern(layer, head, query)[: query + 1]),
        "writes": small(writes),
        "sum": small(whole[None]),
        "before": small(before[None]),
        "after": small((before * trace.config.layers[layer].stream_scale(1) + whole)[None]),
        "raises": spelled_alone(trace.vocabulary, best[0]),
        "lowers": spelled_alone(trace.vocabulary, best[1]),
    }


class SurpriseAsk(Ask):
    pass


@view("surprise", SurpriseAsk, room="stage", report=lambda draft: draft.tried("surprise"))
def surprise(session: Session, ask: SurpriseAsk, check: Check) -> Json:
    """How surprised the model is by each token after the first, and how surprised one that knows nothing would be.

    Raises:
        TextError: for a text of a single token, before which there is nothing to predict it from.
    """
    trace = session.trace(ask)
    if trace.length < 2:
        raise TextError("A single token surprises nobody: nothing stands before it. Write at least two words.")
    losses: list[float] = []
    for low in range(0, trace.length - 1, 64):
        check()
        high = min(low + 64, trace.length - 1)
        logprobs = torch.log_softmax(trace.logits(slice(low, high)).double(), -1)
        targets = torch.tensor(trace.ids[low + 1 : high + 1], device=logprobs.device)
        losses += (-logprobs.gather(1, targets[:, None])[:, 0]).tolist()
    return {"losses": losses, "mean": sum(losses) / len(losses), "uniform": math.log(trace.config.vocab_size)}


class WithoutAsk(At):
    most: int = Field(
        default=8, ge=1, le=64, description="Words that are tried: those that carry most to the position."
    )


@view(
    "without",
    WithoutAsk,
    room="stage",
    report=lambda draft: draft.kept("without", position=draft.explained),
)
def without(session: Session, ask: WithoutAsk, check: Check) -> Json:
    """The likeliest token's probability when one earlier word is out of sight for all later ones, word by word."""
    from glassformer.views.edits import Knockout

    trace = session.trace(ask)
    position = trace.position(ask.position)
    chances = torch.softmax(trace.logits(position).double(), -1)
    best = int(chances.argmax())
    given = torch.zeros(trace.length, dtype=torch.float64)
    for layer, choice in enumerate(trace.config.layers):
        check()
        if choice.mixer is not None:
            given += trace.weighted(layer, queries=position).double().cpu().sum(0)
    tried = sorted(given[:position].topk(min(ask.most, position)).indices.tolist())
    rows = []
    for source in tried:
        check()
        edit = Knockout(kind="knockout", source=[source])
        after = session.trace(ask.model_copy(update={"edits": [*ask.edits, edit]})).logits(position).double()
        left = torch.softmax(after, -1)
        instead = int(left.argmax())
        token = spelled_alone(trace.vocabulary, [instead])[0]
        rows.append(
            {
                "source": source,
                "after": float(left[best]),
                "instead": {"id": instead, "token": token, "probability": float(left[instead])},
            }
        )
    return {
        "position": position,
        "id": best,
        "token": spelled_alone(trace.vocabulary, [best])[0],
        "before": float(chances[best]),
        "rows": rows,
    }
