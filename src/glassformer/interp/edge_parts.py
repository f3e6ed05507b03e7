"""What each part of a model adds to the stream, given what each of its receivers reads of it.

They are the model's own parts, called one at a time; where a backward pass is to see RelP's rules, what divides, gates
or chooses is held. Knows one block or one traced run, and neither edges nor prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.interp.edge_graph import (
    ANEW,
    BESIDE,
    CORRECTED,
    FEED,
    LOGITS,
    MIXER,
    NORMED_FEED,
    NORMED_MIXER,
    OWN,
    PREDICTED,
    TOKEN,
)
from glassformer.interp.head_outputs import gain
from glassformer.interp.recording import Recording
from glassformer.model.layers import Linear
from glassformer.model.norms import NormLayer
from glassformer.model.parts.attention import AttentionPart
from glassformer.model.parts.block import Block
from glassformer.model.parts.experts import ExpertsPart
from glassformer.model.parts.passing import Pass
from glassformer.model.sites import View
from glassformer.model.transformer import Transformer


def through(norm: NormLayer | None, parts: Float[Tensor, "part *batch d_model"], held: bool = False) -> Tensor:
    """Parts after a norm of their sum: each divided by what that divides by, its bias shared out evenly; where `held`,
    nothing goes back through the divisor."""
    if norm is None:
        return parts
    scale = norm.scale(parts.sum(0)).to(parts.dtype)
    scale = scale.detach() if held else scale
    parts = parts - parts.mean(-1, keepdim=True) if norm.centred else parts
    parts = parts / scale * gain(norm, parts)
    return parts if norm.bias is None else parts + norm.bias / len(parts)


def read(block: Block, place: int, stream: Float[Tensor, "*batch d_model"], held: bool = False) -> Tensor:
    """What a place reads of the stream; where `held`, nothing goes back through its norm's divisor."""
    norm = block.norm(place)
    if not held or norm is None:
        return block.read(place, stream)
    return norm.apply_scale(stream, norm.scale(stream).detach())


def added_parts(
    block: Block, place: int, parts: Float[Tensor, "part *batch d_model"], held: bool = False
) -> Float[Tensor, "part *batch d_model"]:
    """Parts that add up to a mixer's or feed-forward part's output, as they enter the stream."""
    parts, times = through(block.post_norm(place), parts, held), block.choice.part_scale(place)
    return parts if times == 1 else parts * times


def one_of(
    block: Block, place: int, part: Float[Tensor, " d_model"], whole: Float[Tensor, " d_model"], bias: bool = False
) -> Float[Tensor, " d_model"]:
    """What one of the vectors that add up to `whole` enters the stream as, with a norm's own bias where `bias`."""
    norm, times = block.post_norm(place), block.choice.part_scale(place)
    if norm is not None:
        scale = norm.scale(whole)
        part = norm.apply_scale(part, scale)
        if norm.bias is not None and not bias:
            part = part - norm.bias
    return part * times


def split_heads(
    block: Block, z: Float[Tensor, "row query head d_head"], held: bool = False
) -> Float[Tensor, "head row query d_model"]:
    """What each attention head adds to the stream; the output's bias is shared out evenly."""
    part = block.mixer
    assert part is not None
    heads = z.shape[2]
    if isinstance(part, AttentionPart):
        columns = part.head_columns
    else:
        columns = part.o.weight.view(-1, heads, z.shape[3]).transpose(0, 1)
    out = torch.einsum("rthe,hde->hrtd", z, columns)
    if part.o.bias is not None:
        out = out + part.o.bias / heads
    return added_parts(block, MIXER, out, held)


def fed(block: Block, stream: Float[Tensor, "row query d_model"]) -> Float[Tensor, "row query d_model"]:
    """What the feed-forward part adds to the stream, given the stream it reads."""
    part, x = block.feed_forward, block.read(FEED, stream)
    assert part is not None
    return block.add(FEED, part(x, None, stream) if isinstance(part, ExpertsPart) else part(x))


