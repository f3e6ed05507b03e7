"""Numbers packed into the blocks that GGUF stores: halves, bfloat16, and 4, 6 or 8 bits with scales.

Q4_K and Q6_K are packed here, because the `gguf` package only reads them; all else is that package's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# What a file is written in -> (kind of block of its matrices, of embedding and unembedding, number of the whole file).
KINDS: Mapping[str, tuple[str, str, int]] = {
    "float32": ("F32", "F32", 0),
    "float16": ("F16", "F16", 1),
    "bfloat16": ("BF16", "BF16", 32),
    "q8_0": ("Q8_0", "Q8_0", 7),
    "q4_0": ("Q4_0", "Q6_K", 2),
    "q4_k": ("Q4_K", "Q6_K", 15),
    "q6_k": ("Q6_K", "Q6_K", 18),
}
_WIDTH = {"Q8_0": 32, "Q5_0": 32, "Q4_0": 32, "Q4_K": 256, "Q6_K": 256}
_NEXT = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}


def fitting(kind: str, width: int) -> str:
    """The kind itself, or the next larger one whose blocks rows of this width can be cut into."""
    while width % _WIDTH.get(kind, 1):
        kind = _NEXT.get(kind, "F16")
    return kind


def packed(values: np.ndarray, kind: str) -> np.ndarray:
    """Values in float32 as blocks, in bytes (uint8) where they are no plain floats; rows stay rows."""
    if kind == "F32":
        return values
    if kind == "F16":
        return values.astype(np.float16)
    if kind in ("Q4_K", "Q6_K"):
        pack = _q4_k if kind == "Q4_K" else _q6_k
        blocks = np.ascontiguousarray(values, dtype=np.float32).reshape((-1, 256))
        return np.concatenate([pack(part) for part in np.array_split(blocks, max(1, len(blocks) // 4096))]).reshape(
            (*values.shape[:-1], -1)
        )
    from gguf import GGMLQuantizationType, quantize

    found: np.ndarray = quantize(np.ascontiguousarray(values, dtype=np.float32), GGMLQuantizationType[kind])
    return found


def _half(x: np.ndarray) -> np.ndarray:
    """Rounded to float16, as blocks hold their scales."""
    return x.astype(np.float16).astype(np.float32)


def _divided(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    """x / by, and 0 where `by` is."""
    return np.divide(x, by, out=np.zeros(np.broadcast_shapes(x.shape, by.shape), np.float32), where=by != 0)


def _bytes(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8).reshape((len(part), -1)) for part in parts], 1)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    """(blocks, 256) as 8 runs of 32 whole numbers from 0 to 15, each with a scale and a floor of 6 bits."""
    x = blocks.reshape((-1, 8, 32))
    low, high = np.minimum(x.min(-1), 0), np.maximum(x.max(-1), 0)
    best = np.full(low.shape, np.inf, np.float32)
    scale, floor = np.zeros_like(low), np.zeros_like(low)
    for share in (1.0, 0.95, 0.9, 0.85, 0.8):  # a smaller range serves most values better than the outermost
        step = (high - low) * np.float32(share / 15)
        lowest = low * np.float32(share)
        q = np.clip(np.rint(_divided(x - lowest[..., None], step[..., None])), 0, 15)
        error = ((q * step[..., None] + lowest[..., None] - x) ** 2).sum(-1)
        better = error < best
        best, scale, floor = (np.where(better, a, b) for a, b in ((error, best), (step, scale), (-lowest, floor)))
    d, m = _half(scale.max(-1, keepdims=True) / 63), _half(floor.max(-1, keepdims=True) / 63)
    scales = np.clip(np.rint(_divided(scale, d)), 0, 63).astype(np.uint8)
    floors = np.clip(np.rint(_divided(floor, m)), 0, 63).astype(np.uint8)
    step, lowest = (d * scales)[..., None], (m * floors)[..., None]
    q = np.clip(np.rint(_divided(x + lowest, step)), 0, 15).astype(np.uint8)
    a, b = scales[:, :4], scales[:, 4:]
    e, f = floors[:, :4], floors[:, 4:]
    sixes = np.concatenate([a | (b >> 4) << 6, e | (f >> 4) << 6, (b & 15) | (f & 15) << 4], 1)
    pairs = q.reshape((-1, 4, 2, 32))
    return _bytes(d.astype(np.float16), m.astype(np.float16), sixes, pairs[:, :, 0] | pairs[:, :, 1] << 4)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    """(blocks, 256) as 16 runs of 16 whole numbers from -32 to 31, each with a scale of 8 bits."""
    x = blocks.reshape((-1, 16, 16))
    at = np.abs(x).argmax(-1)[..., None]
    scale = np.take_along_axis(x, at, -1)[..., 0] / -32
    largest = np.take_along_axis(scale, np.abs(scale).argmax(-1)[:, None], -1)
    d = _half(largest / -128)
    scales = np.clip(np.rint(_divided(scale, d)), -128, 127).astype(np.int8)
    q = np.clip(np.rint(_divided(x, (d * scales)[..., None])), -32, 31).astype(np.int8)
    six = (q + 32).astype(np.uint8).reshape((-1, 256))
    low, high = (six & 15).reshape((-1, 2, 2, 64)), (six >> 4).reshape((-1, 2, 4, 32))
    quarters = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return _bytes(low[:, :, 0] | low[:, :, 1] << 4, quarters, scales, d.astype(np.float16))
