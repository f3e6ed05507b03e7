"""What an engine needs of whatever computes: tokens in at slots and positions, logits out.

`NativeModel` is one such runner; `EagerRunner` is the other, through the Transformer itself: it needs no compiler, is
exact, and works on any device. Neither knows requests, sampling or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from glassformer.model.cache import Cache
from glassformer.model.config import Config
from glassformer.model.sites import Tap
from glassformer.model.transformer import Transformer


class Runner(Protocol):
    """Slots of key-value cache, and the forward pass that fills them."""

    config: Config
    slots: int
    capacity: int
    precision: str

    def forward(
        self, tokens: Sequence[int], slots: Sequence[int], positions: Sequence[int], out: Sequence[int] | None = None
    ) -> Tensor:
        """Tokens enter at (slot, position); float32 logits (len(out), vocab) after those in `out`."""
        ...

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Slot `target` begins with the first tokens of slot `source`."""
        ...


class EagerRunner:
    """A `Transformer` as a runner, with a tap's edits if any: one forward per slot, whatever shares the step."""

    def __init__(
        self, transformer: Transformer, *, slots: int = 1, capacity: int | None = None, tap: Tap | None = None
    ) -> None:
        self.transformer, self.slots, self.tap = transformer, slots, tap
        self.config = transformer.config
        self.capacity = self.config.context if capacity is None else capacity
        self.precision = str(transformer.dtype).removeprefix("torch.")
        self._caches: dict[int, Cache] = {}

    def forward(
        self, tokens: Sequence[int], slots: Sequence[int], positions: Sequence[int], out: Sequence[int] | None = None
    ) -> Tensor:
        wanted = list(range(len(tokens)) if out is None else out)
        logits = torch.empty(len(wanted), self.config.vocab_size)
        at = 0
        while at < len(tokens):
            end = at + 1
            while end < len(tokens) and slots[end] == slots[at] and positions[end] == positions[end - 1] + 1:
                end += 1
            rows = [i for i, row in enumerate(wanted) if at <= row < end]
            result = self._run(tokens[at:end], slots[at], positions[at], [wanted[i] - at for i in rows])
            if rows:
                logits[rows] = result
            at = end
        return logits

    @torch.inference_mode()  # caches are made in this mode, and tensors made in it may be written in no other
    def copy_prefix(self, source: int, target: int, length: int) -> None:
        mine, theirs = self._cache(target, length), self._cache(source, length)
        mine.copy_from(theirs, length)

    @torch.inference_mode()
    def _run(self, tokens: Sequence[int], slot: int, start: int, rows: list[int]) -> Tensor:
        cache = self._cache(slot, start + len(tokens))
        cache.truncate(start)
        ids = torch.tensor([list(tokens)], device=self.transformer.device)
        last = rows == [len(tokens) - 1]
        logits = self.transformer(ids, cache, tap=self.tap, last=last or not rows)
        return logits[0].float().cpu() if last else logits[0, rows].float().cpu()

    def _cache(self, slot: int, length: int) -> Cache:
        """The slot's cache with room for `length` tokens: it grows by doubling, up to the capacity."""
        cache = self._caches.get(slot)
        if cache is None or cache.capacity < length:
            room = min(self.capacity, max(256, 2 * length))
            if cache is None:
                cache = Cache(self.config, 1, room, self.transformer.dtype, self.transformer.device)
            else:
                cache = cache.expand(1, room)
            self._caches[slot] = cache
        return cache