def split_feed(
    block: Block, streams: Float[Tensor, "receiver row query d_model"], view: View | None = None
) -> Float[Tensor, "sender row query d_model"]:
    """The same from each of its senders: the part, or each expert and the part beside them.

    Args:
        streams: what each receiver reads: one for all, or the router's, each expert's, and that of the part beside.
        view: where relevance is propagated, and then divisors and experts' weights are held.
    """
    part, held = block.feed_forward, view is not None
    assert part is not None
    if not isinstance(part, ExpertsPart):
        if not held:
            return fed(block, streams[0])[None]
        return added_parts(block, FEED, part(read(block, FEED, streams[0], held), view)[None], held)
    x = read(block, FEED, streams, held)
    weights = part.weights(part.scored(x[0], streams[0]))
    weights = weights.detach() if held else weights
    own = slice(1, 1 + part.choice.n_experts) if len(x) > 1 else slice(None)
    inner = part.narrowed(part.entering(x[own], streams[own]))
    post = part.watched(inner, weights, view).unflatten(-1, (part.choice.n_experts, -1))
    down = part.experts.down
    out = torch.einsum("rtef,edf->ertd", post, down.weight)
    if down.bias is not None:
        out = out + part.outer(weights).movedim(-1, 0)[..., None] * down.bias[:, None, None]
    if part.widen is not None:
        out = out @ part.widen.weight.T
        if part.widen.bias is not None:
            out = out + part.widen.bias / len(out)
    out = through(part.ln_out, out, held)
    if part.bias is not None:
        out = out + part.bias / len(out)
    if part.shared is not None:
        out = torch.cat([out, part.beside(x[-1], view)[None]])
    return added_parts(block, FEED, out, held)


def rescaling(forward: Recording) -> tuple[dict[tuple[int | None, int], float], dict[tuple[int, int], float]]:
    """What the stream has been multiplied by, from the embedding on: where each place reads it, and where each place's
    senders join it. Everything is 1 in designs that only add.

    Numbers of senders and streams are kept divided by it, so that what a sender adds is the same wherever it is read.
    """
    reads: dict[tuple[int | None, int], float] = {}
    joins: dict[tuple[int, int], float] = {}
    times = 1.0
    for layer, choice in enumerate(forward.config.layers):
        block, before = forward.block(layer), times
        for place, normed, part in ((MIXER, NORMED_MIXER, choice.mixer), (FEED, NORMED_FEED, choice.feed_forward)):
            reads[layer, place] = before if choice.parallel else times
            times *= choice.stream_scale(place)
            joins[layer, place] = reads[layer, normed] = times
            if part is not None and choice.norms == "sum":
                times = 1.0
        reads[layer, BESIDE], joins[layer, BESIDE] = reads[layer, MIXER], joins[layer, MIXER]
        if choice.copies is not None:
            reads[layer, CORRECTED], times = times, 1.0
        reads[layer, OWN] = joins[layer, OWN] = times
        reads[layer, TOKEN] = reads[layer, PREDICTED] = 1.0
        joins |= {(layer, place): 1.0 for place in ANEW}
        times *= 1.0 if block.scalar is None else float(block.scalar.double())
    reads[None, LOGITS] = times
    return reads, joins


def widened(x: Float[Tensor, "*batch d"], width: int) -> Float[Tensor, "*batch wide"]:
    """What a part that writes to the first copy adds to all that senders add to."""
    return x if x.shape[-1] == width else torch.nn.functional.pad(x, (0, width - x.shape[-1]))


def made_anew(
    block: Block,
    place: int,
    x: Float[Tensor, "*batch wide"],
    times: float = 1.0,
    held: bool = False,
    like: Float[Tensor, "*batch wide"] | None = None,
) -> Float[Tensor, "*batch wide"]:
    """The stream as it is made anew from all that was added to it; where `held`, divisors and shares are.

    Args:
        times: what the stream (the first copy) has been multiplied by.
        like: the stream whose divisors and shares are taken; None for `x` itself.
    """
    like = x if like is None else like
    if place in (NORMED_MIXER, NORMED_FEED):
        norm = _norm_of(block, place)
        if not held:
            return norm(x * times)
        return norm.apply_scale(x * times, norm.scale(like * times).detach())
    copies = block.copies
    assert copies is not None
    stack = x.unflatten(-1, (copies.n + 1, -1))
    first, rest, base = stack[..., 0, :], stack[..., 1:-1, :], stack[..., -1:, :]
    chosen = first_copy(block, like)
    if place == PREDICTED:
        mixing = copies.mixing(chosen).to(stack.dtype)
        made = (mixing.detach() if held else mixing) @ stack[..., :-1, :]
        return torch.cat([made, made[..., :1, :]], -2).flatten(-2)
    shares = copies.shares(chosen * times)
    made = copies.corrected(torch.cat([base, rest], -2), first * times, shares.detach() if held else shares)
    return widened(made, x.shape[-1])


