"""The additive parts of a prediction: what each component put into the last residual stream.

The stream at a position is the sum of the embedding, every head's reading of every source position, every
feed-forward layer and the biases; each part's share of the explained number is a scalar, claimed by
linearity and measured by taking the part out and computing the final norm anew. Everything in float64.
Knows one position of one trace; what happens downstream of a part is `effects`' business.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.interp import normed_sums
from glassformer.interp.copies import ways
from glassformer.interp.handed import mixer_constant, output_factor, weights_and_values
from glassformer.interp.head_outputs import before_post, gain, part_scale, post_norm, writing
from glassformer.interp.logit_target import Target
from glassformer.model.choices import Experts, members
from glassformer.model.norms import NormLayer
from glassformer.model.parts.experts import ExpertsPart

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace

KINDS = (
    "embedding",
    "position",
    "head",
    "feed_forward",
    "expert",
    "layer_embedding",
    "laurel",
    "attention_bias",
    "feed_forward_bias",
    "norm_bias",
    "final_bias",
    "edit",
)


@dataclass
class Parts:
    """Columns of numbers, one entry per part; −1 where a part has no layer, head or source.

    `head` is the number of the head, or of the expert.
    """

    kind: Int[Tensor, " part"]
    layer: Int[Tensor, " part"]
    head: Int[Tensor, " part"]
    source: Int[Tensor, " part"]
    claimed: Float[Tensor, " part"]
    direct: Float[Tensor, " part"]
    total: Float[Tensor, " part"]
    percentile: Float[Tensor, " part"]

    def __len__(self) -> int:
        return len(self.kind)

    def of(self, kind: str, layer: int | None = None) -> Tensor:
        """Indices of the parts of a kind (of a layer)."""
        chosen = self.kind == KINDS.index(kind)
        if layer is not None:
            chosen &= self.layer == layer
        return chosen.nonzero()[:, 0]


@dataclass
class _Columns:
    """Parts being gathered."""

    blocks: list[tuple[Tensor, ...]] = field(default_factory=list)

    def add(self, kind: str, layer: int, head: Tensor, source: Tensor, *numbers: Tensor) -> None:
        codes = torch.full_like(head, KINDS.index(kind))
        self.blocks.append((codes, torch.full_like(head, layer), head, source, *numbers))


@torch.no_grad()
def decompose(trace: Trace, goal: Target) -> Parts:
    """Every part with its claimed and its measured direct share; totals are not measured yet."""
    columns = _Columns()
    whole = goal.share(goal.stream) + goal.bias
    centred = goal.stream - goal.stream.mean() if goal.centred else goal.stream
    alone = torch.tensor([-1])

    def vector(kind: str, layer: int, x: Tensor, number: int = -1) -> None:
        """One part given by its vector."""
        x = x.double().cpu()
        y = x - x.mean() if goal.centred else x
        claimed = (x @ goal.reading.cpu())[None]
        if goal.again is not None:
            left = goal.again(goal.stream - x.to(goal.stream)[None])
        else:
            left = goal.without(claimed.to(whole.device), (y @ centred.cpu())[None].to(whole.device), _square(y, whole))
        columns.add(kind, layer, torch.tensor([number]), alone, claimed, (whole - left).cpu())

    sources = torch.arange(goal.position + 1)
    for kind, layer, number, x in additions(trace, goal.position, trace.config.n_layers):
        if not isinstance(x, Reads):
            vector(kind, layer, x, number)
            continue
        claimed, overlap, square = x.scalars(goal.reading, centred, goal.centred)
        heads = torch.arange(claimed.shape[0])[:, None].expand(claimed.shape).reshape(-1)
        places = sources.expand(claimed.shape).reshape(-1)
        if goal.again is not None:
            left = goal.again(goal.stream - x.vectors(heads, places)).view(claimed.shape)
        else:
            left = goal.without(claimed, overlap, square)
        columns.add("head", layer, heads, places, claimed.reshape(-1).cpu(), (whole - left).reshape(-1).cpu())
    if goal.bias:
        one = torch.tensor([goal.bias], dtype=torch.float64)
        columns.add("final_bias", -1, alone, alone, one, one)
    codes, layers, head, source, claimed, direct = (torch.cat(c) for c in zip(*columns.blocks, strict=True))
    unknown = torch.full_like(claimed, float("nan"))
    return Parts(codes, layers, head, source, claimed, direct, unknown, unknown.clone())


def additions(trace: Trace, position: int, layers: int) -> Iterator[tuple[str, int, int, Tensor | Reads]]:
    """What the embedding and the first layers put into the stream at a position: kind, layer, number and vector.

    A layer's heads come together, as its `Reads`; a number tells experts apart and is −1 otherwise. Where the stream is
    rescaled on its way to layer `layers`, or normed after each sum, so are they.
    """
    forward = trace.forward
    if trace.config.copies:
        yield from _in_copies(trace, position, layers)
        return
    at = slice(position, position + 1)
    sums = any(layer.norms == "sum" for layer in trace.config.layers[:layers])
    through = normed_sums.ways(forward, position, layers) if sums else None

    def on(x: Tensor, layer: int, part: int) -> Tensor:
        """As it stands in the stream that enters layer `layers`."""
        if through is not None:
            return (through.begin if layer < 0 else through.parts[layer, part]) @ x.double()
        return x.double() * forward.carried(layer, part, layers)

    given: list[Tensor] = []  # for what an edit comes to beside them
    for name, kind in (("embed", "embedding"), ("pos_embed", "position")):
        if name in forward.recorded:
            x = on(forward.recorded[name][0, position], -1, 0)
            given.append(x)
            yield kind, -1, -1, x
    for layer, choice in enumerate(trace.config.layers[:layers]):
        reads = None if choice.mixer is None else Reads(trace, layer, position)
        if reads is not None:
            if through is not None:
                yield "head", layer, -1, reads.through(through.parts[layer, 1])
                given.append(on(reads.total(), layer, 1))
            else:
                yield "head", layer, -1, reads.times(forward.carried(layer, 1, layers))
        vectors = [
            (kind, -1, on(x, layer, 1 if kind == "attention_bias" else 2))
            for kind, x in bias_parts(trace, layer, position)
        ]
        experts = expert_parts(trace, layer, position)
        vectors += [("expert", expert, on(x, layer, 2)) for expert, x in experts.items()]
        feed = choice.feed_forward
        if feed is not None and not (isinstance(feed, Experts) and feed.shared is None):
            vectors.append(("feed_forward", -1, on(feed_forward_part(trace, layer, position), layer, 2)))
        if choice.embedding is not None:
            vectors.append(("layer_embedding", -1, on(layer_embedding_part(trace, layer, position), layer, 2)))
        if through is not None:
            vectors += [
                ("norm_bias", -1, through.biases[key]) for key in ((layer, 1), (layer, 2)) if key in through.biases
            ]
        for kind, number, x in vectors:
            given.append(x)
            yield kind, layer, number, x
        for x in () if through is not None else _edits(trace, layer, at, reads):
            yield "edit", layer, -1, x * forward.carried(layer, 3, layers)
    if through is not None and forward.edit is not None:
        end = forward.last(at) if layers == trace.config.n_layers else forward.entering(layers, at)
        yield "edit", layers - 1, -1, end[0, 0].double() - torch.stack(given).sum(0)


def _in_copies(trace: Trace, position: int, layers: int) -> Iterator[tuple[str, int, int, Tensor | Reads]]:
    """`additions` where the stream stands in copies: to the copy that layer `layers` computes with, or to the last
    stream."""
    forward, last = trace.forward, layers == trace.config.n_layers
    way = ways(forward, position, None if last else layers)
    total = way.embedding()
    yield "embedding", -1, -1, total
    for layer in range(layers):
        first, second, third = (way.of_part(layer, part) for part in (1, 2, 3))
        reads = Reads(trace, layer, position).through(first)
        yield "head", layer, -1, reads
        found = {
            "laurel": first @ forward.recorded[f"blocks.{layer}.laurel.out"][0, position].double(),
            "feed_forward": second @ feed_forward_part(trace, layer, position),
            "layer_embedding": third @ layer_embedding_part(trace, layer, position),
        }
        for kind, x in bias_parts(trace, layer, position):
            found[kind] = (first if kind == "attention_bias" else second) @ x.double()
        for kind, x in found.items():
            yield kind, layer, -1, x
        total = total + reads.total() + torch.stack([*found.values()]).sum(0)
    if forward.edit is not None:
        here = slice(position, position + 1)
        read = forward.last(here) if last else forward.get(f"blocks.{layers}.resid_active", here)
        yield "edit", layers - 1, -1, read[0, 0].double() - total


def _square(y: Tensor, like: Tensor) -> Tensor:
    return y.square().sum()[None].to(like.device)


class Reads:
    """What one position's heads read from every source position, in one layer.

    Attributes:
        weights: (head, source); values: (head, source, d_head), float64, with what multiplies each head's sum
            (an output gate, a state space's gate and norm) in them; weights are 1 where every channel has its own.
        columns: (head, d_model, d_head), each head's output columns with the post-norm as run.
    """

    def __init__(self, trace: Trace, layer: int, position: int) -> None:
        forward = trace.forward
        self.weights, self.values = (x[0].double() for x in weights_and_values(forward, layer, position))
        factor = output_factor(forward, layer, slice(position, position + 1))
        if factor is not None:
            self.values = self.values * factor[0, 0, :, None].double()
        self._post = PostNorm(trace, layer, "mixer", position)
        self.columns = self._post(writing(forward, layer).double().transpose(1, 2)).transpose(1, 2)

    def times(self, factor: float) -> Reads:
        """The same where the stream that they write to is multiplied afterwards."""
        if factor == 1:
            return self
        found = copy.copy(self)
        found.columns = self.columns * factor
        return found

    def through(self, matrix: Float[Tensor, "d_model d_model"]) -> Reads:
        """The same where what they write goes through a matrix afterwards."""
        found = copy.copy(self)
        found.columns = matrix @ self.columns
        return found

    def scalars(self, reading: Tensor, stream: Tensor, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Per (head, source): share of the number, product with the stream, squared length."""
        handed = self.weights[..., None] * self.values
        columns = self.columns - self.columns.mean(1, keepdim=True) if centred else self.columns
        claimed = torch.einsum("hse,hde,d->hs", handed, columns, reading)
        overlap = torch.einsum("hse,hde,d->hs", handed, columns, stream)
        gram = columns.transpose(1, 2) @ columns
        square = ((handed @ gram) * handed).sum(-1)
        return claimed, overlap, square

    def vectors(self, heads: Tensor, sources: Tensor) -> Float[Tensor, "part d_model"]:
        """What the given heads add from the given sources, written out."""
        out = torch.empty(len(heads), self.columns.shape[1], dtype=torch.float64, device=self.columns.device)
        for head in heads.unique().tolist():
            mine = (heads == head).to(out.device)
            at = sources.to(out.device)[mine]
            out[mine] = (self.weights[head, at, None] * self.values[head, at]) @ self.columns[head].T
        return out

    def total(self) -> Float[Tensor, " d_model"]:
        """All heads and sources together."""
        handed = (self.weights[..., None] * self.values).sum(1)
        return torch.einsum("he,hde->d", handed, self.columns)


class PostNorm:
    """A layer's post-norm at one position with its divisor as run: linear. The identity where there is none."""

    def __init__(self, trace: Trace, layer: int, part: str, position: int) -> None:
        self.norm: NormLayer | None = post_norm(trace.forward, layer, part)
        self.times = part_scale(trace.forward, layer, part)
        if self.norm is not None:
            before = before_post(trace.forward, layer, part, slice(position, position + 1))[0, 0].double()
            centred = before - before.mean() if self.norm.centred else before
            self.scale = (centred.square().mean() + self.norm.eps).sqrt()

    def __call__(self, x: Float[Tensor, "*part d_model"]) -> Float[Tensor, "*part d_model"]:
        x = x * self.times
        if self.norm is None:
            return x
        x = x - x.mean(-1, keepdim=True) if self.norm.centred else x
        return x / self.scale * gain(self.norm, x)

    def with_bias(self, bias: Tensor | None) -> Tensor | None:
        """What a projection's bias and the norm's own add together; None where there is neither."""
        out = None if bias is None else self(bias.double())
        if self.norm is not None and self.norm.bias is not None:
            own = self.norm.bias.double() * self.times
            out = own if out is None else out + own
        return out


def bias_parts(trace: Trace, layer: int, position: int) -> Iterator[tuple[str, Tensor]]:
    """The biases that a layer adds to the stream at a position."""
    forward, block = trace.forward, trace.forward.block(layer)
    projections: list[tuple[str, str, Any]] = []
    if block.mixer is not None:
        projections.append(("attention_bias", "mixer", block.mixer.o))
    if block.feed_forward is not None:
        part_of = block.feed_forward
        if isinstance(part_of, ExpertsPart):
            down: object = part_of if part_of.widen is None else part_of.widen
        else:
            down = part_of.down
        projections.append(("feed_forward_bias", "mlp", down))
    for kind, part, projection in projections:
        # experts' own biases are parts of what each of them gives
        bias = None if projection is None else projection.bias
        own = mixer_constant(forward, layer, position) if part == "mixer" else None
        if own is not None:
            bias = own[0] if bias is None else own[0] + bias
        found = PostNorm(trace, layer, part, position).with_bias(bias)
        if found is not None:
            yield kind, found


def feed_forward_part(trace: Trace, layer: int, position: int) -> Float[Tensor, " d_model"]:
    """What a feed-forward layer adds at a position, its bias left out; beside experts, what every token passes."""
    if isinstance(trace.forward.block(layer).feed_forward, ExpertsPart):
        at = slice(position, position + 1)
        shared = trace.forward.get(f"blocks.{layer}.mlp.shared", at)[0, 0].double()
        return PostNorm(trace, layer, "mlp", position)(shared)
    out = trace.forward.recorded[f"blocks.{layer}.mlp.out"][0, position].double()
    bias = dict(bias_parts(trace, layer, position)).get("feed_forward_bias")
    return out if bias is None else out - bias


def layer_embedding_part(trace: Trace, layer: int, position: int) -> Float[Tensor, " d_model"]:
    """What a layer's own embedding of the token adds at a position."""
    return trace.forward.recorded[f"blocks.{layer}.ple.out"][0, position].double()


def expert_parts(trace: Trace, layer: int, position: int) -> dict[int, Float[Tensor, " d_model"]]:
    """What each chosen expert of a layer adds to the stream at a position, by number; empty without experts."""
    part = trace.forward.block(layer).feed_forward
    if not isinstance(part, ExpertsPart):
        return {}
    at, name = slice(position, position + 1), f"blocks.{layer}.mlp."
    post, weights = (trace.forward.get(name + site, at)[0, 0].double() for site in ("post", "weights"))
    through = PostNorm(trace, layer, "mlp", position)
    found = part.expert_vectors(post, weights)
    if part.ln_out is not None:
        whole = part.written(*(trace.forward.get(name + site, at) for site in ("post", "weights")))[0, 0].double()
        divisor = (whole.square().mean() + part.ln_out.eps).sqrt()
        found = {expert: x / divisor * gain(part.ln_out, x) for expert, x in found.items()}
    return {expert: through(x) for expert, x in found.items()}


def given_by_experts(trace: Trace, layer: int, position: int) -> Float[Tensor, " d_model"]:
    """All that a layer's experts, the part beside them and a post-norm's bias add, as the parts have it."""
    found = list(expert_parts(trace, layer, position).values())
    choice = trace.config.layers[layer].feed_forward
    if isinstance(choice, Experts) and choice.shared is not None:
        found.append(feed_forward_part(trace, layer, position))
    bias = dict(bias_parts(trace, layer, position)).get("feed_forward_bias")
    return torch.stack(found if bias is None else [*found, bias]).sum(0)


def _edits(trace: Trace, layer: int, at: slice, reads: Reads | None) -> Iterator[Tensor]:
    """What a tap added in this layer beyond what the components gave; nothing in an unchanged model."""
    forward = trace.forward
    if forward.edit is None:
        return
    prefix, choice = f"blocks.{layer}.", trace.config.layers[layer]
    start = forward.entering(layer, at)[0, 0].double()
    after = forward.get(prefix + "resid_post", at)[0, 0].double()
    written = {s.site for s in forward.edit.actions if s.writes}
    sites = {prefix + site for site in ("resid_pre", "resid_mid", "resid_post")}
    out: Tensor = torch.zeros_like(start)
    if choice.feed_forward is not None:
        out = forward.recorded[prefix + "mlp.out"][0, at][0].double()
    if isinstance(choice.feed_forward, Experts):
        out = given_by_experts(trace, layer, int(at.start))
        sites |= {f"{prefix}mlp.{site}" for site in (*choice.feed_forward.sites(), "out")}
    if choice.embedding is not None:
        out = out + layer_embedding_part(trace, layer, int(at.start))
        sites |= {prefix + "resid_late"}
    mixed = given = torch.zeros_like(start)
    if choice.mixer is not None and reads is not None:
        name = prefix + choice.mixer.prefix
        mixed = forward.recorded[name + ".out"][0, at][0].double()
        given = reads.total() + dict(bias_parts(trace, layer, int(at.start))).get("attention_bias", torch.zeros(()))
        sites |= {f"{prefix}{own.prefix}.{site}" for own in members(choice.mixer) for site in own.sites()}
        sites |= {f"{name}.{site}" for site in (*choice.mixer.sites(), "out")}
    if written & sites or forward.edits_grid(layer):
        start = forward.within(layer, 0) * start
        whole = forward.within(layer, 1) * mixed + forward.within(layer, 2) * out
        yield forward.within(layer, 1) * (mixed - given) + (after - start - whole)
