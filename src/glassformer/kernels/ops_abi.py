"""The library of single operations on a processor: products, attention, norms, gates, rotations, choices among logits.

Each function takes what the function of its name in `ops` takes and returns None where it cannot or should not be used:
another device or dtype, a gradient asked for, too few rows to pay, no C++ compiler. The choice depends on shapes and on
the machine, never on timing, so a run repeats to the bit.

Float32 products on a processor with tiles (AMX) are sums of six bfloat16 products (`csrc/amx.h`), as exact as float32
and about twice as quick (docs/decisions/0016). It knows no model.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glassformer.kernels.compile import Library, Signature
from glassformer.system.hardware import processor_flags

_PRODUCT_ROWS = 128
"""Below this many rows packing a weight costs more than its product saves."""
_ROW_NUMBERS = 1 << 16
"""Below this many numbers a call costs more than the pass through memory that it saves."""
_ATTENTION_QUERIES = 64
_ORTHOGONAL_ROWS, _ORTHOGONAL_UNIT = 256, 32
"""Matrices of fewer rows are orthogonalised as quickly by torch; sizes are whole units."""
_WIDEST_CHOICE = 1 << 20
"""Logits that a token is chosen from: there is room for the sums of so many."""
_STEEPEST = 1e30
"""Temperatures beyond, and below one over it, are not divided by in float32."""
_ACTIVATIONS = {"gelu_tanh": 1, "silu": 2, "relu": 3, "relu2": 4}
_LEARNT = ("gelu_tanh", "silu")
"""Activations whose slopes are there too."""

_INT, _LONG, _FLOAT, _DOUBLE, _POINTER = ctypes.c_int, ctypes.c_long, ctypes.c_float, ctypes.c_double, ctypes.c_void_p
_SIGNATURES: dict[str, Signature] = {
    "gk_threads": (None, [_POINTER]),
    "gk_tiles": (_INT, []),
    "gk_linear": (_INT, [_POINTER, _LONG, _LONG, _LONG, _POINTER, _POINTER, _LONG, _POINTER, _INT]),
    "gk_attention": (_INT, [_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _INT]),
    "gk_rms_norm": (None, [_POINTER, _LONG, _LONG, _POINTER, _FLOAT, _FLOAT, _POINTER, _INT, _INT]),
    "gk_gated": (None, [_POINTER, _POINTER, _LONG, _INT, _POINTER, _INT, _INT]),
    "gk_rotate": (
        None,
        [_POINTER, _LONG, _LONG, _LONG, _LONG, _POINTER, _POINTER, _LONG, _POINTER, _INT, _INT],
    ),
    "gk_gated_gradient": (None, [_POINTER, _POINTER, _POINTER, _LONG, _INT, _POINTER, _POINTER, _INT, _INT]),
    "gk_cross_entropy": (None, [_POINTER, _LONG, _LONG, _POINTER, _POINTER, _INT, _INT]),
    "gk_causal_softmax": (None, [_POINTER, _LONG, _LONG, _LONG, _FLOAT, _INT, _INT]),
    "gk_softmax_gradient": (None, [_POINTER, _POINTER, _LONG, _LONG, _FLOAT, _INT, _INT]),
    "gk_weight_sum": (_DOUBLE, [_POINTER, _LONG, _FLOAT]),
    "gk_draw": (_LONG, [_POINTER, _LONG, _FLOAT, _DOUBLE]),
    "gk_largest": (_LONG, [_POINTER, _LONG, _LONG, _POINTER]),
    "gk_newton_schulz": (_INT, [_POINTER, _LONG, _LONG, _LONG, _POINTER, _INT, _INT]),
}


class _Attention(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("batch", "heads", "kv_heads", "queries", "keys", "d_head")),
        *((name, ctypes.c_int32) for name in ("start", "window", "bf16")),
        ("scale", _FLOAT),
        *((name, ctypes.c_int64 * 3) for name in ("q", "k", "v", "out")),
    ]


LIBRARY = Library(
    "ops",
    _SIGNATURES,
    (_Attention,),
    subject="The quicker forward pass",
    instead="texts are read through torch instead, up to two times slower",
)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library, on torch's own threads; None where there is none."""
    if sys.platform != "linux" or LIBRARY.unavailable() is not None:
        return None
    lib = LIBRARY.get()
    try:  # the runtime that torch has loaded
        lib.gk_threads(ctypes.cast(ctypes.CDLL("libgomp.so.1").GOMP_parallel, ctypes.c_void_p))
    except (OSError, AttributeError):
        return None  # torch has other threads, which ours would fight for the cores
    return lib


