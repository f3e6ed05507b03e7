"""Meaning: one word's vector in several texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from glassformer.model.config import Attention
from glassformer.views.asks import Edits, Strict, Text
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.interp.meaning import Meaning
    from glassformer.interp.trace import Trace
    from glassformer.views.report_data import ReportDraft
    from glassformer.views.session import Session


# Of each text and each kind of part, how many steps are told.
STEPS = 3
# Vectors that are read as the last one at once: as many rows of logits are held.
ROWS = 64


def _meaning(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    word, texts = draft.options.word, list(draft.options.contexts)
    # as the page asks: other texts have no such places
    edits = [
        one
        for one in draft.edits
        if one.get("position") is None and not one.get("source") and one["kind"] != "ablate_read"
    ]
    return draft.kept("meaning", word=word, texts=texts, edits=edits)


class MeaningAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    bos: bool | None = Field(default=None, description="Whether the beginning-of-text token is put first.")
    edits: Edits = Field(default=[])
    word: str = Field(min_length=1, max_length=200, description="The word.")
    texts: list[Text] = Field(min_length=2, max_length=12, description="Texts that contain it.")


@view(
    "meaning",
    MeaningAsk,
    room="meaning",
    report=_meaning,
    python="model.meaning({word!r}, {texts!r})",
)
def meaning(session: Session, ask: MeaningAsk, check: Check) -> Json:
    """One word's vector in several texts, layer by layer."""
    from glassformer.interp.meaning import meaning as meant

    model = session.edited(ask)
    traces = [model.trace(text, ask.bos) for text in ask.texts]
    found = meant(ask.word, traces)
    check()
    return found.to_dict() | _moves(found, traces)


def _moves(found: Meaning, traces: list[Trace]) -> Json:
    """The word's vector in each text as a dot, place by place, in one plane.

    Vectors are brought to length 1 and centred over the texts at each place; the plane is that of the two principal
    axes at the last place, and `shown` is the share of the squared distances that it shows at each place.
    """
    units = F.normalize(found.vectors, dim=2)
    apart = units - units.mean(1, keepdim=True)
    _, _, axes = torch.linalg.svd(apart[-1], full_matrices=False)
    dots = apart @ axes[:2].T
    shown = dots.pow(2).sum((1, 2)) / apart.pow(2).sum((1, 2)).clamp(min=1e-12)
    return {
        "dots": dots.tolist(),
        "shown": shown.tolist(),
        "steps": [_steps(trace, found, i, dots[:, i]) for i, trace in enumerate(traces)],
        "nearest": _nearest(traces[0], found.vectors),
    }


def _steps(trace: Trace, found: Meaning, text: int, dots: Tensor) -> list[Json]:
    """The steps that moved a dot furthest, and what took most of each: of attention the head whose addition goes
    furthest along the step of the stream, and the word of which it carries most that way; else the feed-forward."""
    places, position, stream = found.places, found.positions[text], found.vectors[:, text]
    lengths = (dots[1:] - dots[:-1]).norm(dim=1)
    halves = [[i for i in range(len(lengths)) if places[i + 1].endswith("resid_mid") == mid] for mid in (True, False)]
    longest = [i for half in halves for i in sorted(half, key=lambda i: -float(lengths[i]))[:STEPS]]
    told = []
    for i in sorted(longest):
        before, after = places[i], places[i + 1]
        if before == "embed" and not after.endswith(("resid_mid", "resid_post")):
            continue  # positions that are added before the first layer
        layer = int(after.split(".")[1])
        step = F.normalize(stream[i + 1] - stream[i], dim=0)
        one: Json = {"place": i + 1, "layer": layer, "moved": float(lengths[i]), "part": "feed-forward"}
        beside = f"blocks.{layer}.resid_mid" not in places  # the two parts run side by side, or only one is there
        if isinstance(trace.config.layers[layer].mixer, Attention) and (after.endswith("resid_mid") or beside):
            added = [trace.contributions(layer, h, position).double().cpu() @ step for h in range(_heads(trace, layer))]
            head = max(range(len(added)), key=lambda h: float(added[h].sum()))
            source = int(added[head].argmax())
            one |= {"part": "head", "head": head, "along": float(added[head].sum()), "source": source}
            one["word"] = trace.tokens[source]
        told.append(one)
    return told


def _heads(trace: Trace, layer: int) -> int:
    return int(trace.config.attention(layer).n_heads)


@torch.no_grad()
def _nearest(trace: Trace, vectors: Float[Tensor, "place text d_model"]) -> list[list[str]]:
    """At each place, for each text, the token that the vector points to most when it is read as the last one is."""
    transformer = trace.transformer
    rows = vectors.flatten(0, 1).to(transformer.device, transformer.dtype)
    # the table of all tokens is read once for many vectors
    best = [transformer.unembed_hidden(transformer.normed(some[None]))[0].argmax(-1) for some in rows.split(ROWS)]
    words = [trace.token_text(i) for i in torch.cat(best).tolist()]
    return [words[at : at + vectors.shape[1]] for at in range(0, len(words), vectors.shape[1])]
