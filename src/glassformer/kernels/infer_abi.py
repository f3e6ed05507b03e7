"""The native forward pass's library: its functions and structures, as C++ has them in ``csrc/``.

How it is compiled and kept is `kernels/compile.py`; it does not know models or precisions.
"""

from __future__ import annotations

import ctypes

from glassformer.kernels.compile import Library, NativeUnavailableError, Signature

__all__ = ["LIBRARY", "NativeUnavailableError", "compiled", "instructions", "library", "unavailable"]


class Matrix(ctypes.Structure):
    """One packed weight matrix (rows = outputs, cols = inputs) and its bias."""

    _fields_ = [
        ("format", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("cols", ctypes.c_int32),
        ("exact", ctypes.c_int32),
        ("data", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    ]


class NormWeights(ctypes.Structure):
    """A norm's scale and bias; a null scale means there is no such norm."""

    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class LayerWeights(ctypes.Structure):
    """One block's weights, its window (0 for none) and which rotary table it uses."""

    _fields_ = [
        *((name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, NormWeights) for name in ("ln1", "ln2", "ln1_post", "ln2_post", "q_norm", "k_norm")),
        ("window", ctypes.c_int32),
        ("table", ctypes.c_int32),
    ]


class ModelWeights(ctypes.Structure):
    """What is outside the blocks; cosines and sines are (table, capacity, pair)."""

    _fields_ = [
        *((name, Matrix) for name in ("embed", "unembed", "pos_embed")),
        ("final_norm", NormWeights),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
    ]


class InferShape(ctypes.Structure):
    """Sizes and numbers of a design; a 0 soft cap or embedding scale means none."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("vocab", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_head")),
        *((name, ctypes.c_int32) for name in ("d_ff", "rotary", "activation", "layer_norm", "parallel", "slots")),
        *((name, ctypes.c_int32) for name in ("capacity", "bf16_cache", "rows", "narrow")),
        *((name, ctypes.c_float) for name in ("eps", "score_scale", "score_softcap", "logit_softcap")),
        ("embedding_scale", ctypes.c_float),
    ]


_INT, _POINTER, _SIZE = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
_SIGNATURES: dict[str, Signature] = {
    "gf_instructions": (ctypes.c_char_p, []),
    "gf_allocate": (_POINTER, [_SIZE]),
    "gf_free": (None, [_POINTER]),
    "gf_matrix_bytes": (_SIZE, [_INT, _INT, _INT]),
    "gf_pack": (None, [_INT, _INT, _INT, _POINTER, _POINTER, _INT]),
    "gf_narrows": (_INT, [_POINTER, _INT]),
    "gf_unpack": (None, [_POINTER, _INT, _POINTER]),
    "gf_multiply": (_INT, [_POINTER, _POINTER, _INT, _POINTER]),
    "gf_read": (ctypes.c_double, [_POINTER, _SIZE, _INT]),
    "gf_create": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "gf_destroy": (None, [_POINTER]),
    "gf_forward": (_INT, [_POINTER, _INT, _POINTER, _POINTER, _POINTER, _INT, _POINTER, _POINTER, _INT]),
    "gf_copy": (None, [_POINTER, _INT, _INT, _INT]),
}

LIBRARY = Library(
    "infer",
    _SIGNATURES,
    (Matrix, NormWeights, LayerWeights, ModelWeights, InferShape),
    subject="The fast engine",
    instead="text is generated through torch in float32 instead, several times slower",
)
library, compiled, unavailable = LIBRARY.get, LIBRARY.compiled, LIBRARY.unavailable


def instructions(lib: ctypes.CDLL) -> str:
    """Which instruction set the kernels were compiled for, in words."""
    return lib.gf_instructions().decode()
