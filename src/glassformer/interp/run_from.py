"""Running the rest of a forward from the middle, and one position of it in many variants at once.

What is upstream of a change does not change, and what stands before a position does not see it: so an
ablation at a layer restarts there, and one at a position runs that position alone, against the keys
and values that the trace kept. It runs the model's own blocks; it knows nothing of why.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.interp.recording import Recording
from glassformer.interp.taps import Bound
from glassformer.model import Cache, Transformer
from glassformer.model.cache import State
from glassformer.model.choices import recurrence_of, softmax_of
from glassformer.model.sites import Looking, Tap, Where


def finish(
    transformer: Transformer, x: Float[Tensor, "batch query wide"], where: Where, tap: Tap | None = None
) -> Float[Tensor, "batch query d_model"]:
    """The final norm, under the tap."""
    view = None if tap is None else Looking(tap, transformer.config, where).top
    return transformer.normed(x, view)


class Context(Cache):
    """The keys and values of a traced text's first `length` tokens, shared by every row that continues it.

    Nothing is copied: rows see the trace's tensors and add their own new keys behind them.
    """

    def __init__(self, forward: Recording, length: int, batch: int = 1) -> None:
        if forward.positions.shape[0] != 1:
            raise UsageError("Only a trace of one text can be continued; take one of the batch: trace.row(0).")
        _refuse_rows(forward)
        config = forward.config
        self.length = length
        self.mask = None
        self.whole = forward.length
        self._batch = batch
        self._capacity = config.context
        self.device = forward.positions.device
        self._forward = forward
        self._states: dict[tuple[int, int], State] = {}
        self.keys, self.values, self.indexed = [], [], {}
        at = slice(0, length)
        for layer, choice in enumerate(config.layers):
            mixer = softmax_of(choice.mixer)
            if mixer is None or mixer.keys_from is not None:
                self.keys.append(None)
                self.values.append(None)
                continue
            part = forward.attention(layer)
            if f"blocks.{layer}.attn.index_k" in forward.recorded:
                self.indexed[layer] = forward.recorded[f"blocks.{layer}.attn.index_k"][:, :length]
            k = forward.get(f"blocks.{layer}.attn.{'rot_k' if part.rotates else 'k'}", at)
            v = forward.get(f"blocks.{layer}.attn.v", at)
            self.keys.append(k.transpose(1, 2))
            self.values.append(v.transpose(1, 2))

    @property
    def batch(self) -> int:
        return self._batch

    @property
    def capacity(self) -> int:
        return self._capacity

    def cut(self, length: int, batch: int) -> Context:
        """The first `length` tokens of it, for another number of rows; shares the memory."""
        out = Context.__new__(Context)
        out.length, out.mask, out._batch, out._capacity = length, None, batch, self._capacity
        out.whole = self.whole
        out.device, out._forward, out._states = self.device, self._forward, self._states
        out.keys = [None if k is None else k[:, :, :length] for k in self.keys]
        out.values = [None if v is None else v[:, :, :length] for v in self.values]
        out.indexed = {layer: k[:, :length] for layer, k in self.indexed.items()}
        return out

    @classmethod
    def beside(cls, contexts: Sequence[Context]) -> Context:
        """Several texts' first tokens, as many of each, as the rows of one context, a copy."""
        out = contexts[0].cut(contexts[0].length, len(contexts))
        for name in ("keys", "values"):
            each = zip(*(getattr(c, name) for c in contexts), strict=True)
            setattr(out, name, [None if rows[0] is None else torch.cat(rows) for rows in each])
        out.indexed = {layer: torch.cat([c.indexed[layer] for c in contexts]) for layer in out.indexed}
        out._states = {}
        for layer, choice in enumerate(out._forward.config.layers):
            if out.length and recurrence_of(choice.mixer) is not None:
                states = [c.state(layer) for c in contexts]
                joined = {name: torch.cat([s[name] for s in states if s is not None]) for name in states[0] or {}}
                out._states[layer, out.length] = joined
        return out

    def store_index(self, layer: int, k: Tensor) -> Tensor:
        """The shared keys of an index with these new ones behind them; nothing is kept."""
        return torch.cat([self.indexed[layer].expand(k.shape[0], -1, -1), k], dim=1)

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The shared keys and values with these new ones behind them; nothing is kept."""
        rows = k.shape[0]
        old_k, old_v = self.keys[layer], self.values[layer]
        assert old_k is not None
        assert old_v is not None
        old_k, old_v = old_k.expand(rows, -1, -1, -1), old_v.expand(rows, -1, -1, -1)
        return torch.cat([old_k, k.transpose(1, 2)], dim=2), torch.cat([old_v, v.transpose(1, 2)], dim=2)

    def state(self, layer: int) -> State | None:
        """A recurrence's state after the first `length` tokens, one for all rows; worked out once."""
        if self.length == 0:
            return None
        key = (layer, self.length)
        if key not in self._states:
            self._states[key] = self._forward.state(layer, self.length)
        return self._states[key]

    def hold(self, layer: int, state: State) -> None:
        """Nothing is kept."""

    def advance(self, count: int) -> None:
        """Nothing was kept, so nothing moves."""


class Sharing:
    """Keys and values that rows carry from the layers that give them to those that use them, run layer by layer.

    Args:
        forward: the trace that the rows are variants of, in slots `start` to `end`; a row that enters after a layer
            has that layer's keys and values as traced.
    """

    def __init__(self, forward: Recording, start: int, end: int) -> None:
        self._forward, self._start, self._end = forward, start, end
        self._new: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def given(self, layer: int, rows: slice) -> dict[int, tuple[Tensor, Tensor]]:
        """What a layer takes from earlier ones, for some of the rows."""
        mixer = softmax_of(self._forward.config.layers[layer].mixer)
        if mixer is None or mixer.keys_from is None:
            return {}
        donor = mixer.keys_from
        traced = self._forward.keys_and_values(donor, slice(0, self._end))
        held = self._new.get(donor, [])
        found = []
        for side, whole in enumerate(traced):
            new = torch.cat([pair[side] for pair in held])[rows] if held else whole[:0, :, self._start :]
            rest = rows.stop - rows.start - len(new)
            new = torch.cat([new, whole[:, :, self._start :].expand(rest, -1, -1, -1)])
            old = whole[:, :, : self._start].expand(len(new), -1, -1, -1)
            found.append(torch.cat([old, new], dim=2))
        return {donor: (found[0], found[1])}

    def take(self, layer: int, shared: dict[int, tuple[Tensor, Tensor]]) -> None:
        """Keep what a layer gave for the next rows in order."""
        if layer in shared:
            keys, values = shared[layer]
            self._new.setdefault(layer, []).append((keys[:, :, self._start :], values[:, :, self._start :]))


def _refuse_rows(forward: Recording) -> None:
    """A tap that means rows of the traced batch would mean others here."""
    if forward.edit is not None and any(not one.rows.everything for one in forward.edit.actions):
        raise UsageError("This trace was made under a tap that means rows of its batch; trace that text alone.")


def tap_of(*taps: Bound | None) -> Bound | None:
    """Bound taps one after the other as one; None when there is none."""
    there = [tap for tap in taps if tap is not None]
    return Bound([one for tap in there for one in tap.actions]) if there else None
