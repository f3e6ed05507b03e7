"""Feed-forward neurons: which pushed a prediction, what each writes, what excites it, where it fires.

A neuron's output scales one column of the down projection (of its expert: neurons are numbered through
all experts); with the norms' divisors as run, its share of the explained number is exact. What it writes
is that column read through the unembedding; what excites it is its input weights read against the
embedding: the neuron as its weights alone show it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import SiteError, UnsupportedError, UsageError
from glassformer.interp.circuits import embedded, unembedded
from glassformer.interp.copies import carried
from glassformer.interp.head_outputs import before_post, gain, through_post
from glassformer.interp.logit_target import target
from glassformer.interp.vocabulary import known_ids
from glassformer.model.layers import linear
from glassformer.model.parts.experts import ExpertsPart

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.model import Transformer

# Tokens embedded at a time.
_CHUNK = 8192


@dataclass(frozen=True)
class Neurons:
    """The neurons behind one prediction.

    Attributes:
        token, position, unit, value: the number explained.
        all: share of the number that all feed-forward layers have together (biases apart, and parts that stand
            beside experts).
        written_over: layers whose feed-forward output a tap wrote, so that their neurons have no share.
        neurons: the largest, each with layer, index, activation, contribution, the tokens that its output as it
            stood raises and lowers, and those whose embeddings excite it.
    """

    token: str
    position: int
    unit: str
    value: float
    all: float
    written_over: list[int]
    neurons: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dict(self.__dict__)


@torch.no_grad()
def top_neurons(
    trace: Trace,
    token: str | int | None = None,
    against: str | int | None = None,
    position: int = -1,
    *,
    k: int = 20,
    words: int = 5,
) -> Neurons:
    """The `k` neurons with the largest shares of a prediction, of either sign; `words` tokens for each.

    Raises:
        UsageError: for fewer than one neuron or word.
    """
    if k < 1 or words < 1:
        raise UsageError("At least one neuron, and one word for each, can be shown.")
    goal = target(trace, token, against, position)
    at = slice(goal.position, goal.position + 1)
    edit = trace.forward.edit
    written = [i for i in range(trace.config.n_layers) if edit is not None and f"blocks.{i}.mlp.out" in edit.writes]
    shares, activations = [], []
    widest = max(
        (layer.feed_forward.neurons for layer in trace.config.layers if layer.feed_forward is not None), default=0
    )
    if widest == 0:
        raise UnsupportedError("No layer of this model has a feed-forward part, so it has no neurons.")
    for layer, choice in enumerate(trace.config.layers):
        if choice.feed_forward is None:
            shares.append(torch.zeros(widest, dtype=torch.float64))
            activations.append(torch.zeros(widest, dtype=trace.transformer.dtype))
            continue
        post = trace.forward.get(f"blocks.{layer}.mlp.post", at)[0, 0]
        mlp = trace.forward.block(layer).mlp
        columns = mlp.columns.T
        if isinstance(mlp, ExpertsPart) and mlp.ln_out is not None:
            columns = columns * gain(mlp.ln_out, columns) / _divisor(trace, layer, at)[0]
        columns = through_post(trace.forward, layer, "mlp", columns[None, None], at)[0, 0]
        share = goal.share(carried(trace.forward, layer, 2, goal.position, columns)) * post.double()
        share = torch.zeros_like(share) if layer in written else share
        shares.append(torch.nn.functional.pad(share, (0, widest - len(share))))
        activations.append(torch.nn.functional.pad(post, (0, widest - len(post))))
    grid, fired = torch.stack(shares), torch.stack(activations)
    d_ff = grid.shape[1]
    chosen = [divmod(i, d_ff) for i in grid.abs().flatten().topk(min(k, grid.numel())).indices.tolist()]
    known = known_ids(trace.vocabulary, trace.config.vocab_size)
    exciting: dict[tuple[int, int], list[int]] = {}
    for layer in {layer for layer, _ in chosen}:
        mine = [index for at_layer, index in chosen if at_layer == layer]
        for index, tokens in zip(mine, excite(trace.transformer, layer, mine, words, known), strict=True):
            exciting[layer, index] = tokens
    found = []
    for layer, index in chosen:
        activation = float(fired[layer, index])
        raised, lowered = writes(trace.transformer, layer, index, words, known)
        if activation < 0:  # what a negative output raises is what a positive one lowers
            raised, lowered = lowered, raised
        found.append(
            {
                "layer": layer,
                "index": index,
                "activation": activation,
                "contribution": float(grid[layer, index]),
                "raises": [trace.token_text(t) for t in raised],
                "lowers": [trace.token_text(t) for t in lowered],
                "excited_by": [trace.token_text(t) for t in exciting[layer, index]],
            }
        )
    return Neurons(
        token=trace.token_text(goal.way.token),
        position=goal.position,
        unit=goal.way.unit,
        value=goal.value,
        all=float(grid.sum()),
        written_over=written,
        neurons=found,
    )


@torch.no_grad()
def strengths(trace: Trace, layer: int) -> tuple[Float[Tensor, "query d_ff"], Float[Tensor, "query d_ff"]]:
    """How long every neuron's column is as it was scaled for each position, through a
    post-norm as run, and what scaled it.

    Raises:
        SiteError: where the layer has no neurons of its own.
    """
    layer = trace.layer(layer)
    post = trace.tensor(f"blocks.{layer}.mlp.post")[0]
    block = trace.forward.block(layer)
    columns: Tensor = block.mlp.columns
    columns = columns * block.choice.part_scale(2)
    if isinstance(block.mlp, ExpertsPart) and block.mlp.ln_out is not None:
        columns = columns * gain(block.mlp.ln_out, columns.T)[:, None]
        post = post / _divisor(trace, layer, slice(None))
    length = columns.norm(dim=0)
    if block.ln2_post is None:
        return post.abs() * length, post
    columns = columns - columns.mean(0) if block.ln2_post.centred else columns
    length = (columns * gain(block.ln2_post, columns.T)[:, None]).norm(dim=0)
    scale = block.ln2_post.scale(before_post(trace.forward, layer, "mlp", slice(None)))[0].to(post.dtype)
    return post.abs() * length / scale, post


def _divisor(trace: Trace, layer: int, at: slice) -> Float[Tensor, "query 1"]:
    """What the norm after the experts' sum divided by."""
    part, name = trace.forward.block(layer).mlp, f"blocks.{layer}.mlp."
    assert isinstance(part, ExpertsPart)
    assert part.ln_out is not None
    whole = part.written(*(trace.forward.get(name + site, at) for site in ("post", "weights")))
    return part.ln_out.scale(whole)[0].to(whole.dtype)


