"""The native forward pass's library: its functions and structures, as C++ has them in ``csrc/``.

How it is compiled and kept is `kernels/compile.py`; it does not know models or precisions.
"""

from __future__ import annotations

import ctypes

from glassformer.kernels.compile import Library, NativeUnavailableError, Signature

__all__ = ["LIBRARY", "NativeUnavailableError", "compiled", "instructions", "library", "unavailable"]

_I, _F, _P = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class Matrix(ctypes.Structure):
    """One weight matrix (rows = outputs, cols = inputs) and its bias; packed, or `stored` in rows as a file has it."""

    _fields_ = [
        *((name, _I) for name in ("format", "rows", "cols", "exact")),
        ("data", _P),
        ("bias", _P),
        ("stored", _I),
        ("after", _P),
    ]


class NormWeights(ctypes.Structure):
    """A norm's scale and bias; a null scale means there is no such norm."""

    _fields_ = [("weight", _P), ("bias", _P)]


class FeedWeights(ctypes.Structure):
    """A feed-forward part, or those of all experts one after the other; of a part that is not there d_ff is 0."""

    _fields_ = [
        *((name, Matrix) for name in ("gate", "up", "down")),
        *((name, _I) for name in ("d_ff", "activation")),
        *((name, _F) for name in ("scale", "cut", "shift")),
    ]


class RouterWeights(ctypes.Structure):
    """How experts are chosen; of a layer without them `experts` is 0."""

    _fields_ = [
        *((name, Matrix) for name in ("scores", "beside")),
        *((name, _P) for name in ("correction", "scales")),
        *((name, _I) for name in ("experts", "active", "sigmoid", "before", "groups", "top_groups", "group_best")),
        *((name, _I) for name in ("renormalise", "on_input")),
        *((name, _F) for name in ("softcap", "scale", "beside_scale")),
    ]


QUERY_NORM = {None: 0, "head": 1, "each": 2, "whole": 3}
HEAD_GATE = {None: 0, "sigmoid": 1, "softplus": 2}


class LayerWeights(ctypes.Structure):
    """One block: its settings and weights. A number that is 0 and a pointer that is null stand for none."""

    _fields_ = [
        *((name, Matrix) for name in ("q", "k", "v", "o", "z_gate")),
        *((name, FeedWeights) for name in ("feed", "expert")),
        ("router", RouterWeights),
        *((name, NormWeights) for name in ("ln1", "ln2", "ln1_post", "ln2_post", "q_norm", "k_norm", "v_norm")),
        *((name, _P) for name in ("cosines", "sines", "sinks", "slopes", "query_scale", "after")),
        *((name, _I) for name in ("n_heads", "n_kv_heads", "d_head", "d_value", "rotary", "window", "chunk", "source")),
        *((name, _I) for name in ("query_norm", "norm_after", "norm_centred", "clip_after", "gate", "parallel")),
        *((name, _F) for name in ("norm_eps", "score_scale", "score_softcap", "clip", "value_scale")),
        ("keep", _F * 2),
        ("scale", _F * 2),
        ("leaving", _F),
    ]


class ModelWeights(ctypes.Structure):
    """What is outside the blocks."""

    _fields_ = [
        *((name, Matrix) for name in ("embed", "unembed", "pos_embed")),
        *((name, NormWeights) for name in ("embed_norm", "final_norm")),
    ]


class InferShape(ctypes.Structure):
    """Sizes and numbers of a design; a 0 soft cap or embedding scale means none."""

    _fields_ = [
        *((name, _I) for name in ("vocab", "d_model", "n_layers", "layer_norm", "slots", "capacity", "cache_bits")),
        *((name, _I) for name in ("rows", "narrow")),
        *((name, _F) for name in ("eps", "logit_scale", "logit_softcap", "embedding_scale")),
    ]


_INT, _POINTER, _SIZE = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
_SIGNATURES: dict[str, Signature] = {
    "gf_instructions": (ctypes.c_char_p, []),
    "gf_allocate": (_POINTER, [_SIZE]),
    "gf_free": (None, [_POINTER]),
    "gf_matrix_bytes": (_SIZE, [_INT, _INT, _INT]),
    "gf_pack": (None, [_INT, _INT, _INT, _POINTER, _POINTER, _INT]),
    "gf_narrows": (_INT, [_POINTER, _INT]),
    "gf_rescales": (_INT, [_POINTER, _INT]),
    "gf_unpack": (None, [_POINTER, _INT, _POINTER]),
    "gf_multiply": (_INT, [_POINTER, _POINTER, _INT, _POINTER]),
    "gf_read": (ctypes.c_double, [_POINTER, _SIZE, _INT]),
    "gf_create": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "gf_destroy": (None, [_POINTER]),
    "gf_forward": (_INT, [_POINTER, _INT, _POINTER, _POINTER, _POINTER, _INT, _POINTER, _POINTER, _INT]),
    "gf_copy": (None, [_POINTER, _INT, _INT, _INT]),
    "gf_prefix": (_SIZE, [_POINTER, _INT, _INT, _POINTER, _POINTER]),
}

LIBRARY = Library(
    "infer",
    _SIGNATURES,
    (Matrix, NormWeights, FeedWeights, RouterWeights, LayerWeights, ModelWeights, InferShape),
    subject="The fast engine",
    instead="text is generated through torch in float32 instead, several times slower",
)
library, compiled, unavailable = LIBRARY.get, LIBRARY.compiled, LIBRARY.unavailable


def instructions(lib: ctypes.CDLL) -> str:
    """Which instruction set the kernels were compiled for, in words."""
    return lib.gf_instructions().decode()
