"""What an index found: which keys each query may attend to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glassformer.model.attention import Visible
from glassformer.model.choices import Attention, Index


@dataclass(frozen=True)
class Indexed:
    """The index's queries, keys and weights of one forward; queries are those of the forward, keys all so far.

    Args:
        choice: its design.
        q: turned queries; k: normed and turned keys; weights: of each head at each query.
    """

    choice: Index
    q: Float[Tensor, "batch query index_head d_index"]
    k: Float[Tensor, "batch key d_index"]
    weights: Float[Tensor, "batch query index_head"]

    def everything(self, keys: int) -> bool:
        """Whether there are no more keys than a query may attend to."""
        return keys <= self.choice.top

    def scores(self, q0: int, q1: int, keys: int) -> Float[Tensor, "batch query key"]:
        """The score of each of the first `keys` positions at queries q0 to q1."""
        scale = self.choice.d_head**-0.5
        products = torch.einsum("bqhd,bkd->bqhk", self.q[:, q0:q1], self.k[:, :keys]) * scale
        return torch.einsum("bqh,bqhk->bqk", self.weights[:, q0:q1], products.relu())

    def chosen(self, visible: Visible, reach: Attention, q0: int, q1: int, k0: int, k1: int) -> Bool[Tensor, "b 1 q k"]:
        """True where query q0+i attends to key k0+j; slots q0 and k0 count as in `Visible.grid`."""
        last = visible.start + q1
        if self.everything(last):
            return torch.ones((1, 1, q1 - q0, k1 - k0), dtype=torch.bool, device=self.k.device)
        scores = self.scores(q0, q1, last)
        hidden = ~visible.grid(q0, q1, 0, last, reach, scores.device)[:, 0]
        scores = scores.masked_fill(hidden, float("-inf"))
        best = scores.sort(dim=-1, descending=True, stable=True).indices[..., : self.choice.top]
        found = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
        if k1 > last:
            found = torch.nn.functional.pad(found, (0, k1 - last))
        return found[:, None, :, k0:k1]
