"""What excites every feed-forward neuron: over many short texts, where each one's output is largest in size.

One pass over the texts serves all neurons of all layers; for each, one place is kept of each text. It can be read while
it goes on. `neurons.passages` is the same for one neuron of texts that were traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from glassformer.model import Transformer
    from glassformer.model.sites import Where

TOKENS = 48
"""Tokens of a text that are read."""
_ROWS = 8


@dataclass
class Exciting:
    """The largest outputs of every neuron so far.

    Attributes:
        ids: the texts' tokens.
        keep: places kept of each neuron.
        done: texts read so far.
        values, texts, places: by layer, (neuron, rank): the output with its sign, the text's number, the token's place.
    """

    ids: list[list[int]]
    keep: int = 5
    done: int = 0
    values: dict[int, Tensor] = field(default_factory=dict)
    texts: dict[int, Tensor] = field(default_factory=dict)
    places: dict[int, Tensor] = field(default_factory=dict)

    def of(self, layer: int, neuron: int) -> list[tuple[float, int, int]]:
        """Output, text and place of the largest of one neuron, the largest first."""
        if layer not in self.values:
            return []
        found = zip(*(held[layer][neuron].tolist() for held in (self.values, self.texts, self.places)), strict=True)
        return [(value, text, place) for value, text, place in found if text >= 0]

    @torch.no_grad()
    def read(self, transformer: Transformer, check: Callable[[], None] = lambda: None) -> None:
        """Go through the texts that are left; `check` is called between a few of them and may raise."""
        while self.done < len(self.ids):
            check()
            rows = self.ids[self.done : self.done + _ROWS]
            length = max(map(len, rows))
            tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=transformer.device)
            outside = torch.tensor([[i >= len(row) for i in range(length)] for row in rows], device=tokens.device)
            posts = _Posts(transformer)
            transformer(tokens, tap=posts, last=True)
            for layer, post in posts.seen.items():
                self._add(layer, post.masked_fill(outside[..., None], 0.0))
            self.done += len(rows)

    def _add(self, layer: int, post: Tensor) -> None:
        """Take in the outputs (text, token, neuron) of one layer."""
        places = post.abs().argmax(1)
        values = post.gather(1, places[:, None])[:, 0].float().cpu().T
        numbers = torch.arange(self.done, self.done + len(post)).expand(values.shape)
        held = self.values.get(layer, torch.zeros(len(values), 0))
        nobody = torch.zeros(len(values), 0, dtype=torch.long)
        values = torch.cat([held, values], 1)
        numbers = torch.cat([self.texts.get(layer, nobody), numbers], 1)
        places = torch.cat([self.places.get(layer, nobody), places.cpu().T], 1)
        order = values.abs().topk(min(self.keep, values.shape[1]), dim=1).indices
        # the three are replaced one by one: who reads meanwhile sees old and new of one neuron at worst
        self.values[layer], self.texts[layer], self.places[layer] = (
            x.gather(1, order) for x in (values, numbers, places)
        )


class _Posts:
    """Keeps every layer's neurons' outputs."""

    def __init__(self, transformer: Transformer) -> None:
        layers = transformer.config.layers
        self.names = {f"blocks.{i}.mlp.post": i for i, one in enumerate(layers) if one.feed_forward is not None}
        self.reads, self.writes = frozenset(self.names), frozenset[str]()
        self.seen: dict[int, Tensor] = {}

    def __call__(self, site: str, x: Tensor, where: Where) -> None:
        self.seen[self.names[site]] = x


def shortened(ids: Sequence[int]) -> list[int]:
    """The beginning of a text that is read."""
    return list(ids[:TOKENS])
