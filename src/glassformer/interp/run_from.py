"""Running the rest of a forward from the middle, and one position of it in many variants at once.

What is upstream of a change does not change, and what stands before a position does not see it: so an
ablation at a layer restarts there, and one at a position runs that position alone, against the keys
and values that the trace kept. It runs the model's own blocks; it knows nothing of why.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.interp.recording import Forward
from glassformer.interp.taps import Bound
from glassformer.model import Cache, Transformer
from glassformer.model.attention import Visible
from glassformer.model.sites import Looking, Tap, View, Where


def run_blocks(
    transformer: Transformer,
    x: Float[Tensor, "batch query d_model"],
    positions: Int[Tensor, "batch query"],
    *,
    start: int = 0,
    layers: range | None = None,
    keys_mask: Bool[Tensor, "batch key"] | None = None,
    cache: Cache | None = None,
    tap: Tap | None = None,
) -> Float[Tensor, "batch query d_model"]:
    """The residual stream after `layers` (all of them by default), given it before the first of them.

    Args:
        start: key slot of the first query, where `cache` holds earlier ones.
        keys_mask: False on key slots that hold padding.
        tap: sees the sites of these layers; others it declares are not reached, which is no error here.
    """
    where = Where(positions, None if keys_mask is None else keys_mask[:, start:], start)
    looking = None if tap is None else Looking(tap, transformer.config, where)
    visible = Visible(start, keys_mask)
    for layer in layers if layers is not None else range(transformer.config.n_layers):
        view: View | None = None if looking is None else looking.at(layer)
        x = transformer.blocks[layer](x, transformer.angles(positions, layer), visible, cache, view)
    return x


def finish(
    transformer: Transformer, x: Float[Tensor, "batch query d_model"], where: Where, tap: Tap | None = None
) -> Float[Tensor, "batch query d_model"]:
    """The final norm, under the tap."""
    view = None if tap is None else Looking(tap, transformer.config, where).top
    return transformer.final(x, view, "final")


class Context(Cache):
    """The keys and values of a traced text's first `length` tokens, shared by every row that continues it.

    Nothing is copied: rows see the trace's tensors and add their own new keys behind them.
    """

    def __init__(self, forward: Forward, length: int, batch: int = 1) -> None:
        if forward.positions.shape[0] != 1:
            raise UsageError("Only a trace of one text can be continued; take one of the batch: trace.row(0).")
        _refuse_rows(forward)
        config = forward.config
        self.length = length
        self.mask = None
        self._batch = batch
        self._room = config.context
        self.keys, self.values = [], []
        at = slice(0, length)
        for layer in range(config.n_layers):
            name = f"blocks.{layer}.attn."
            k = forward.get(name + ("rot_k" if config.position.kind == "rotary" else "k"), at)
            v = forward.get(name + "v", at)
            self.keys.append(k.transpose(1, 2))
            self.values.append(v.transpose(1, 2))

    @property
    def batch(self) -> int:
        return self._batch

    @property
    def capacity(self) -> int:
        return self._room

    def cut(self, length: int, batch: int) -> Context:
        """The first `length` tokens of it, for another number of rows; shares the memory."""
        out = Context.__new__(Context)
        out.length, out.mask, out._batch, out._room = length, None, batch, self._room
        out.keys = [k[:, :, :length] for k in self.keys]
        out.values = [v[:, :, :length] for v in self.values]
        return out

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The shared keys and values with these new ones behind them; nothing is kept."""
        rows = k.shape[0]
        old_k = self.keys[layer].expand(rows, -1, -1, -1)
        old_v = self.values[layer].expand(rows, -1, -1, -1)
        return torch.cat([old_k, k.transpose(1, 2)], dim=2), torch.cat([old_v, v.transpose(1, 2)], dim=2)

    def advance(self, count: int) -> None:
        """Nothing was kept, so nothing moves."""


def _refuse_rows(forward: Forward) -> None:
    """A tap that means rows of the traced batch would mean others here."""
    if forward.edit is not None and any(not step.rows.everything for step in forward.edit.steps):
        raise UsageError("This trace was made under a tap that means rows of its batch; trace that text alone.")


def tap_of(*taps: Bound | None) -> Bound | None:
    """Bound taps one after the other as one; None when there is none."""
    there = [tap for tap in taps if tap is not None]
    return Bound([step for tap in there for step in tap.steps]) if there else None