@functools.cache
def _tiles() -> ctypes.CDLL | None:
    """The library where the processor has tiles."""
    if "amx_bf16" not in processor_flags():
        return None  # asked before anything is compiled
    lib = _library()
    return lib if lib is not None and lib.gk_tiles() else None


def _plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary tensors on the processor that nobody differentiates, maps or traces."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    grad = torch.is_grad_enabled()
    return all(
        x is None or (x.device.type == "cpu" and type(x) in (Tensor, nn.Parameter) and not (grad and x.requires_grad))
        for x in tensors
    )


def _bf16(*tensors: Tensor) -> int | None:
    """1 for bfloat16, 0 for float32, None for anything else."""
    dtypes = {x.dtype for x in tensors}
    return 1 if dtypes == {torch.bfloat16} else 0 if dtypes == {torch.float32} else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """x @ weight.T + bias of float32 (..., d_in), (d_out, d_in) and (d_out)."""
    rows = x.numel() // max(1, x.shape[-1])
    if rows < _PRODUCT_ROWS or _bf16(x, weight, *(() if bias is None else (bias,))) != 0:
        return None
    if not _plain(x, weight, bias) or not weight.is_contiguous() or (lib := _tiles()) is None:
        return None
    flat = x.reshape(rows, x.shape[-1])
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    if bias is not None:
        bias = bias.contiguous()  # held until the call is over
    out = x.new_empty((*x.shape[:-1], weight.shape[0]))
    failed = lib.gk_linear(
        flat.data_ptr(),
        rows,
        flat.shape[1],
        flat.stride(0),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        weight.shape[0],
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return None if failed else out


def attention(q: Tensor, k: Tensor, v: Tensor, *, start: int, window: int | None, scale: float) -> Tensor | None:
    """Causal attention of q (batch, head, query, d_head) to k and v (batch, kv_head, key, d_head).

    Query i stands at slot start + i, sees no later slot, and with a window only the latest of them, itself included.
    """
    batch, heads, queries, d_head = q.shape
    if queries < _ATTENTION_QUERIES or not _plain(q, k, v) or (bf16 := _bf16(q, k, v)) is None:
        return None
    if any(x.stride(3) != 1 for x in (q, k, v)) or k.shape[2] < start + queries or (lib := _tiles()) is None:
        return None
    out = q.new_empty((batch, queries, heads, d_head)).transpose(1, 2)  # as the output projection reads it
    sizes = _Attention(batch, heads, k.shape[1], queries, k.shape[2], d_head, start, window or 0, bf16, scale)
    for name, x in (("q", q), ("k", k), ("v", v), ("out", out)):
        setattr(sizes, name, (ctypes.c_int64 * 3)(*x.stride()[:3]))
    failed = lib.gk_attention(
        ctypes.byref(sizes), q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), torch.get_num_threads()
    )
    return None if failed else out


def rms_norm(x: Tensor, weight: Tensor, plus: float, eps: float) -> Tensor | None:
    """x / root mean square of its last axis × (weight + plus), computed in float32."""
    if x.numel() < _ROW_NUMBERS or not _plain(x, weight) or (bf16 := _bf16(x, weight)) is None:
        return None
    if not x.is_contiguous() or not weight.is_contiguous() or (lib := _library()) is None:
        return None
    out, d = torch.empty_like(x), x.shape[-1]
    lib.gk_rms_norm(
        x.data_ptr(), x.numel() // d, d, weight.data_ptr(), plus, eps, out.data_ptr(), bf16, torch.get_num_threads()
    )
    return out


