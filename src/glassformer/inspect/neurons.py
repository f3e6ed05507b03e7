"""Feed-forward neurons: which pushed a prediction, what each writes, what excites it, where it fires.

A neuron's output scales one column of the down projection; with the norms' divisors as run, its share
of the explained number is exact. What it writes is that column read through the unembedding; what
excites it is its input weights read against the embedding: the neuron as its weights alone show it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glassformer.errors import SiteError
from glassformer.inspect.heads_out import gain, through_post
from glassformer.inspect.receipts import target

if TYPE_CHECKING:
    from glassformer.inspect.trace import Trace
    from glassformer.model import Transformer


@dataclass(frozen=True)
class Neurons:
    """The neurons behind one prediction.

    Attributes:
        token, position, unit, value: the number explained.
        all: share of the number that all feed-forward layers have together (biases apart).
        neurons: the largest, each with layer, index, activation, contribution, and the tokens that it raises.
    """

    token: str
    position: int
    unit: str
    value: float
    all: float
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
    """The `k` neurons with the largest shares of a prediction, of either sign; `words` tokens for each."""
    goal = target(trace, token, against, position)
    at = slice(goal.position, goal.position + 1)
    shares, activations = [], []
    for layer in range(trace.config.n_layers):
        post = trace.forward.get(f"blocks.{layer}.mlp.post", at)[0, 0]
        columns = trace.forward.block(layer).mlp.down.weight.T
        columns = through_post(trace.forward, layer, "mlp", columns[None, None], at)[0, 0]
        shares.append(goal.share(columns) * post.double())
        activations.append(post)
    grid, fired = torch.stack(shares), torch.stack(activations)
    d_ff = grid.shape[1]
    chosen = grid.abs().flatten().topk(min(k, grid.numel())).indices.tolist()
    return Neurons(
        token=trace.token_text(goal.way.token),
        position=goal.position,
        unit=goal.way.unit,
        value=goal.value,
        all=float(grid.sum()),
        neurons=[
            {
                "layer": i // d_ff,
                "index": i % d_ff,
                "activation": float(fired.flatten()[i]),
                "contribution": float(grid.flatten()[i]),
                "writes": [trace.token_text(t) for t in writes(trace.transformer, i // d_ff, i % d_ff, words)[0]],
            }
            for i in chosen
        ],
    )


def _neuron(transformer: Transformer, layer: int, index: int) -> Any:
    config = transformer.config
    if not -config.n_layers <= layer < config.n_layers:
        raise SiteError(f"There is no layer {layer}: the model has {config.n_layers}, 0 to {config.n_layers - 1}.")
    if not 0 <= index < config.feed_forward.d_ff:
        d_ff = config.feed_forward.d_ff
        raise SiteError(f"There is no neuron {index}: each layer has {d_ff}, 0 to {d_ff - 1}.")
    return transformer.blocks[layer]


@torch.no_grad()
def writes(transformer: Transformer, layer: int, index: int, k: int = 10) -> tuple[list[int], list[int]]:
    """The tokens whose logits a positive output of the neuron raises most, and lowers most."""
    block = _neuron(transformer, layer, index)
    column = block.mlp.down.weight[:, index]
    if block.ln2_post is not None:
        column = column * gain(block.ln2_post)
    pushed = transformer.unembedding @ (column * gain(transformer.final))
    return pushed.topk(k).indices.tolist(), (-pushed).topk(k).indices.tolist()


@torch.no_grad()
def excited_by(transformer: Transformer, layer: int, index: int, k: int = 10) -> list[int]:
    """The tokens whose embeddings, through the layer's norm, drive the neuron's activation most."""
    block = _neuron(transformer, layer, index)
    mlp = block.mlp
    best: list[tuple[float, int]] = []
    for low in range(0, transformer.config.vocab_size, 8192):
        e = transformer.embed.weight[low : low + 8192]
        x = block.ln2(e if transformer.config.embedding_scale is None else e * transformer.config.embedding_scale)
        up = x @ mlp.up.weight[index] + (0 if mlp.up.bias is None else mlp.up.bias[index])
        if mlp.gate is None:
            out = mlp.activation(up)
        else:
            out = (
                mlp.activation(x @ mlp.gate.weight[index] + (0 if mlp.gate.bias is None else mlp.gate.bias[index])) * up
            )
        top = out.topk(min(k, len(out)))
        pairs = ((float(v), low + int(i)) for v, i in zip(top.values, top.indices, strict=True))
        best = heapq.nlargest(k, [*best, *pairs])
    return [i for _, i in best]


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
