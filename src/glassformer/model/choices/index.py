"""Which keys a query attends to, chosen by a small scorer beside the attention (DeepSeek 3.2), as data."""

from __future__ import annotations

from dataclasses import dataclass

from glassformer.model.choices.common import Component, positive


@dataclass(frozen=True)
class Index:
    """A few small heads score every earlier position; each query attends to the `top` best of them alone.

    A position's score is the sum over heads of a weight, which the query's input gives, times relu(q · k); heads share
    their keys, which are normed, and queries are read from the latent of the attention's queries. Of equal scores the
    earlier position is chosen.

    Args:
        n_heads: heads that score.
        d_head: dimensions of their queries and keys; the first of them are rotated as those of the attention are.
        top: positions that a query attends to at most.
        eps: of the layer norm of the keys.
    """

    n_heads: int
    d_head: int
    top: int
    eps: float = 1e-6

    def __post_init__(self) -> None:
        positive("index", n_heads=self.n_heads, d_head=self.d_head, top=self.top)

    def components(self, d_model: int, q_rank: int) -> dict[str, Component]:
        """Its parameters by key within the attention."""
        return {
            "index_q.weight": Component((self.n_heads * self.d_head, q_rank), "query"),
            "index_k.weight": Component((self.d_head, d_model), "key"),
            "index_norm.weight": Component((self.d_head,), "norms"),
            "index_norm.bias": Component((self.d_head,), "norms"),
            "index_weights.weight": Component((self.n_heads, d_model), "query"),
        }