def gated(activation: str, gate: Tensor, up: Tensor | None = None) -> Tensor | None:
    """act(gate) × up, or act(gate) alone."""
    if gate.numel() < _ROW_NUMBERS or activation not in _ACTIVATIONS or not _plain(gate, up):
        return None
    both = (gate,) if up is None else (gate, up)
    bf16 = _bf16(*both)
    if bf16 is None or not all(x.is_contiguous() for x in both) or (lib := _library()) is None:
        return None
    out = torch.empty_like(gate)
    lib.gk_gated(
        gate.data_ptr(),
        None if up is None else up.data_ptr(),
        gate.numel(),
        _ACTIVATIONS[activation],
        out.data_ptr(),
        bf16,
        torch.get_num_threads(),
    )
    return out


def learns_gated(activation: str, gate: Tensor, up: Tensor | None) -> bool:
    """Whether `gated` and `gated_gradient` take these, whose gradient is asked for."""
    given = (gate,) if up is None else (gate, up)
    return (
        gate.numel() >= _ROW_NUMBERS
        and activation in _LEARNT
        and _bf16(*given) == 1
        and all(x.is_contiguous() for x in given)
        and _plain(*(x.detach() for x in given))
        and _library() is not None
    )


def gated_gradient(
    activation: str, upstream: Tensor, gate: Tensor, up: Tensor | None
) -> tuple[Tensor, Tensor | None] | None:
    """The gradients of act(gate) × up to gate and up, in bfloat16."""
    if gate.numel() < _ROW_NUMBERS or activation not in _LEARNT or not _plain(upstream, gate, up):
        return None
    all_three = (upstream, gate) if up is None else (upstream, gate, up)
    if _bf16(*all_three) != 1 or not all(x.is_contiguous() for x in all_three) or (lib := _library()) is None:
        return None
    to_gate, to_up = torch.empty_like(gate), None if up is None else torch.empty_like(up)
    lib.gk_gated_gradient(
        upstream.data_ptr(),
        gate.data_ptr(),
        None if up is None else up.data_ptr(),
        gate.numel(),
        _ACTIVATIONS[activation],
        to_gate.data_ptr(),
        None if to_up is None else to_up.data_ptr(),
        1,
        torch.get_num_threads(),
    )
    return to_gate, to_up


def _rows_here(*tensors: Tensor) -> tuple[ctypes.CDLL, int] | None:
    """The library, and whether it is bfloat16, for rows that are worked on where they stand."""
    bf16 = _bf16(*tensors)
    if bf16 is None or tensors[0].numel() < _ROW_NUMBERS or not _plain(*tensors):
        return None
    if not all(x.is_contiguous() for x in tensors):
        return None
    lib = _library()
    return None if lib is None else (lib, bf16)


def cross_entropy_(logits: Tensor, targets: Tensor) -> Tensor | None:
    """−log softmax(row)[target] of (row, vocab) in float32, 0 where a target is negative; rows become its gradient."""
    if (here := _rows_here(logits)) is None:
        return None
    lib, bf16 = here
    targets, loss = targets.contiguous(), logits.new_empty(len(logits), dtype=torch.float32)
    lib.gk_cross_entropy(
        logits.data_ptr(), *logits.shape, targets.data_ptr(), loss.data_ptr(), bf16, torch.get_num_threads()
    )
    return loss


def causal_softmax_(scores: Tensor, scale: float) -> bool:
    """Whether scores (head, query, key) became softmax(scores × scale) where they stand; the last query sees all keys,
    each other one key less than the next; scale is above 0."""
    if (here := _rows_here(scores)) is None or scale <= 0 or scores.shape[1] > scores.shape[2]:
        return False
    lib, bf16 = here
    heads, queries, keys = scores.shape
    lib.gk_causal_softmax(scores.data_ptr(), heads * queries, queries, keys, scale, bf16, torch.get_num_threads())
    return True


