"""The native training step's library: its functions and structures, as C++ has them in ``csrc/``.

How it is compiled and kept is `kernels/compile.py`; it knows no designs, recipes or tensors, and does not import torch,
so that compiling can begin while torch is still being imported.
"""

from __future__ import annotations

import ctypes

from glassformer.kernels.compile import Library, Signature

BF16 = "-DGLASSFORMER_BF16"
"""The compiler flag of the library whose operands are bfloat16; without it they are float32."""
ROLES = (
    *("embed", "pos_embed", "unembed", "final", "ln1", "ln2", "attn.q_norm", "attn.k_norm"),
    *("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down"),
)
"""What a parameter is, in the order of the library's `Role`."""
ACTIVATIONS = {"gelu_tanh": 1, "silu": 2}
"""The activations it knows, by the library's numbers."""


class TrainShape(ctypes.Structure):
    """Sizes and numbers of a design."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("vocab", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_head")),
        *((name, ctypes.c_int32) for name in ("d_ff", "context", "qk_norm", "layer_norm", "gated", "activation")),
        *((name, ctypes.c_int32) for name in ("tied", "threads")),
        *((name, ctypes.c_float) for name in ("eps", "score_scale")),
    ]


class Parameter(ctypes.Structure):
    """Where one parameter lies in the flat buffers, what it is, and how it is stepped."""

    _fields_ = [
        ("offset", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("role", "layer", "rows", "cols", "bias", "muon")),
        *((name, ctypes.c_float) for name in ("lr", "decay")),
    ]


class Rules(ctypes.Structure):
    """The optimiser's numbers; `newton_schulz` are three of each round."""

    _fields_ = [
        ("newton_schulz", ctypes.POINTER(ctypes.c_float)),
        *((name, ctypes.c_float) for name in ("muon_lr", "muon_decay", "beta1", "beta2", "eps")),
        *((name, ctypes.c_int32) for name in ("rounds", "cautious")),
    ]


class Dropout(ctypes.Structure):
    """What a pass leaves out."""

    _fields_ = [("key", ctypes.c_uint32), ("share", ctypes.c_uint32), ("scale", ctypes.c_float)]


_INT, _LONG, _POINTER, _FLOAT = ctypes.c_int, ctypes.c_long, ctypes.c_void_p, ctypes.c_float
_SIGNATURES: dict[str, Signature] = {
    "gf_arithmetic": (ctypes.c_char_p, []),
    "gf_create": (_POINTER, [_POINTER, _POINTER, _INT, *[_POINTER] * 7]),
    "gf_destroy": (None, [_POINTER]),
    "gf_publish": (_INT, [_POINTER]),
    "gf_loss": (ctypes.c_double, [_POINTER, _POINTER, _POINTER, _POINTER, _LONG]),
    "gf_gradient": (ctypes.c_double, [_POINTER, _POINTER, _POINTER, _POINTER, _LONG, _FLOAT, _INT, _POINTER, _LONG]),
    "gf_square": (ctypes.c_double, [_POINTER]),
    "gf_update": (_INT, [_POINTER, _POINTER, _FLOAT, _FLOAT, _LONG]),
}

LIBRARY = Library(
    "train",
    _SIGNATURES,
    (TrainShape, Parameter, Rules, Dropout),
    subject="The native training step",
    instead="a run trains through torch without it, which takes a small model several times as long",
)


def flags(bf16: bool) -> tuple[str, ...]:
    """The compiler flags of the library for bfloat16, or for float32."""
    return (BF16,) if bf16 else ()
