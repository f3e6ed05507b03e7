"""One attention cell taken apart to its scalars.

From a query's and a key's dimensions, rotated, through their products, the scaled and capped score and
the softmax, to the value handed over and what it does to a logit. Each step's numbers give the next
step's exactly as the forward computed it. Knows one cell of one head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.interp.copies import carried
from glassformer.interp.handed import output_factor
from glassformer.interp.head_outputs import through_post, values_of_head, writing
from glassformer.interp.logit_target import Target, target

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace


@dataclass(frozen=True)
class Cell:
    """What one query makes of one key in one head, step by step.

    Attributes:
        layer, head, kv_head, query, key: which cell; the head reads the keys and values of `kv_head`,
            which are those of the layer `keys_from`.
        q, k: before rotation; rot_q, rot_k: after it (the same where positions are learned).
        products: rot_q · rot_k dimension by dimension; they add up to `dot`.
        turns: per rotated pair, the angle in radians between the query's and the key's turn.
        scale, softcap: score = dot × scale, capped where the family caps.
        visible: whether the query may see the key at all.
        score: before the softmax, minus infinity where hidden.
        log_normaliser: log of the row's sum of exponentials; weight = exp(score − log_normaliser).
        row_rank: 0 when no key of the row weighs more.
        value: what the key hands over; handed: weight × value, and the output gate's share where there is one.
        write: what that adds to the residual stream at the query (post-norm as run).
        target: the number that `effect` is a share of; None when the explained position is another one.
        effect: write's direct share of it; effects: the same by dimension of the value.
    """

    layer: int
    head: int
    kv_head: int
    keys_from: int
    query: int
    key: int
    q: Float[Tensor, " d_head"]
    k: Float[Tensor, " d_head"]
    rot_q: Float[Tensor, " d_head"]
    rot_k: Float[Tensor, " d_head"]
    products: Float[Tensor, " d_head"]
    turns: Float[Tensor, " pair"]
    dot: float
    scale: float
    softcap: float | None
    window: int | None
    visible: bool
    score: float
    log_normaliser: float
    weight: float
    row_rank: int
    value: Float[Tensor, " d_head"]
    handed: Float[Tensor, " d_head"]
    write: Float[Tensor, " d_model"]
    target: Target
    effect: float
    effects: Float[Tensor, " d_head"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a hidden score is null."""
        finite = self.score != float("-inf")
        return {
            "layer": self.layer,
            "head": self.head,
            "kv_head": self.kv_head,
            "keys_from": self.keys_from,
            "query": self.query,
            "key": self.key,
            **{
                name: getattr(self, name).tolist()
                for name in ("q", "k", "rot_q", "rot_k", "products", "turns", "value", "handed", "effects")
            },
            "dot": self.dot,
            "scale": self.scale,
            "softcap": self.softcap,
            "window": self.window,
            "visible": self.visible,
            "score": self.score if finite else None,
            "log_normaliser": self.log_normaliser,
            "weight": self.weight,
            "row_rank": self.row_rank,
            "write_norm": float(self.write.norm()),
            "token": self.target.way.token,
            "against": self.target.way.against,
            "position": self.target.position,
            "unit": self.target.way.unit,
            "effect": self.effect,
        }


@torch.no_grad()
def cell(
    trace: Trace,
    layer: int,
    head: int,
    query: int,
    key: int,
    *,
    token: str | int | None = None,
    against: str | int | None = None,
    position: int | None = None,
) -> Cell:
    """Take one attention cell apart.

    Args:
        token, against: the number that the effect is a share of, as in `why`; after `position`, which is the
            query's own by default. A cell writes at its query, so at another position its direct effect is 0.

    Raises:
        ShapeError: for a position that the text does not have.
        SiteError: for a layer or head that the model does not have.
    """
    layer = trace.layer(layer)
    attention = trace.forward.attention(layer)
    head = trace.attention_head(head, layer)
    query, key = trace.position(query), trace.position(key)
    forward, a = trace.forward, attention.choice
    kv_head = head // (a.n_heads // a.n_kv_heads)
    at_query, at_key = slice(query, query + 1), slice(key, key + 1)

    def side(which: str, at: slice, h: int, turned: bool) -> Tensor:
        site = f"rot_{which}" if turned and attention.rotates else which
        at_layer = layer if which == "q" else forward.keys_of(layer)
        return forward.get(f"blocks.{at_layer}.attn.{site}", at)[0, 0, h]

    q, k = side("q", at_query, head, False), side("k", at_key, kv_head, False)
    rot_q, rot_k = side("q", at_query, head, True), side("k", at_key, kv_head, True)
    products = rot_q.double() * rot_k.double()
    row = trace.scores(layer, head, query).double()
    score = float(row[key])
    weights = trace.pattern(layer, head, query)
    weight = float(weights[key])
    value = values_of_head(forward, layer, head, at_key)[0, : a.value_size]
    handed = weights[key] * value
    factor = output_factor(forward, layer, at_query)
    if factor is not None:
        handed = handed * factor[0, 0, head, : a.value_size]
    columns = writing(forward, layer)[head, :, : a.value_size]
    per_dimension = through_post(forward, layer, "mixer", (columns * handed).T[None, None], at_query)[0, 0]
    goal = target(trace, token, against, query if position is None else position)
    effects = torch.zeros(a.value_size, dtype=torch.float64)
    if goal.position == query:
        effects = goal.share(carried(forward, layer, 1, query, per_dimension))
    return Cell(
        layer=layer,
        head=head,
        kv_head=kv_head,
        keys_from=forward.keys_of(layer),
        query=query,
        key=key,
        q=q,
        k=k,
        rot_q=rot_q,
        rot_k=rot_k,
        products=products,
        turns=_turns(trace, layer, query - key),
        dot=float(products.sum()),
        scale=attention.scale,
        softcap=attention.cap,
        window=a.window,
        visible=score != float("-inf"),
        score=score,
        log_normaliser=float(torch.logsumexp(row, -1)),
        weight=weight,
        row_rank=int((weights > weights[key]).sum()),
        value=value,
        handed=handed,
        write=per_dimension.sum(0),
        target=goal,
        effect=float(effects.sum()),
        effects=effects,
    )


def _turns(trace: Trace, layer: int, distance: int) -> Tensor:
    """The angle between a query's and a key's rotation, per rotated pair."""
    table = trace.transformer.table(layer)
    if table is None:
        return torch.empty(0)
    return trace.transformer.tables[table].frequencies.double() * distance