def softmax_gradient_(weights: Tensor, upstream: Tensor, scale: float) -> bool:
    """Whether `upstream`, the gradient of softmax weights (…, key), became that of scores before their scale."""
    if (here := _rows_here(weights, upstream)) is None:
        return False
    lib, bf16 = here
    keys = weights.shape[-1]
    lib.gk_softmax_gradient(
        weights.data_ptr(), upstream.data_ptr(), weights.numel() // keys, keys, scale, bf16, torch.get_num_threads()
    )
    return True


def _choice(logits: Tensor, temperature: float) -> ctypes.CDLL | None:
    """The library, where it chooses among these logits (vocab,) at this temperature."""
    if not 0 < len(logits) <= _WIDEST_CHOICE or not 1 / _STEEPEST < temperature < _STEEPEST:
        return None
    if logits.dtype != torch.float32 or not logits.is_contiguous() or not _plain(logits):
        return None
    return _library()


def weight_sum(logits: Tensor, temperature: float) -> float | None:
    """The sum of exp((logits − largest) / temperature)."""
    if (lib := _choice(logits, temperature)) is None:
        return None
    return float(lib.gk_weight_sum(logits.data_ptr(), len(logits), 1 / temperature))


def draw(logits: Tensor, temperature: float, share: float) -> int | None:
    """The first token at which the running sum of those weights passes this share of the whole."""
    if (lib := _choice(logits, temperature)) is None:
        return None
    return int(lib.gk_draw(logits.data_ptr(), len(logits), 1 / temperature, share))


def largest(logits: Tensor, count: int) -> Tensor | None:
    """Ids of the `count` largest logits, largest first, the lower id first among equals."""
    if (lib := _choice(logits, 1.0)) is None:
        return None
    ids = torch.empty(count, dtype=torch.int32)
    return ids.long() if lib.gk_largest(logits.data_ptr(), len(logits), count, ids.data_ptr()) == count else None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor | None:
    """Turn pairs (i, i + pairs) of x (batch, query, head, d_head) by angles (batch, query, 1, pair)."""
    if x.numel() < _ROW_NUMBERS or not _plain(x, cos, sin) or (bf16 := _bf16(x)) is None:
        return None
    batch, queries, heads, d_head = x.shape
    if x.stride(3) != 1 or x.stride(2) != d_head or x.stride(0) != queries * x.stride(1):
        return None
    if (lib := _library()) is None:
        return None
    pairs = cos.shape[-1]
    cosines, sines = (t.float().expand(batch, queries, 1, pairs).contiguous() for t in (cos, sin))
    out = x.new_empty(x.shape)
    lib.gk_rotate(
        x.data_ptr(),
        batch * queries,
        heads,
        d_head,
        x.stride(1),
        cosines.data_ptr(),
        sines.data_ptr(),
        pairs,
        out.data_ptr(),
        bf16,
        torch.get_num_threads(),
    )
    return out


def newton_schulz(x: Tensor, rules: Sequence[tuple[float, float, float]]) -> Tensor | None:
    """Rounds x ← a x + b (x xᵀ) x + c (x xᵀ)² x of bfloat16 (matrix, row, column), no more rows than columns."""
    count, rows, columns = x.shape
    if rows < _ORTHOGONAL_ROWS or rows % _ORTHOGONAL_UNIT or columns % _ORTHOGONAL_UNIT or not rules:
        return None
    if not _plain(x) or _bf16(x) != 1 or (lib := _library()) is None:
        return None
    numbers = (ctypes.c_float * (3 * len(rules)))(*(number for rule in rules for number in rule))
    out = x.clone(memory_format=torch.contiguous_format)
    failed = lib.gk_newton_schulz(
        out.data_ptr(), count, rows, columns, numbers, len(rules), min(count, torch.get_num_threads())
    )
    return None if failed else out


def forget() -> None:
    """Ask the system anew next time; for tests."""
    _library.cache_clear()
    _tiles.cache_clear()
    LIBRARY.forget()


def available() -> dict[str, Any]:
    """What there is here: the library, and products on tiles."""
    return {"library": _library() is not None, "tiles": _tiles() is not None}
