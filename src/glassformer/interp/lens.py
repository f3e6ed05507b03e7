"""The lens: every layer's residual stream read out as if it were the last.

Each place in the stream goes through the final norm and the unembedding (the "logit lens", nostalgebraist
2020), so one sees the prediction form, layer by layer, half-step by half-step. The last row is the
model's own output. Early rows are a reading, not a claim: the stream there was not made to be read so.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.errors import ShapeError, UsageError
from glassformer.interp import memory

if TYPE_CHECKING:
    from glassformer.interp.readout import Readout
    from glassformer.interp.trace import Trace

# Numbers of one chunk of distributions in flight.
_CHUNK = 1 << 25


@dataclass(frozen=True)
class Lens:
    """Next-token distributions by depth and position; the most probable tokens of each.

    Attributes:
        places: what each row was read from, top of the text's journey first: "embed",
            "blocks.0.resid_mid", "blocks.0.resid_post", …
        positions: of the columns.
        ids, probabilities: (place, position, k), most probable first.
        entropy: (place, position), in nats.
        followed: per position, the token that is followed through the rows: the model's own first choice,
            or the one asked for; chance: its probability; rank: 0 when it is the row's first choice.
        texts: token texts by id, for all ids that occur.
    """

    places: list[str]
    positions: list[int]
    ids: Int[Tensor, "place position k"]
    probabilities: Float[Tensor, "place position k"]
    entropy: Float[Tensor, "place position"]
    followed: list[int]
    chance: Float[Tensor, "place position"]
    rank: Int[Tensor, "place position"]
    texts: dict[int, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "positions": self.positions,
            "followed": [{"id": i, "token": self.texts[i]} for i in self.followed],
            "rows": [
                {
                    "place": place,
                    "cells": [
                        {
                            "top": [
                                {"id": i, "token": self.texts[i], "probability": p}
                                for i, p in zip(
                                    self.ids[row, column].tolist(),
                                    self.probabilities[row, column].tolist(),
                                    strict=True,
                                )
                            ],
                            "entropy": float(self.entropy[row, column]),
                            "followed": float(self.chance[row, column]),
                            "rank": int(self.rank[row, column]),
                        }
                        for column in range(len(self.positions))
                    ],
                }
                for row, place in enumerate(self.places)
            ],
        }


@torch.no_grad()
def lens(
    trace: Trace,
    k: int = 5,
    *,
    positions: int | slice | Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    halves: bool = True,
    follow: str | int | None = None,
    through: Readout | None = None,
) -> Lens:
    """Read every layer and position out as a next-token distribution.

    Args:
        k: most probable tokens kept of each.
        positions: some of them; None for all.
        layers: some of them (the last is always there); None for all.
        halves: also between a layer's attention and its feed-forward (not in models that run them side by side).
        follow: a token whose probability and rank are kept everywhere; None for the model's first choice.
        through: maps that each layer's stream goes through first; only what leaves a layer is read then.

    Raises:
        ShapeError, TextError: for a position or a token that does not exist.
    """
    if k < 1:
        raise UsageError(f"The lens keeps at least 1 token of each distribution; got {k}.")
    k = min(k, trace.config.vocab_size)
    columns = _columns(trace, positions)
    if not columns:
        raise ShapeError(f"The lens was given no position of the text's {trace.length}; name at least one.")
    wanted = None if layers is None else {trace.layer(i) for i in layers} | {trace.config.n_layers - 1}
    followed = [] if follow is None else [trace.token_id(follow)]
    count = trace.config.n_layers * 2 + 1
    memory.numbers("The lens", (count, len(columns), 2 * k + 3), 8).require("read fewer positions")
    # Some columns at a time, all their depths together: few products, and large ones.
    step = max(1, _CHUNK // (count * trace.config.vocab_size))
    pieces = []
    places: list[str] = []
    for a in range(0, len(columns), step):
        at = torch.tensor(columns[a : a + step], device=trace.transformer.device)
        found = list(_places(trace, at, wanted, halves))
        if through is not None:
            of = functools.partial(through.of, trace.transformer)
            found = [(p, of(int(p.split(".")[1]), x)) for p, x in found if p.endswith("resid_post")]
        places = [place for place, _ in found]
        pieces.append(_read(trace, at, torch.cat([x for _, x in found]), None if follow is None else followed[0], k))
    ids, probabilities, entropy, chance, rank, tokens = (torch.cat(part, dim=1) for part in zip(*pieces, strict=True))
    followed = tokens[0].tolist()
    known = {int(i) for i in ids.unique()} | set(followed)
    texts = {i: trace.token_text(i) for i in sorted(known)}
    return Lens(places, columns, ids, probabilities, entropy, followed, chance, rank, texts)


def _columns(trace: Trace, positions: int | slice | Sequence[int] | None) -> list[int]:
    if positions is None:
        return list(range(trace.length))
    if isinstance(positions, slice):
        return list(range(trace.length))[positions]
    listed = [positions] if isinstance(positions, int) else positions
    return [trace.position(p) for p in listed]


def _places(trace: Trace, at: Tensor, wanted: set[int] | None, halves: bool) -> Iterator[tuple[str, Tensor]]:
    """The places of the stream that are read, with its numbers at some positions."""
    forward = trace.forward
    for name, x in forward.walk(at):
        _, layer, place = name.split(".")
        if name == "blocks.0.resid_pre":
            if wanted is None:
                yield "embed", x
        elif (
            place not in ("resid_pre", "resid_active", "resid_late")
            and (place == "resid_post" or (halves and not trace.config.copies))
            and (wanted is None or int(layer) in wanted)
        ):
            yield name, x


def _read(
    trace: Trace, at: Tensor, streams: Float[Tensor, "place position d_model"], follow: int | None, k: int
) -> tuple[Tensor, ...]:
    """Top tokens, their probabilities, entropy, and the followed token's probability and rank, and that token."""
    transformer = trace.transformer
    logits = transformer.unembed_hidden(transformer.normed(streams))
    logits[-1] = trace.forward.get("logits", at)[0]  # as the model gave them, whatever a tap did to its last steps
    followed = logits[-1].argmax(-1) if follow is None else torch.full_like(at, follow)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log = torch.log_softmax(wide, dim=-1)
    mine = log.gather(-1, followed[None, :, None].expand(log.shape[0], -1, 1))
    best = log.topk(k, dim=-1)
    entropy = -(log.exp() * log.clamp(min=-1e4)).sum(-1)
    rank = (log > mine).sum(-1)
    return best.indices, best.values.exp(), entropy, mine[..., 0].exp(), rank, followed[None]
