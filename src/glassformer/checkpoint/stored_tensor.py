"""A parameter that stays quantised: an operation that reads it gets its numbers, and they are gone after it.

So a model whose numbers fit neither memory nor disk is traced and explained all the same, layer by layer, and of a
mixture only the experts that are read. It knows operations; it does not know files or formats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Rows = Callable[["np.ndarray | int | None"], np.ndarray]

_VIEWS = {
    "__getitem__",
    "chunk",
    "expand",
    "flatten",
    "mT",
    "narrow",
    "permute",
    "reshape",
    "select",
    "split",
    "squeeze",
}
_VIEWS |= {"t", "transpose", "unbind", "unflatten", "unsqueeze", "view"}


class StoredTensor(Tensor):
    """A tensor of no memory of its own.

    Args:
        shape: of its numbers.
        rows: gives them in float32: all for None, one or several of the first axis for its number or theirs.
        dtype: what operations get.
    """

    _rows: Rows

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], rows: Rows, dtype: torch.dtype = torch.float32) -> StoredTensor:
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=torch.device("cpu"))
        made._rows = rows
        return made

    def __init__(self, shape: tuple[int, ...], rows: Rows, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()

    def numbers(self, which: np.ndarray | int | None = None) -> Tensor:
        """Its numbers, or only these of its first axis."""
        return torch.from_numpy(self._rows(which)).to(self.dtype)

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"StoredTensor{tuple(self.shape)}"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and isinstance(args[1], int):
            return args[0].numbers(args[1])
        # In inference mode no view can be made of a tensor that was made outside it.
        if torch.is_inference_mode_enabled() and func.__name__ in _VIEWS:
            args = (args[0].numbers(), *args[1:])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        aten, first = torch.ops.aten, args[0]
        if func in (aten.detach.default, aten.alias.default):
            return StoredTensor(tuple(first.shape), first._rows, first.dtype)
        if func is aten._to_copy.default and set(kwargs or {}) == {"dtype"}:
            return StoredTensor(tuple(first.shape), first._rows, kwargs["dtype"])
        if func is aten.select.int and args[1] == 0:
            return first.numbers(args[2])
        if func is aten.embedding.default and isinstance(first, StoredTensor):
            ids, inverse = args[1].unique(return_inverse=True)
            return first.numbers(ids.numpy())[inverse]

        given, named = tree_map_only(StoredTensor, StoredTensor.numbers, (args, kwargs or {}))
        return func(*given, **named)
