"""The tensors of a GGUF as the file stores them: mapped blocks, and the float32 numbers that they stand for."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glassformer.checkpoint.gguf_header import Stored
from glassformer.checkpoint.keys import Shape, native_shapes
from glassformer.checkpoint.tables import take_rows
from glassformer.errors import UnsupportedError
from glassformer.system import hardware

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from glassformer.checkpoint.gguf import Gguf


@dataclass(frozen=True)
class RawTensor:
    """One parameter as the file stores it.

    Args:
        kind: its ggml type, such as "Q4_1", "Q8_0" or "F32".
        shape: of the parameter: (out, in), (experts, out, in), or (n,).
        data: bytes (uint8), one row per row of the parameter; ``(1, bytes)`` for a vector.
            A mapping of the file where rows lie as ours do; queries and keys of "llama" are copied into our order.
    """

    kind: str
    shape: Shape
    data: np.ndarray

    def values(self) -> np.ndarray:
        """The parameter in float32."""
        return values_of(self.data, self.kind).reshape(self.shape)

    def rows(self, which: np.ndarray | int | None) -> np.ndarray:
        """The parameter in float32, or only these of its first axis: one (without that axis), or several."""
        if which is None:
            return self.values()
        each = self.data.reshape((self.shape[0], -1))[which]
        return values_of(each, self.kind).reshape((*each.shape[:-1], *self.shape[1:]))


def mapped(path: Path) -> np.ndarray:
    """A file's bytes, mapped: uint8, (byte,). In large pages where the whole file fits in memory, for the experts that
    tokens choose lie all over it, and of small pages each is looked up by itself."""
    import numpy as np

    # Copy on write: never written, but torch warns of arrays that could not be.
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    free = hardware.available_memory()
    if free is not None and len(data) <= free and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them
            data.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(data, np.uint8)


class Blocks(Mapping[str, RawTensor]):
    """Every parameter of a GGUF by native key, in the file's own blocks, mapped and made when asked for."""

    def __init__(self, gguf: Gguf):
        self._gguf = gguf
        self._data = {path: mapped(path) for path in {stored.path for stored in gguf.header.tensors.values()}}
        self._homes = gguf.table.homes
        self._shapes = native_shapes(gguf.config)

    def __getitem__(self, key: str) -> RawTensor:
        import numpy as np

        place, part = self._homes[key]
        config, shape = self._gguf.config, self._shapes[key]
        if len(shape) < 2 or not place.plain:  # vectors are small, and what is laid out anew is not the stored blocks
            values = np.ascontiguousarray(self._gguf.table.ours(key, self._stored)).reshape((-1, *(shape or (1,))[-1:]))
            return RawTensor("F32", shape, values.view("uint8"))
        stored = self._gguf.header.tensors[place.theirs]
        rows = take_rows(place, part, self._bytes(stored).reshape((-1, stored.row_bytes)), config)
        return RawTensor(stored.kind, shape, rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    def tensor(self, key: str) -> Tensor:
        """One parameter, dequantised."""
        import torch

        return torch.from_numpy(self[key].values())

    def _bytes(self, stored: Stored) -> np.ndarray:
        return self._data[stored.path][stored.start : stored.end]

    def _stored(self, name: str) -> np.ndarray:
        """One tensor of theirs in float32."""
        import numpy as np

        if (number := self._gguf.numbers.get(name)) is not None:
            return np.full(self._gguf.table.places[name].shape, number, dtype=np.float32)
        stored = self._gguf.header.tensors[name]
        return values_of(self._bytes(stored).reshape((-1, stored.row_bytes)), stored.kind).reshape(stored.shape)


def values_of(data: np.ndarray | bytes, kind: str) -> np.ndarray:
    """Blocks of any type the `gguf` package can dequantise, in float32."""
    import numpy as np

    if isinstance(data, bytes):
        data = np.frombuffer(data, np.uint8)
    plain = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
    if kind in plain:
        return np.ascontiguousarray(data).view(plain[kind]).astype(np.float32)
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    # That package works on sixteen rows at a time. Blocks know nothing of rows, so longer ones save most of its loop.
    width = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    blocks = np.ascontiguousarray(data).reshape((-1, width))
    try:
        values: np.ndarray = dequantize(
            blocks.reshape((-1, width * math.gcd(len(blocks), 1024))), GGMLQuantizationType[kind]
        )
    except NotImplementedError:
        raise UnsupportedError(
            f"Tensors of ggml type {kind} cannot be dequantised; use another quantisation."
        ) from None
    return values.reshape(-1).astype(np.float32, copy=False)
