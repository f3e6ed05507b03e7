"""What an engine needs of whatever computes: tokens in at slots and positions, logits out.

`NativeModel` is one such runner; `EagerRunner` is the other, through the Transformer itself: it needs no compiler, is
exact, and works on any device. Neither knows requests, sampling or text.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from glassformer.model.cache import Cache
from glassformer.model.config import Config
from glassformer.model.sites import Tap
from glassformer.model.transformer import Transformer

# Tokens that texts side by side may grow by before they are laid out anew; and how much longer than the shortest of
# them a text may be, beside twice its length: what is shorter is padded.
GROWTH, SPREAD = 64, 256


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

    def prefix(self, slot: int, length: int) -> bytes:
        """What the first tokens left in a slot."""
        ...

    def put_prefix(self, slot: int, length: int, kept: bytes) -> None:
        """A slot begins with tokens that `prefix` gave, of a runner of the same model and `kind`."""
        ...

    @property
    def kind(self) -> str:
        """What must be the same, the weights aside, for a prefix to mean the same."""
        ...


class EagerRunner:
    """A `Transformer` as a runner, with a tap's edits if any.

    Where several slots take one token each, they take it in one forward: their texts then lie side by side in one
    cache, until another set of slots goes on.
    """

    def __init__(
        self,
        transformer: Transformer,
        *,
        slots: int = 1,
        capacity: int | None = None,
        tap: Tap | None = None,
        cache_bits: int | None = None,
    ) -> None:
        self.transformer, self.slots, self.tap, self.cache_bits = transformer, slots, tap, cache_bits
        self.config = transformer.config
        self.capacity = self.config.context if capacity is None else capacity
        self.precision = str(transformer.dtype).removeprefix("torch.")
        self._caches: dict[int, Cache] = {}
        self._joined: list[tuple[list[int], Cache]] = []  # slots whose texts lie side by side, and where

    def forward(
        self, tokens: Sequence[int], slots: Sequence[int], positions: Sequence[int], out: Sequence[int] | None = None
    ) -> Tensor:
        wanted = list(range(len(tokens)) if out is None else out)
        logits = torch.empty(len(wanted), self.config.vocab_size)
        starts = [
            i for i in range(len(tokens)) if not i or slots[i] != slots[i - 1] or positions[i] != positions[i - 1] + 1
        ]
        pieces = list(zip(starts, [*starts[1:], len(tokens)], strict=True))
        for group in self._groups(pieces, slots, positions):
            found = self._run_together([(tokens[at], slots[at], positions[at]) for at in group])
            for row, index in enumerate(wanted):
                if index in group:
                    logits[row] = found[group.index(index)]
            pieces = [piece for piece in pieces if piece[0] not in group]
        for at, end in pieces:
            rows = [i for i, row in enumerate(wanted) if at <= row < end]
            result = self._run(tokens[at:end], slots[at], positions[at], [wanted[i] - at for i in rows])
            if rows:
                logits[rows] = result
        return logits

    def _groups(self, pieces: list[tuple[int, int]], slots: Sequence[int], positions: Sequence[int]) -> list[list[int]]:
        """The places of single tokens that go through the model together: two or more, of texts of like lengths."""
        if self.tap is not None or len({slots[at] for at, _ in pieces}) < len(pieces):
            return []
        groups: list[list[int]] = [[]]
        for at in sorted((at for at, end in pieces if end == at + 1 and positions[at] > 0), key=positions.__getitem__):
            if groups[-1] and positions[at] > 2 * positions[groups[-1][0]] + SPREAD:
                groups.append([])
            groups[-1].append(at)
        return [sorted(group) for group in groups if len(group) > 1]

    @torch.inference_mode()  # caches are made in this mode, and tensors made in it may be written in no other
    def copy_prefix(self, source: int, target: int, length: int) -> None:
        mine, theirs = self._cache(target, length), self._cache(source, length)
        mine.copy_from(theirs, length)

    @torch.inference_mode()
    def prefix(self, slot: int, length: int) -> bytes:
        return self._cache(slot, length).prefix(length)

    @torch.inference_mode()
    def put_prefix(self, slot: int, length: int, kept: bytes) -> None:
        self._cache(slot, length).put_prefix(length, kept)

    @property
    def kind(self) -> str:
        return f"torch {torch.__version__} {self.transformer.device.type} {self.precision} {self.cache_bits}"

    @torch.inference_mode()
    def _run(self, tokens: Sequence[int], slot: int, start: int, rows: list[int]) -> Tensor:
        cache = self._cache(slot, start + len(tokens))
        cache.truncate(start)
        ids = torch.tensor([list(tokens)], device=self.transformer.device)
        last = rows == [len(tokens) - 1]
        logits = self.transformer(ids, cache, tap=self.tap, last=last or not rows)
        return logits[0].float().cpu() if last else logits[0, rows].float().cpu()

    @torch.inference_mode()
    def _run_together(self, each: list[tuple[int, int, int]]) -> Tensor:
        """Logits (slot, vocab) after one token of each slot: (token, slot, position)."""
        cache = self._side_by_side([slot for _, slot, _ in each], [position for *_, position in each])
        ids = torch.tensor([[token] for token, *_ in each], device=self.transformer.device)
        return self.transformer(ids, cache, last=True)[:, 0].float().cpu()

    def _side_by_side(self, slots: list[int], lengths: list[int]) -> Cache:
        """One cache with the first tokens of these slots, so many of each, and room for another."""
        for joined, cache in self._joined:
            if joined == slots and cache.lengths() == lengths and cache.length < cache.capacity:
                return cache
        rows = [self._cache(slot, length + 1) for slot, length in zip(slots, lengths, strict=True)]
        for row, length in zip(rows, lengths, strict=True):
            row.truncate(length)
        cache = Cache.together(rows, self.config, max(lengths) + GROWTH)
        self._joined.append((slots, cache))
        return cache

    def _cache(self, slot: int, length: int) -> Cache:
        """The slot's own cache with room for `length` tokens; a text that lay beside others is taken from there."""
        for group in [group for group in self._joined if slot in group[0]]:
            self._joined.remove(group)
            slots, joined = group
            joined.give_back([self._roomy(s, has) for s, has in zip(slots, joined.lengths(), strict=True)])
        return self._roomy(slot, length)

    def _roomy(self, slot: int, length: int) -> Cache:
        """The slot's own cache: it grows by doubling, up to the capacity."""
        cache = self._caches.get(slot)
        if cache is None or cache.capacity < length:
            capacity = min(self.capacity, max(256, 2 * length))
            if cache is None:
                transformer = self.transformer
                cache = Cache(self.config, 1, capacity, transformer.dtype, transformer.device, self.cache_bits)
            else:
                cache = cache.expand(1, capacity)
            self._caches[slot] = cache
        return cache


def work_alone() -> None:
    """This thread's torch operations use no other threads from now on: they are small, and torch's threads would go on
    spinning where the native path's are wanted. Other threads keep their number."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    # That also set what threads to come begin with: set it back, from a thread that does not matter.
    restore = threading.Thread(target=torch.set_num_threads, args=(number,))
    restore.start()
    restore.join()
