"""Weights as the native library holds them: packed into its own order, or as a GGUF stores them."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from glassformer.errors import MemoryLimitError
from glassformer.generate.quantize import FORMATS, Raw, Weight, stored
from glassformer.kernels import infer_abi


class Packed:
    """A weight in the kernels' order, in memory of the library's own, freed with this object."""

    def __init__(self, lib: ctypes.CDLL, w: Weight, threads: int | None = None) -> None:
        kind = FORMATS[w.format]
        place = lib.gf_allocate(lib.gf_matrix_bytes(kind, w.rows, w.cols))
        if not place:
            raise MemoryLimitError(f"There is no memory for a weight of {w.rows} × {w.cols}.")
        weakref.finalize(self, lib.gf_free, place)
        data = w.data.contiguous()
        lib.gf_pack(kind, w.rows, w.cols, data.data_ptr(), place, threads or torch.get_num_threads())
        self.matrix = infer_abi.Matrix(kind, w.rows, w.cols, 0, place, None)


class StoredWeights(Mapping[str, Weight | Tensor]):
    """A GGUF's parameters, one at a time."""

    def __init__(self, raw: Mapping[str, Raw], exact: bool) -> None:
        self._raw, self._exact = raw, exact
        self._bytes: dict[str, int] = {}
        self._again: set[str] = set()

    def __getitem__(self, name: str) -> Weight | Tensor:
        value = stored(self._raw[name], self._exact)
        if isinstance(value, Weight):
            self._bytes[value.format] = self._bytes.get(value.format, 0) + value.bytes
            if value.note:
                self._again.add(self._raw[name].kind)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._raw

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def kinds(self) -> str:
        """The formats met, the one with most bytes first: "Q4_1+Q8_0"; with those that were stored again, having no
        kernel: "Q8_0 from Q4_K+Q6_K"."""
        met = "+".join(sorted(self._bytes, key=lambda kind: -self._bytes[kind]))
        return f"{met} from {'+'.join(sorted(self._again))}" if self._again else met


def floats(value: Weight | Tensor) -> Tensor:
    """The float32 numbers of a weight."""
    return value.to_float() if isinstance(value, Weight) else value.detach().float()
