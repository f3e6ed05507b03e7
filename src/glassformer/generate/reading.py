"""Scores of every next token after a text, at all its places, and after what may continue it.

Two readers give them: the transformer itself, with its edits, and the native engine where that stands for a transformer
that nothing has asked for yet. Neither knows text or models of the facade.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from glassformer.errors import ShapeError
from glassformer.model.cache import Cache
from glassformer.model.config import Config
from glassformer.model.transformer import Transformer

if TYPE_CHECKING:
    from glassformer.generate.native_model import NativeModel
    from glassformer.model.sites import Tap

# Rows × slots of one expanded cache: bounds its memory.
_MAX_SLOTS = 65_536


class Reader(Protocol):
    """What reads texts."""

    config: Config
    precision: str
    capacity: int

    def read(self, ids: Sequence[int]) -> Tensor:
        """Scores (vocab,) of the token after a text."""
        ...

    def after(self, ids: Sequence[int], paths: list[list[int]]) -> Tensor:
        """(path, vocab) float32 log-probabilities of the token after a text and each of several paths.

        Raises:
            ShapeError: for an empty path.
        """
        ...

    def pieces(self, ids: Sequence[int], rows: int) -> Iterator[Tensor]:
        """Scores of the token after every place of a text, so many places at a time: (≤ rows, vocab)."""
        ...


class EagerReader:
    """The transformer, with what a tap puts in."""

    def __init__(self, transformer: Transformer, tap: Tap | None = None) -> None:
        self.transformer, self.tap, self.config = transformer, tap, transformer.config
        self.precision = str(transformer.dtype).removeprefix("torch.")
        self.capacity = self.config.context
        self._read: tuple[list[int], Cache] | None = None

    def read(self, ids: Sequence[int]) -> Tensor:
        cache = self._cache(len(ids))
        logits = self._forward([list(ids)], cache, last=True)[0, -1]
        self._finish()
        self._read = list(ids), cache
        return logits

    def after(self, ids: Sequence[int], paths: list[list[int]]) -> Tensor:
        by_length = _by_length(paths)
        if self._read is None or self._read[0] != list(ids):
            self.read(ids)
        assert self._read is not None
        prompt = self._read[1]
        out = torch.empty(len(paths), self.config.vocab_size)
        for length, members in by_length.items():
            slots = prompt.length + length
            rows = max(1, _MAX_SLOTS // slots)
            for at in range(0, len(members), rows):
                part = members[at : at + rows]
                logits = self._forward([paths[i] for i in part], prompt.expand(len(part), slots), last=True)[:, -1]
                out[part] = torch.log_softmax(logits.float(), dim=-1).cpu()
        return out

    def pieces(self, ids: Sequence[int], rows: int) -> Iterator[Tensor]:
        cache = None if rows >= len(ids) else self._cache(len(ids))
        for start in range(0, len(ids), rows):
            yield self._forward([list(ids[start : start + rows])], cache, last=False)[0]
        self._finish()

    def _finish(self) -> None:
        """That was the whole text: a tap that means a later place is refused."""
        getattr(self.tap, "finish", lambda: None)()

    def _cache(self, capacity: int) -> Cache:
        return Cache(self.config, 1, capacity, self.transformer.dtype, self.transformer.device)

    @torch.inference_mode()
    def _forward(self, rows: list[list[int]], cache: Cache | None, *, last: bool) -> Tensor:
        tokens = torch.tensor(rows, dtype=torch.long, device=self.transformer.device)
        return self.transformer(tokens, cache, tap=self.tap, last=last)


@dataclass
class _Held:
    """What the first slot holds, and which others begin with all of it."""

    ids: list[int]
    copied: set[int]


class NativeReader:
    """A native model of two slots or more. May be used from several threads."""

    def __init__(self, model: NativeModel) -> None:
        self.model, self.config = model, model.config
        self.precision, self.capacity = model.precision, model.capacity
        self._held = _Held([], set())
        self._lock = threading.Lock()

    def read(self, ids: Sequence[int]) -> Tensor:
        with self._lock:
            return self._scores(ids, len(ids) - 1)[0]

    def after(self, ids: Sequence[int], paths: list[list[int]]) -> Tensor:
        _by_length(paths)
        out, others = torch.empty(len(paths), self.config.vocab_size), self.model.slots - 1
        with self._lock:
            if self._held.ids != list(ids):
                self._scores(ids, len(ids) - 1)
            for at in range(0, len(paths), others):
                some = list(enumerate(paths[at : at + others], 1))
                for slot, _ in some:
                    if slot not in self._held.copied:
                        self.model.copy_prefix(0, slot, len(ids))
                        self._held.copied.add(slot)
                ends = torch.tensor([len(path) for _, path in some]).cumsum(0) - 1
                logits = self.model.forward(
                    [token for _, path in some for token in path],
                    [slot for slot, path in some for _ in path],
                    [len(ids) + i for _, path in some for i in range(len(path))],
                    ends.tolist(),
                )
                out[at : at + len(some)] = torch.log_softmax(logits, dim=-1)
        return out

    def pieces(self, ids: Sequence[int], rows: int) -> Iterator[Tensor]:
        for start in range(0, len(ids), rows):
            with self._lock:
                found = self._scores(ids[: start + rows], start)
            yield found

    def logits_at(self, tokens: Tensor, rows: Tensor, places: Tensor) -> Iterator[Tensor]:
        """Scores of the tokens after these places of some texts (row, query), text by text."""
        for row in range(len(tokens)):
            wanted = places[rows == row].tolist()
            if wanted:
                ids = tokens[row, : wanted[-1] + 1].tolist()
                with self._lock:
                    self._held = _Held([], set())
                    found = self.model.forward(ids, [0] * len(ids), range(len(ids)), wanted)
                yield found

    def _scores(self, ids: Sequence[int], first: int) -> Tensor:
        """Scores after the places of a text from `first` on; what the slot holds of it already is not read again."""
        held, n = self._held.ids, 0
        while n < min(first, len(held)) and held[n] == ids[n]:
            n += 1
        self._held = _Held([], set())  # if this fails, nothing is held
        count = len(ids) - n
        logits = self.model.forward(ids[n:], [0] * count, range(n, len(ids)), range(first - n, count))
        self._held = _Held(list(ids), set())
        return logits


def _by_length(paths: list[list[int]]) -> dict[int, list[int]]:
    """The numbers of paths of each length."""
    if not paths or not all(paths):
        raise ShapeError("Continuations need paths of at least one token.")
    found: dict[int, list[int]] = {}
    for i, path in enumerate(paths):
        found.setdefault(len(path), []).append(i)
    return found
