"""What the tokens already read left behind, so that the next token need not read them again.

Attention keeps keys and values, a recurrence keeps its state. Rows of a batch share one length;
shorter texts are padded on the left. The cache knows tensors and slots; who fills it and when is the
caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glassformer.errors import ShapeError
from glassformer.model.choices import Attention, LatentAttention, recurrence_of, softmax_of
from glassformer.model.config import Config

State = dict[str, Tensor]
# How keys and values may be kept: bits of a number, and its type.
KEPT = {8: torch.int8, 16: torch.bfloat16, 32: torch.float32}


def token_bytes(attention: Attention, bits: int) -> int:
    """Bytes of one token's keys and values in one layer, in numbers of so many bits; of 8 with their scales."""
    return attention.n_kv_heads * ((attention.d_head + attention.value_size) * bits // 8 + (8 if bits == 8 else 0))


def cache_bytes(config: Config, bits: int) -> int:
    """Bytes that one token's keys and values take in all layers, in numbers of so many bits."""
    attentions = [softmax_of(layer.mixer) for layer in config.layers]
    return sum(token_bytes(a, bits) for a in attentions if a is not None and a.keys_from is None)


class Cache:
    """Room for `capacity` tokens of `batch` texts.

    Args:
        dtype: of what attention is given, and of what is kept unless `bits` says otherwise.
        bits: of a kept key's or value's number: 8 (whole numbers, with one float32 scale for each token and head), 16
            or 32; None keeps `dtype`.

    Attributes:
        keys, values: per layer (batch, kv_head, capacity, d_head), keys already rotated; None where a layer has none.
        scales: per layer what a 1 stands for in its keys and its values, (batch, kv_head, capacity, 1), in 8 bits.
        indexed: per layer whose attention has an index, that one's keys (batch, capacity, d_index).
        states: per layer with a recurrence, its state after the last token, (batch, …) each.
        length: slots filled so far, the same for every row.
        tokens: (batch, capacity) ids, where a text that grows may have to be computed anew; else None.
        made: (batch,) how long the texts were when what is held was computed, where tokens are kept.
        mask: (batch, capacity) bool, False where a slot holds padding; None when none does.
    """

    keys: list[Tensor | None]
    values: list[Tensor | None]

    def __init__(
        self,
        config: Config,
        batch: int = 1,
        capacity: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        bits: int | None = None,
    ) -> None:
        kept = dtype if bits is None else KEPT[bits]
        capacity = config.context if capacity is None else capacity
        if batch < 1 or capacity < 1:
            raise ShapeError(f"A cache needs at least one row and one slot; got {batch} rows of {capacity}.")
        self.keys, self.values = [], []
        self.scales: dict[int, tuple[Tensor, Tensor]] = {}
        for i, layer in enumerate(config.layers):
            mixer = softmax_of(layer.mixer)
            if mixer is None or mixer.keys_from is not None:
                self.keys.append(None)
                self.values.append(None)
                continue
            shape = (batch, mixer.n_kv_heads, capacity)
            self.keys.append(torch.empty((*shape, mixer.d_head), dtype=kept, device=device))
            self.values.append(torch.empty((*shape, mixer.value_size), dtype=kept, device=device))
            if bits == 8:
                self.scales[i] = (torch.empty((*shape, 1), device=device), torch.empty((*shape, 1), device=device))
        self.indexed: dict[int, Tensor] = {
            i: torch.empty((batch, capacity, a.index.d_head), dtype=dtype, device=device)
            for i, layer in enumerate(config.layers)
            if isinstance(a := softmax_of(layer.mixer), LatentAttention) and a.index is not None
        }
        self.states: dict[int, State] = {}
        self._held: dict[int, State] = {}
        self._batch, self._capacity = batch, capacity
        self.dtype, self.device, self.bits = dtype, torch.device(device), bits
        self.recurrent = any(recurrence_of(x.mixer) is not None for x in config.layers)
        self.length = 0
        self.mask: Bool[Tensor, "batch capacity"] | None = None
        if config.turns_by_length:
            self.tokens = torch.zeros(batch, capacity, dtype=torch.long, device=device)

    tokens: Int[Tensor, "batch capacity"] | None = None
    made: Int[Tensor, " batch"] | None = None
    whole: int | None = None  # how long the texts are that this is a part of, where that is known

    @property
    def batch(self) -> int:
        """Rows."""
        return self._batch

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self._capacity

    def store(
        self, layer: int, k: Float[Tensor, "batch key kv_head d_head"], v: Float[Tensor, "batch key kv_head d_value"]
    ) -> tuple[Tensor, Tensor]:
        """Write this layer's new keys and values; returns all filled slots, (batch, kv_head, key, d_head).

        `length` moves only when the whole forward is done (`advance`), so a forward that fails
        half-way leaves the cache as it was.
        """
        keys, values = self.keys[layer], self.values[layer]
        assert keys is not None
        assert values is not None
        key_scales, value_scales = self.scales.get(layer, (None, None))
        return self._put(keys, key_scales, k.transpose(1, 2)), self._put(values, value_scales, v.transpose(1, 2))

    def _put(self, held: Tensor, scales: Tensor | None, new: Tensor) -> Tensor:
        """Write new numbers (batch, kv_head, key, number) behind those held; all of them as attention is given them."""
        end = self.length + new.shape[2]
        if scales is None:
            held[:, :, self.length : end] = new
            return held[:, :, :end].to(self.dtype)
        most = new.abs().amax(-1, keepdim=True).float()
        scales[:, :, self.length : end] = most / 127
        held[:, :, self.length : end] = (new * (127 / most.clamp(min=1e-30))).round()
        return (held[:, :, :end] * scales[:, :, :end]).to(self.dtype)

    def store_index(self, layer: int, k: Float[Tensor, "batch key d_index"]) -> Float[Tensor, "batch all d_index"]:
        """Write the new keys of this layer's index; returns all filled slots. As for `store`, nothing counts yet."""
        held, end = self.indexed[layer], self.length + k.shape[1]
        held[:, self.length : end] = k
        return held[:, :end]

    def state(self, layer: int) -> State | None:
        """What a recurrence left behind after the last token; None before the first."""
        return self.states.get(layer)

    def hold(self, layer: int, state: State) -> None:
        """Take a recurrence's state after the new tokens; it counts from `advance` on."""
        self._held[layer] = state

    def check(self, batch: int, count: int) -> None:
        """Raise ShapeError unless `count` more tokens of `batch` rows fit."""
        self._held.clear()
        if batch != self.batch:
            raise ShapeError(f"The cache holds {self.batch} rows and was given {batch}.")
        if self.length + count > self.capacity:
            raise ShapeError(
                f"The cache has {self.capacity} slots, {self.length} of them filled; {count} more do not fit."
            )

    def key_mask(self, new: Bool[Tensor, "batch query"] | None, count: int) -> Bool[Tensor, "batch key"] | None:
        """Which of the filled and the `count` new slots hold text; None when all do."""
        if new is None and self.mask is None:
            return None
        if self.mask is None:
            self.mask = torch.ones(self.batch, self.capacity, dtype=torch.bool, device=self.device)
        self.mask[:, self.length : self.length + count] = True if new is None else new
        return self.mask[:, : self.length + count]

    def advance(self, count: int) -> None:
        """The forward is done: `count` more slots are filled."""
        self.length += count
        self.states.update(self._held)
        self._held.clear()

    def truncate(self, length: int) -> None:
        """Forget everything from slot `length` on.

        Raises:
            ShapeError: there is less, or a recurrence's state would have to go back, which it cannot.
        """
        if not 0 <= length <= self.length:
            raise ShapeError(f"The cache holds {self.length} tokens and cannot be cut to {length}.")
        if self.recurrent and length not in (0, self.length):
            raise ShapeError("A recurrence's state cannot go back to an earlier token; expand() a copy beforehand.")
        if length == 0:
            self.states.clear()
        self.length = length

    def copy_from(self, other: Cache, length: int) -> None:
        """Hold the first `length` tokens of another cache of the same model and batch.

        Raises:
            ShapeError: a recurrence's state is known after another number of tokens only.
        """
        if other.recurrent and length not in (0, other.length):
            raise ShapeError(f"A recurrence's state after {length} tokens is gone; it stands at {other.length}.")
        for mine, theirs in zip(self._by_slot(), other._by_slot(), strict=True):
            mine.narrow(-2, 0, length).copy_(theirs.narrow(-2, 0, length))
        self.states = {} if length == 0 else {k: dict(state) for k, state in other.states.items()}
        if self.tokens is not None and other.tokens is not None:
            self.made = None if other.made is None else other.made.clone()
        self.length = length

    def expand(self, batch: int, capacity: int | None = None) -> Cache:
        """A copy with this one-row cache's tokens in each of `batch` rows."""
        if self.batch != 1:
            raise ShapeError(f"Only a cache of one row can be expanded; this one has {self.batch}.")
        capacity = self.capacity if capacity is None else capacity
        if capacity < self.length:
            raise ShapeError(f"{self.length} filled slots do not fit in a capacity of {capacity}.")

        def roomier(x: Tensor) -> Tensor:  # (1, …, capacity, numbers)
            y = x.new_empty(batch, *x.shape[1:-2], capacity, x.shape[-1])
            y.narrow(-2, 0, self.length).copy_(x.narrow(-2, 0, self.length))
            return y

        copy = Cache.__new__(Cache)
        copy.length, copy.recurrent, copy.dtype, copy.device = self.length, self.recurrent, self.dtype, self.device
        copy.bits = self.bits
        copy._batch, copy._capacity, copy._held = batch, capacity, {}
        copy.mask = None
        if self.mask is not None:
            copy.mask = torch.ones(batch, capacity, dtype=torch.bool, device=self.mask.device)
            copy.mask[:, : self.length] = self.mask[:, : self.length]
        copy.states = {
            layer: {name: x.expand(batch, *x.shape[1:]).clone() for name, x in state.items()}
            for layer, state in self.states.items()
        }
        if self.tokens is not None:
            copy.tokens = self.tokens.new_zeros(batch, capacity)
            copy.tokens[:, : self.length] = self.tokens[:, : self.length]
            copy.made = None if self.made is None else self.made.expand(batch).clone()
        copy.keys = [None if x is None else roomier(x) for x in self.keys]
        copy.values = [None if x is None else roomier(x) for x in self.values]
        copy.scales = {layer: (roomier(k), roomier(v)) for layer, (k, v) in self.scales.items()}
        copy.indexed = {layer: roomier(x) for layer, x in self.indexed.items()}
        return copy

    @classmethod
    def together(cls, rows: Sequence[Cache], config: Config, capacity: int) -> Cache:
        """The texts of caches of one row each as the rows of one: all end in the same slot, shorter ones begin later.

        Raises:
            ShapeError: a text has padding, or the longest does not fit.
        """
        first, lengths = rows[0], [row.length for row in rows]
        whole = max(lengths)
        if any(row.batch != 1 or row.mask is not None for row in rows) or whole > capacity:
            raise ShapeError(f"Rows to join are one text each without padding, of {capacity} tokens at most.")
        joined = cls(config, len(rows), capacity, first.dtype, first.device, first.bits)
        for i, row in enumerate(rows):
            for mine, theirs in zip(joined._by_slot(), row._by_slot(), strict=True):
                mine[i].narrow(-2, 0, whole - row.length).zero_()  # weighed by zero, which no infinity survives
                mine[i].narrow(-2, whole - row.length, row.length).copy_(theirs[0].narrow(-2, 0, row.length))
        if min(lengths) < whole:
            joined.mask = torch.ones(len(rows), capacity, dtype=torch.bool, device=first.device)
            for i, length in enumerate(lengths):
                joined.mask[i, : whole - length] = False
        joined.states = {
            layer: {name: torch.cat([row.states[layer][name] for row in rows]) for name in state}
            for layer, state in first.states.items()
        }
        made = [row.made for row in rows if row.made is not None]
        joined.made = torch.cat(made) if made else None
        joined.length = whole
        return joined

    def prefix(self, length: int) -> bytes:
        """What the first tokens left, as bytes; `put_prefix` gives it to another cache of the same design."""
        parts = (x.narrow(-2, 0, length).contiguous().cpu() for x in self._by_slot())
        return b"".join(x.flatten().view(torch.uint8).numpy().tobytes() for x in parts)

    def put_prefix(self, length: int, kept: bytes) -> None:
        """Hold the tokens that `prefix` gave, and nothing else.

        Raises:
            ShapeError: they are not of this size, or the cache keeps more than keys and values.
        """
        parts = [x.narrow(-2, 0, length) for x in self._by_slot()]
        if self.recurrent or self.tokens is not None or len(kept) != sum(x.numel() * x.element_size() for x in parts):
            raise ShapeError(f"{len(kept)} bytes are not what {length} tokens leave in this cache.")
        done = 0
        for part in parts:
            size = part.numel() * part.element_size()
            part.copy_(torch.frombuffer(bytearray(kept[done : done + size]), dtype=part.dtype).view(part.shape))
            done += size
        self.length, self.mask = length, None

    def lengths(self) -> list[int]:
        """How many tokens each row's text has."""
        return [self.length] * self.batch if self.mask is None else self.mask[:, : self.length].sum(1).tolist()

    def give_back(self, rows: Sequence[Cache]) -> None:
        """Each row's last tokens to the cache of one row that it came from, which holds those before them.

        Raises:
            ShapeError: one of them has no room.
        """
        for i, (row, has) in enumerate(zip(rows, self.lengths(), strict=True)):
            had, pad = row.length, self.length - has
            if has > row.capacity:
                raise ShapeError(f"A text of {has} tokens does not fit into {row.capacity} slots.")
            for mine, theirs in zip(self._by_slot(), row._by_slot(), strict=True):
                theirs[0].narrow(-2, had, has - had).copy_(mine[i].narrow(-2, pad + had, has - had))
            row.states = {
                layer: {name: x[i : i + 1].clone() for name, x in state.items()} for layer, state in self.states.items()
            }
            row.made = None if self.made is None else self.made[i : i + 1].clone()
            row.length = has

    def _by_slot(self) -> list[Tensor]:
        """Everything held token by token, (batch, …, capacity, numbers)."""
        scales = (x for pair in self.scales.values() for x in pair)
        held = [x for x in (*self.keys, *self.values, *scales, *self.indexed.values()) if x is not None]
        return held if self.tokens is None else [*held, self.tokens[..., None]]