def _neuron(transformer: Transformer, layer: int, index: int) -> Any:
    config = transformer.config
    if not -config.n_layers <= layer < config.n_layers:
        raise SiteError(f"There is no layer {layer}: the model has {config.n_layers}, 0 to {config.n_layers - 1}.")
    d_ff = config.feed_forward(layer % config.n_layers).neurons
    if not 0 <= index < d_ff:
        raise SiteError(f"There is no neuron {index}: layer {layer % config.n_layers} has {d_ff}, 0 to {d_ff - 1}.")
    return transformer.blocks[layer]


@torch.no_grad()
def writes(
    transformer: Transformer, layer: int, index: int, k: int = 10, known: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """The tokens whose logits a positive output of the neuron raises most, and lowers most; of `known` ids alone."""
    block = _neuron(transformer, layer, index)
    column = block.mlp.columns[:, index]
    if isinstance(block.mlp, ExpertsPart) and block.mlp.ln_out is not None:
        column = column * gain(block.mlp.ln_out, column)
    if block.ln2_post is not None:
        column = (column - column.mean() if block.ln2_post.centred else column) * gain(block.ln2_post, column)
    ids = _ids(transformer, known)
    pushed = unembedded(transformer, column)[ids]
    k = min(k, len(pushed))
    return ids[pushed.topk(k).indices].tolist(), ids[(-pushed).topk(k).indices].tolist()


def _ids(transformer: Transformer, known: Sequence[int] | None) -> Tensor:
    rows = range(transformer.config.vocab_size) if known is None else known
    return torch.tensor(rows, dtype=torch.long, device=transformer.device)


def excited_by(
    transformer: Transformer, layer: int, index: int, k: int = 10, known: Sequence[int] | None = None
) -> list[int]:
    """Tokens whose embeddings, through the layer's norm, give the neuron its largest outputs; of `known` ids alone."""
    return excite(transformer, layer, [index], k, known)[0]


@torch.no_grad()
def excite(
    transformer: Transformer, layer: int, neurons: list[int], k: int = 10, known: Sequence[int] | None = None
) -> list[list[int]]:
    """`excited_by` for several neurons of one layer, the vocabulary read once."""
    for index in neurons:
        block = _neuron(transformer, layer, index)
    mlp, chosen = block.mlp, torch.tensor(neurons, device=transformer.device)
    values = torch.empty(0, len(neurons), device=transformer.device, dtype=transformer.dtype)
    tokens = torch.empty(0, len(neurons), device=transformer.device, dtype=torch.long)

    def rows(part: Any, x: Tensor) -> Tensor:
        weight = part.weight.flatten(0, -2)  # experts' rows one after another
        return linear(x, weight[chosen], None if part.bias is None else part.bias.flatten()[chosen])

    for part in _ids(transformer, known).split(_CHUNK):
        e = embedded(transformer, part)
        norm = block.norm(2)
        x = e if norm is None else norm(e)
        if isinstance(mlp, ExpertsPart):
            x = mlp.entering(x, e)
        if isinstance(mlp, ExpertsPart):  # as if their expert were chosen, with weight 1
            x = mlp.narrowed(x)
            up, own = rows(mlp.experts.up, x), mlp.experts.gate
            out = mlp.hidden(up) if own is None else mlp.hidden(rows(own, x), up)
        else:
            up, scale = rows(mlp.up, x), mlp.choice.pre_scale
            if mlp.gate is None:
                out = mlp.activation(up * scale)
            elif mlp.choice.sparsity:  # where a gate is cut depends on all of them
                out = mlp.activation(mlp.sparse(mlp.pre(x))[:, chosen]) * up
            else:
                out = mlp.activation(rows(mlp.gate, x) * scale) * up
        ids = part[:, None].expand(-1, len(neurons))
        values, tokens = torch.cat([values, out]), torch.cat([tokens, ids])
        values, order = values.topk(min(k, len(values)), dim=0)
        tokens = tokens.gather(0, order)
    return tokens.T.tolist()


@dataclass(frozen=True)
class Passage:
    """Where a neuron fired: the activation, the text around, and which token it was."""

    activation: float
    before: str
    token: str
    after: str
    text: int
    position: int


@torch.no_grad()
def passages(traces: Iterable[Trace], layer: int, index: int, k: int = 10, around: int = 12) -> list[Passage]:
    """The `k` positions of the user's own texts at which a neuron's output was largest in size."""
    best: list[tuple[float, int, int, Passage]] = []
    for number, trace in enumerate(traces):
        _neuron(trace.transformer, layer, index)
        fired: Tensor = trace.forward.get(f"blocks.{layer % trace.config.n_layers}.mlp.post")[0, :, index].float()
        tokens = trace.tokens
        for at in fired.abs().topk(min(k, len(fired))).indices.tolist():
            passage = Passage(
                float(fired[at]),
                "".join(tokens[max(0, at - around) : at]),
                tokens[at],
                "".join(tokens[at + 1 : at + 1 + around]),
                number,
                at,
            )
            best.append((abs(passage.activation), -number, -at, passage))
        best = heapq.nlargest(k, best)
    return [passage for *_, passage in best]
