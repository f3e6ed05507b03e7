"""Why a head looks there: one attention score as a sum over pairs of earlier parts.

A query and a key are each a sum of what the embedding and the earlier layers put into the stream, once norms keep
the divisors of the run; so their product is a sum over pairs, one part on the query's side and one on the key's.
The soft cap, the position bias and the mask come after that sum and are stated as steps. Everything in float64.
Knows one score of one trace; what the weight does afterwards is `cell`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UnsupportedError, UsageError
from glassformer.interp.decompose import KINDS, Reads, additions
from glassformer.interp.frozen import Affine, key_side, query_side
from glassformer.interp.vocabulary import shown
from glassformer.model.layers import softcap

if TYPE_CHECKING:
    from glassformer.interp.token_words import Word
    from glassformer.interp.trace import Trace

# What stands beside words in `by_word`: read from nowhere in the text.
BIASES = "biases"
_BIASES = ("attention_bias", "feed_forward_bias", "norm_bias", "projection_bias", "edit")


class Part(NamedTuple):
    """A part of a query or key: its kind, layer (−1 for none) and the number of the head or expert (or −1)."""

    kind: str
    layer: int
    number: int

    @property
    def name(self) -> str:
        """For people: "head 3.5", "feed-forward 2"."""
        at = f"{self.layer}.{self.number}"
        names = {
            "embedding": "embedding",
            "position": "position's embedding",
            "head": f"head {at}",
            "expert": f"expert {at}",
            "feed_forward": f"feed-forward {self.layer}",
            "layer_embedding": f"token's own vector {self.layer}",
            "laurel": f"beside attention {self.layer}",
            "attention_bias": f"attention bias {self.layer}",
            "feed_forward_bias": f"feed-forward bias {self.layer}",
            "norm_bias": f"bias of a norm {self.layer}",
            "projection_bias": "bias of the projection and its norm",
            "edit": "change made by an edit" + ("" if self.layer < 0 else f" in layer {self.layer}"),
        }
        return names[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the fields that `why` has."""
        expert = self.kind == "expert"
        return {
            "name": self.name,
            "kind": self.kind,
            "layer": None if self.layer < 0 else self.layer,
            "head": None if expert or self.number < 0 else self.number,
            "expert": self.number if expert else None,
        }


@dataclass(frozen=True)
class Side:
    """A query or a key and what it is the sum of.

    Attributes:
        parts: with `vectors` (part, d_head), rotated and normed as run.
        words: (word + 1, d_head), the same sum by the words it was read from; biases and edits last.
    """

    parts: list[Part]
    vectors: Float[Tensor, "part d_head"]
    words: Float[Tensor, "row d_head"]

    def less(self, other: Side) -> Side:
        """The difference of two keys, part by part."""
        parts = list(dict.fromkeys([*self.parts, *other.parts]))
        place = {part: i for i, part in enumerate(parts)}
        vectors = self.vectors.new_zeros(len(parts), self.vectors.shape[1])
        vectors[[place[part] for part in self.parts]] = self.vectors
        vectors[[place[part] for part in other.parts]] -= other.vectors
        return Side(parts, vectors, self.words - other.words)


@dataclass(frozen=True)
class KeyScore:
    """From the product to the score of one key.

    Attributes:
        key: its position.
        product: query · key, scaled, as the run had it; what the pairs sum to.
        capped: after the soft cap, the same where there is none; bias: what ALiBi adds.
        edit: what an edit of the scores added.
        visible: whether the query may see the key; score: minus infinity where not; weight: after the softmax.
    """

    key: int
    product: float
    capped: float
    bias: float
    edit: float
    visible: bool
    score: float
    weight: float