def _norm_of(block: Block, place: int) -> NormLayer:
    norm = block.ln1 if place == NORMED_MIXER else block.ln2
    assert norm is not None
    return norm


def anew_bias(block: Block, place: int) -> Float[Tensor, " d_model"] | None:
    """What is added where the stream is made anew, whatever it was."""
    return _norm_of(block, place).bias if place in (NORMED_MIXER, NORMED_FEED) else None


def first_copy(block: Block, x: Float[Tensor, "*batch wide"]) -> Float[Tensor, "*batch d_model"]:
    """What the parts of a layer read of what senders add."""
    return x if block.copies is None else x.unflatten(-1, (block.copies.n + 1, -1))[..., 0, :]


def beside(
    block: Block, stream: Float[Tensor, "*batch d_model"], held: bool = False
) -> Float[Tensor, "*batch d_model"]:
    """What stands beside the mixer adds to the stream, given the stream it reads."""
    x, laurel = read(block, MIXER, stream, held), block.laurel
    if not held:
        return block.beside(x)
    assert laurel is not None
    return (x + through(laurel.norm, laurel.up(laurel.down(x))[None], held)[0]) * block.choice.part_scale(1)


def embedded(
    block: Block,
    stream: Float[Tensor, "*batch d_model"],
    token: Float[Tensor, "*batch d_ple"],
    view: View | None = None,
) -> Float[Tensor, "*batch d_model"]:
    """What the layer's own embedding of the token adds, given the stream it reads."""
    assert block.ple is not None
    x = stream if block.copies is None else stream * block.copies.scale
    return added_parts(block, OWN, block.ple(x, token, view)[None], view is not None)[0]


def read_out(transformer: Transformer, last: Float[Tensor, "row query wide"], view: View) -> Tensor:
    """What the unembedding reads of the last stream, lengths, divisors and what activations multiply by held."""
    x, head = transformer.gathered(last, held=True), transformer.head
    if head is not None:
        pre = head.dense(head.norm.apply_scale(x, head.norm.scale(x).detach()))
        x = pre * torch.where(pre == 0, 0.0, head.activation(pre) / pre).detach()
    return x if transformer.final is None else transformer.final(x, view, "final")


def own_sides(part: AttentionPart, x: Float[Tensor, "receiver row query d_model"], state: Pass) -> dict[str, Tensor]:
    """Queries, gates, keys and values by site, each head's from its own input; and an index's, from its own."""
    heads, groups = part.heads, part.kv_heads
    values = slice(heads + groups, heads + 2 * groups)
    if _only_projects(part):
        read = {"q": (part.q, x[:heads]), "k": (part.k, x[heads : heads + groups]), "v": (part.v, x[values])}
        return {site: _rows_of_heads(linear, own) for site, (linear, own) in read.items() if linear is not None}
    reading: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {"q": (part.queries, x[:heads])}
    if part.gate is not None:
        reading["gate"] = (part.gates, x[:heads])
    if part.choice.keys_from is None:
        reading["k"] = (lambda y: part.keys_and_values(y)[0], x[heads : heads + groups])
        reading["v"] = (lambda y: part.keys_and_values(y)[1], x[values])
    out = {}
    for site, (project, own) in reading.items():
        y = project(own.flatten(0, 1)).unflatten(0, own.shape[:2])
        out[site] = torch.stack([y[i, :, :, i] for i in range(len(own))], dim=2)
    return out | index_sides(part, x[-1], state)


def index_sides(part: AttentionPart, x: Float[Tensor, "row query d_model"], state: Pass) -> dict[str, Tensor]:
    """An index's queries, keys and weights by site; nothing where there is none."""
    found = part.look(x, dataclasses.replace(state, cache=None), None)
    return {} if found is None else {"index_q": found.q, "index_k": found.k, "index_weights": found.weights}


def _only_projects(part: AttentionPart) -> bool:
    """Whether each head's query, key and value is a product with its own rows of a matrix, and nothing more."""
    choice = part.choice
    more = (choice.qk_norm, choice.value_norm, choice.values_are_keys, choice.gate)
    return type(part) is AttentionPart and not any(more) and choice.clip is None and choice.value_scale is None


def _rows_of_heads(
    linear: Linear, x: Float[Tensor, "head row query d_model"]
) -> Float[Tensor, "row query head d_head"]:
    """Each head's rows of a projection of its own input."""
    out = torch.einsum("hrtd,hed->rthe", x, linear.weight.view(len(x), -1, x.shape[-1]))
    return out if linear.bias is None else out + linear.bias.view(len(x), -1)
