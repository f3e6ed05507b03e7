"""Keys and values of the tokens already read, so that the next token need not read them again.

Rows of a batch share one length; shorter texts are padded on the left. The cache knows tensors and
slots; who fills it and when is the caller's business.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glassformer.errors import ShapeError
from glassformer.model.config import Config


class Cache:
    """Room for `capacity` tokens of `batch` texts.

    Attributes:
        keys, values: per layer (batch, kv_head, capacity, d_head), keys already rotated.
        length: slots filled so far, the same for every row.
        mask: (batch, capacity) bool, False where a slot holds padding; None when none does.
    """

    def __init__(
        self,
        config: Config,
        batch: int = 1,
        capacity: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        capacity = config.context if capacity is None else capacity
        if batch < 1 or capacity < 1:
            raise ShapeError(f"A cache needs at least one row and one slot; got {batch} rows of {capacity}.")
        shape = (batch, config.attention.n_kv_heads, capacity, config.attention.d_head)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        self.length = 0
        self.mask: Bool[Tensor, "batch capacity"] | None = None

    @property
    def batch(self) -> int:
        """Rows."""
        return self.keys[0].shape[0]

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self.keys[0].shape[2]

    def store(
        self, layer: int, k: Float[Tensor, "batch key kv_head d_head"], v: Float[Tensor, "batch key kv_head d_head"]
    ) -> tuple[Tensor, Tensor]:
        """Write this layer's new keys and values; returns all filled slots, (batch, kv_head, key, d_head).

        `length` moves only when the whole forward is done (`advance`), so a forward that fails
        half-way leaves the cache as it was.
        """
        end = self.length + k.shape[1]
        self.keys[layer][:, :, self.length : end] = k.transpose(1, 2)
        self.values[layer][:, :, self.length : end] = v.transpose(1, 2)
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def check(self, batch: int, count: int) -> None:
        """Raise ShapeError unless `count` more tokens of `batch` rows fit."""
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
            self.mask = torch.ones(self.batch, self.capacity, dtype=torch.bool, device=self.keys[0].device)
        self.mask[:, self.length : self.length + count] = True if new is None else new
        return self.mask[:, : self.length + count]

    def advance(self, count: int) -> None:
        """The forward is done: `count` more slots are filled."""
        self.length += count

    def truncate(self, length: int) -> None:
        """Forget everything from slot `length` on."""
        if not 0 <= length <= self.length:
            raise ShapeError(f"The cache holds {self.length} tokens and cannot be cut to {length}.")
        self.length = length

    def expand(self, batch: int, capacity: int | None = None) -> Cache:
        """A copy with this one-row cache's tokens in each of `batch` rows."""
        if self.batch != 1:
            raise ShapeError(f"Only a cache of one row can be expanded; this one has {self.batch}.")
        capacity = self.capacity if capacity is None else capacity
        if capacity < self.length:
            raise ShapeError(f"{self.length} filled slots do not fit in a capacity of {capacity}.")
        copy = Cache.__new__(Cache)
        copy.length = self.length
        copy.mask = None
        if self.mask is not None:
            copy.mask = torch.ones(batch, capacity, dtype=torch.bool, device=self.mask.device)
            copy.mask[:, : self.length] = self.mask[:, : self.length]
        copy.keys, copy.values = [], []
        for mine, theirs in ((self.keys, copy.keys), (self.values, copy.values)):
            for x in mine:
                y = x.new_empty(batch, x.shape[1], capacity, x.shape[3])
                y[:, :, : self.length] = x[:, :, : self.length]
                theirs.append(y)
        return copy