@dataclass(frozen=True)
class Reasons:
    """One attention score as a sum over pairs of parts.

    Attributes:
        layer, head, kv_head, query, key: which score; against: the other key, when the difference is explained.
        steps: from the product to the score, of the key and of `against`.
        queries, keys: the parts of each side; pairs: (query part, key part), each pair's share, which sum to `sum`.
        rotated: the share of the dimensions that carry the position (and those alone).
        words: of the text up to the query; by_word: (word + 1, word + 1), shares by the words that the query's side
            and the key's side were read from, biases last.
        softcap, scale: of the head; sink: score and weight of what joins the softmax beside the keys, or None.
    """

    layer: int
    head: int
    kv_head: int
    query: int
    key: int
    against: int | None
    steps: list[KeyScore]
    queries: list[Part]
    keys: list[Part]
    pairs: Float[Tensor, "query_part key_part"]
    rotated: float
    words: list[Word]
    by_word: Float[Tensor, "query_row key_row"]
    scale: float
    softcap: float | None
    sink: dict[str, float] | None
    precision: str
    tokens: list[str]

    @property
    def sum(self) -> float:
        """Of all pairs."""
        return float(self.pairs.sum())

    @property
    def value(self) -> float:
        """What is explained: the scaled product as the run had it, less that of `against`."""
        return self.steps[0].product - (self.steps[1].product if self.against is not None else 0.0)

    @property
    def residual(self) -> float:
        """(value − sum), relative to the larger of 1 and the sizes of the products explained."""
        return abs(self.value - self.sum) / max(1.0, *(abs(step.product) for step in self.steps))

    def ranked(self, most: int = 10) -> list[dict[str, Any]]:
        """Pairs by the size of their share."""
        flat = self.pairs.flatten()
        best = flat.abs().topk(min(most, len(flat))).indices.tolist()
        width = len(self.keys)
        return [{"query": self.queries[i // width], "key": self.keys[i % width], "share": float(flat[i])} for i in best]

    def side(self, which: str) -> list[tuple[Part, float]]:
        """Parts of the "query" or the "key" with their shares together with everything on the other side, by size.

        Raises:
            UsageError: for another side.
        """
        if which not in ("query", "key"):
            raise UsageError(f"A score has a query side and a key side; there is no {which!r}.")
        parts, axis = (self.queries, 1) if which == "query" else (self.keys, 0)
        found = zip(parts, self.pairs.sum(axis).tolist(), strict=True)
        return sorted(found, key=lambda pair: -abs(pair[1]))

    def composition(self, most: int | None = None) -> list[dict[str, Any]]:
        """Earlier heads whose outputs the score reads: their share on the query's and on the key's side, by size."""
        found: dict[Part, dict[str, Any]] = {}
        for which in ("query", "key"):
            for part, share in self.side(which):
                if part.kind == "head":
                    row = {"layer": part.layer, "head": part.number, "query": 0.0, "key": 0.0}
                    found.setdefault(part, row)[which] = share
        return sorted(found.values(), key=lambda row: -max(abs(row["query"]), abs(row["key"])))[:most]

    def sentence(self) -> str:
        """What was found, and how well the sum closes."""
        step = self.steps[0]

        def at(position: int) -> str:
            return f"'{shown(self.tokens[position])}' ({position})"

        said = f"Head {self.layer}.{self.head}, at {at(self.query)}, "
        if not step.visible:
            said += f"may not see {at(self.key)}; were it not hidden, the score would be {step.product:+.2f}"
        else:
            said += f"gives {at(self.key)} a score of {step.score:+.2f}, a weight of {step.weight:.1%}"
        if self.against is not None:
            said += f"; its product is {self.value:+.2f} above that of {at(self.against)}"
        lines = [said + "."]
        best = self.ranked(1)[0]
        lines.append(
            f"The largest pair is {best['query'].name} on the query's side with {best['key'].name} on the key's: "
            f"{best['share']:+.2f}."
        )
        heads = self.composition(1)
        if heads:
            which = "query" if abs(heads[0]["query"]) >= abs(heads[0]["key"]) else "key"
            lines.append(
                f"Of earlier heads it reads head {heads[0]['layer']}.{heads[0]['head']} most, on the {which}'s side: "
                f"{heads[0][which]:+.2f}."
            )
        lines.append(
            f"The {self.pairs.numel():,} pairs sum to {self.sum:.4f}, {self.value:.4f} in the run "
            f"({abs(self.value - self.sum):.1e} apart, {self.precision})."
        )
        return " ".join(lines)

    def to_dict(self, most: int = 20) -> dict[str, Any]:
        """Plain data for JSON, with the largest pairs and parts; a hidden score is null."""
        rows = [*({"word": w.text, "positions": list(w.positions)} for w in self.words), {"word": BIASES}]
        return {
            "layer": self.layer,
            "head": self.head,
            "kv_head": self.kv_head,
            "query": self.query,
            "key": self.key,
            "against": self.against,
            "value": self.value,
            "sum": self.sum,
            "residual": self.residual,
            "precision": self.precision,
            "steps": [{**vars(step), "score": step.score if step.visible else None} for step in self.steps],
            "scale": self.scale,
            "softcap": self.softcap,
            "sink": self.sink,
            "rotated": self.rotated,
            "parts": {"query": len(self.queries), "key": len(self.keys)},
            "pairs": [
                {"query": p["query"].to_dict(), "key": p["key"].to_dict(), "share": p["share"]}
                for p in self.ranked(most)
            ],
            "sides": {
                which: [{**part.to_dict(), "share": share} for part, share in self.side(which)[:most]]
                for which in ("query", "key")
            },
            "composition": self.composition(most),
            "words": rows,
            "by_word": self.by_word.tolist(),
            "tokens": self.tokens,
            "sentence": self.sentence(),
        }


@torch.no_grad()
def reasons(
    trace: Trace, layer: int, head: int, query: int, key: int | None = None, against: int | None = None
) -> Reasons:
    """Take one attention score apart into pairs of earlier parts.

    Args:
        key: None for the one that the head weighs most from this query.
        against: another key; the difference of the two products is explained, which is what the softmax compares.

    Raises:
        ShapeError: for a position that the text does not have.
        SiteError: for a layer or head that the model does not have.
        UnsupportedError: the layer has no softmax attention.
    """
    layer = trace.layer(layer)
    part = trace.forward.attention(layer)
    head, query = trace.head(head, layer), trace.position(query)
    if head >= part.heads:
        raise UnsupportedError(
            f"Head {head} of layer {layer} is a recurrence's, which has no queries and keys; its attention has "
            f"{part.heads} heads, 0 to {part.heads - 1}."
        )
    weights = trace.pattern(layer, head, query)
    key = int(weights.argmax()) if key is None else trace.position(key)
    against = None if against is None else trace.position(against)
    if against == key:
        raise UsageError(f"Both keys are position {key}; the difference of a score from itself is nothing.")
    kv_head = head // (part.heads // part.kv_heads)
    words = [word for word in trace.words if word.positions[0] <= max(query, key, against or 0)]
    asking = _side(trace, layer, query_side(trace.forward, layer, head, query), "q", head, query, words)
    keys = [key] if against is None else [key, against]
    donor = trace.forward.keys_of(layer)
    sides = [_side(trace, donor, key_side(trace.forward, layer, kv_head, j), "k", kv_head, j, words) for j in keys]
    met = sides[0] if against is None else sides[0].less(sides[1])
    turned = part.choice.rotary_dims
    return Reasons(
        layer=layer,
        head=head,
        kv_head=kv_head,
        query=query,
        key=key,
        against=against,
        steps=[_step(trace, layer, head, kv_head, query, j) for j in keys],
        queries=asking.parts,
        keys=met.parts,
        pairs=(asking.vectors @ met.vectors.T * part.scale).cpu(),
        rotated=float((asking.vectors.sum(0) * met.vectors.sum(0))[:turned].sum() * part.scale),
        words=words,
        by_word=(asking.words @ met.words.T * part.scale).cpu(),
        scale=part.scale,
        softcap=part.cap,
        sink=None if part.sink is None else {"score": float(part.sink[head]), "weight": 1 - float(weights.sum())},
        precision=trace.precision,
        tokens=trace.tokens,
    )


def _side(trace: Trace, layer: int, way: Affine, which: str, head: int, position: int, words: list[Word]) -> Side:
    """What a query or key is the sum of: every earlier part led through the head's affine way."""
    forward = trace.forward
    parts: list[Part] = []
    vectors: list[Tensor] = []
    by_word = way.bias.new_zeros(len(words) + 1, len(way.bias))
    of_word = torch.empty(trace.length, dtype=torch.long, device=by_word.device)
    for number, word in enumerate(words):
        of_word[list(word.positions)] = number
    own = int(of_word[position])

    def one(part: Part, vector: Tensor) -> None:
        parts.append(part)
        vectors.append(vector)
        by_word[len(words) if part.kind in _BIASES else own] += vector

    for kind, at, number, x in additions(trace, position, layer):
        if not isinstance(x, Reads):
            one(Part(kind, at, number), way.matrix @ x.to(way.matrix))
            continue
        handed = x.weights[..., None] * x.values
        seen = handed.new_zeros(handed.shape[0], len(words), handed.shape[2]).index_add(
            1, of_word[: position + 1], handed
        )
        read = seen @ (way.matrix @ x.columns).transpose(1, 2)  # (head, word, d_head)
        by_word[: len(words)] += read.sum(0)
        parts += [Part("head", at, h) for h in range(len(read))]
        vectors += read.sum(1).unbind()
    if bool((way.bias != 0).any()):
        one(Part("projection_bias", -1, -1), way.bias)
    written = set() if forward.edit is None else forward.edit.writes
    changed = {f"blocks.{layer}.{site}" for site in _changing(which)}
    if written & changed:
        one(Part("edit", layer, -1), _as_run(trace, layer, which, head, position) - torch.stack(vectors).sum(0))
    return Side(parts, torch.stack(vectors), by_word)


def _changing(which: str) -> tuple[str, ...]:
    """Places within a layer at which an edit changes its queries or keys."""
    return ("resid_pre", "resid_active", "ln1.scale", "ln1.normed", f"attn.{which}", f"attn.rot_{which}")


def _as_run(trace: Trace, layer: int, which: str, head: int, position: int) -> Float[Tensor, " d_head"]:
    """The query or key that the scores used."""
    site = f"rot_{which}" if trace.forward.attention(layer).rotates else which
    at = slice(position, position + 1)
    return trace.forward.get(f"blocks.{layer}.attn.{site}", at)[0, 0, head].double()


def _step(trace: Trace, layer: int, head: int, kv_head: int, query: int, key: int) -> KeyScore:
    part, donor = trace.forward.attention(layer), trace.forward.keys_of(layer)
    product = _as_run(trace, layer, "q", head, query) @ _as_run(trace, donor, "k", kv_head, key) * part.scale
    capped = float(softcap(product, part.cap))
    nothing = torch.zeros(1, 1, 1, part.d_head, dtype=torch.float64, device=product.device)
    indexed = trace.forward.indexed(layer)
    added = part.scores(nothing, nothing, trace.forward.visible, query, query + 1, key, key + 1, [head], indexed)
    bias = float(added) if bool(added.isfinite()) else 0.0  # what is hidden has none
    score = float(trace.scores(layer, head, query)[key])
    visible = score != float("-inf")
    edited = visible and trace.forward.edits_grid(layer)
    return KeyScore(
        key=key,
        product=float(product),
        capped=capped,
        bias=bias,
        edit=score - capped - bias if edited else 0.0,
        visible=visible,
        score=score,
        weight=float(trace.pattern(layer, head, query)[key]),
    )


assert set(_BIASES) - {"projection_bias"} <= set(KINDS)
