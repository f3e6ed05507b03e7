"""Where a part goes in a stream that is normed after every sum: the matrix from what it adds to a later stream.

Such a norm (the first GPT's, arXiv:1706.03762) takes stream and part together. With its divisor as run it is linear, so
what a part added is still found in every later stream, multiplied by one matrix a norm; a norm's own bias is a part of
its own. Knows one position of one trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from glassformer.interp.recording import Recording


@dataclass
class Ways:
    """The ways of one position to the stream that enters a layer, float64.

    Attributes:
        begin: (d_model, d_model), of the embedding.
        parts: by layer and part (mixer 1, feed-forward 2), of what it adds.
        biases: by layer and part, what the bias of the norm after it comes to.
    """

    begin: Float[Tensor, "d_model d_model"]
    parts: dict[tuple[int, int], Float[Tensor, "d_model d_model"]]
    biases: dict[tuple[int, int], Float[Tensor, " d_model"]]


def ways(forward: Recording, position: int, layers: int) -> Ways:
    """The ways of a position of one text to the stream that enters layer `layers`."""
    at = slice(position, position + 1)
    joins = {name: (added[0, 0].double(), before[0, 0].double()) for name, added, before, _ in forward.joins(at)}
    way = torch.eye(forward.config.d_model, dtype=torch.float64, device=forward.transformer.device)
    found = Ways(way, {}, {})
    for layer in reversed(range(layers)):
        block, choice = forward.block(layer), forward.config.layers[layer]
        way = block.leaving(way).double()
        for number, part in ((2, choice.feed_forward), (1, choice.mixer)):
            if part is None:
                continue
            keep = choice.stream_scale(number)
            norm = (block.ln1 if number == 1 else block.ln2) if block.after_sum else None
            if norm is not None:
                added, before = joins[f"blocks.{layer}.{part.prefix}.out"]
                if norm.bias is not None:
                    found.biases[layer, number] = way @ norm.bias.double()
                way = way / norm.scale(keep * before + added)
                way = way if norm.gain is None else way * norm.gain.double()
                way = way - way.mean(1, keepdim=True) if norm.centred else way
            found.parts[layer, number] = way
            way = way * keep
    found.begin = way
    return found


def norm_biases(forward: Recording, layer: int) -> Iterator[tuple[str, Float[Tensor, "1 d_model"]]]:
    """The biases of a layer's norms after the sum: the place of the stream behind each, and what it adds there."""
    block = forward.block(layer)
    if not block.after_sum:
        return
    places = ("resid_mid", "resid_post") if len(block.choice.parts) > 1 else ("resid_post",)
    norms = [norm for norm in (block.ln1, block.ln2) if norm is not None]
    for place, norm in zip(places, norms, strict=True):
        if norm.bias is not None:
            bias = norm.bias.double()[None]
            yield place, bias if place == "resid_mid" else block.leaving(bias)
