"""One head's query or key as an affine function of the residual stream, everything else held as it ran.

Norms keep their divisors, cuts the factor by which they shortened each dimension, rotations their angle; what is
left of the way from the stream to the score is a matrix and a bias, in float64. Knows one position of one trace.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.interp.head_outputs import gain
from glassformer.interp.recording import Recording
from glassformer.model.choices import Parallel
from glassformer.model.layers import Linear
from glassformer.model.norms import NormLayer
from glassformer.model.parts.attention import AttentionPart, length_scale
from glassformer.model.parts.latent import LatentAttentionPart
from glassformer.model.positions import rotate


@dataclass(frozen=True)
class Affine:
    """y = matrix · x + bias, and `value`, what y was in the run."""

    matrix: Float[Tensor, "d_out d_in"]
    bias: Float[Tensor, " d_out"]
    value: Float[Tensor, " d_out"]

    def rows(self, chosen: slice) -> Affine:
        """Some dimensions of it."""
        return Affine(self.matrix[chosen], self.bias[chosen], self.value[chosen])

    def times(self, factor: Float[Tensor, "*d_out"]) -> Affine:
        """Each dimension multiplied by a number."""
        matrix = self.matrix * (factor[:, None] if factor.ndim else factor)
        return Affine(matrix, self.bias * factor, self.value * factor)

    def through(self, weight: Float[Tensor, "d_new d_out"], bias: Tensor | None = None) -> Affine:
        """Read by a matrix."""
        weight = weight.to(self.bias)
        added = torch.zeros_like(weight[:, 0]) if bias is None else bias.to(self.bias)
        return Affine(weight @ self.matrix, weight @ self.bias + added, weight @ self.value + added)

    def cut(self, most: float | None) -> Affine:
        """Cut to ±most: each dimension times the factor by which the run shortened it."""
        if most is None:
            return self
        return self.times(most / self.value.abs().clamp(min=most))

    def normed(self, norm: NormLayer | None, head: slice | None = None, scale: Tensor | None = None) -> Affine:
        """Normed with the divisor of the run (or the one given); `head` picks some dimensions afterwards, or a
        head's row of a norm whose heads have weights of their own."""
        if norm is None:
            return self if head is None or len(self.bias) == head.stop - head.start else self.rows(head)
        scale = norm.scale(self.value) if scale is None else scale.to(self.value)
        centred = self
        if norm.centred:
            matrix, bias, value = (x - x.mean(0) for x in (self.matrix, self.bias, self.value))
            centred = Affine(matrix, bias, value)
        factors = gain_of(norm, self.value)
        added: Tensor | None = norm.bias
        if factors.ndim > 1:
            assert head is not None
            at = head.start // factors.shape[1]
            factors, added, head = factors[at], None if added is None else added[at], None
        out = centred.times(factors / scale)
        if added is not None:
            added = added.to(self.bias)
            out = Affine(out.matrix, out.bias + added, out.value + added)
        return out if head is None or len(out.bias) == head.stop - head.start else out.rows(head)

    def rotated(self, cos: Float[Tensor, "1 1 1 pair"], sin: Float[Tensor, "1 1 1 pair"], d_head: int) -> Affine:
        """Rotated by a position's angles, head by head."""

        def rotated_rows(x: Tensor) -> Tensor:
            return rotate(x.reshape(1, -1, x.shape[-1] // d_head, d_head), cos, sin).reshape(x.shape)

        return Affine(rotated_rows(self.matrix.T.contiguous()).T, rotated_rows(self.bias), rotated_rows(self.value))


def gain_of(norm: NormLayer, like: Tensor) -> Tensor:
    """What a norm multiplies by after dividing, ones where nothing is learned."""
    found = norm.gain
    return gain(norm, like) if found is None or found.ndim == 1 else found.to(like)


def query_side(forward: Recording, layer: int, head: int, position: int) -> Affine:
    """A head's query at a position, as its scores use it, from the stream that its layer reads."""
    part = forward.attention(layer)
    rows = slice(head * part.d_head, (head + 1) * part.d_head)
    x, norm, scale = _read(forward, layer, position)
    times = _input_scale(forward, layer)
    if isinstance(part, LatentAttentionPart) and part.q is None:
        assert part.q_down is not None
        assert part.q_up is not None
        latent = _projected(x, norm, scale, part.q_down, times=times).normed(part.q_latent)
        if part.latent.latent_scale is not None:
            latent = latent.times(x.new_tensor(part.latent.latent_scale[0]))
        return _rotated(forward, layer, latent.through(part.q_up.weight[rows]), position, "q", head)
    assert part.q is not None
    return _rotated(forward, layer, _ready(part, x, norm, scale, part.q, part.q_norm, rows, times), position, "q", head)


def key_side(forward: Recording, layer: int, head: int, position: int) -> Affine:
    """A key-value head's key at a position, as scores use it, from the stream that the keys' layer reads."""
    layer = forward.keys_of(layer)
    part = forward.attention(layer)
    rows = slice(head * part.d_head, (head + 1) * part.d_head)
    x, norm, scale = _read(forward, layer, position)
    times = _input_scale(forward, layer)
    if isinstance(part, LatentAttentionPart):
        own = slice(head * part.latent.own_size, (head + 1) * part.latent.own_size)
        latent = _projected(x, norm, scale, part.kv_down, times=times).normed(part.kv_latent)
        if part.latent.latent_scale is not None:
            latent = latent.times(x.new_tensor(part.latent.latent_scale[1]))
        pieces = [
            _projected(x, norm, scale, part.k_shared, times=times).normed(part.k_shared_norm),
            latent.through(part.k_own.weight[own]),
        ]
        joined = Affine(*(torch.cat([getattr(p, name) for p in pieces]) for name in ("matrix", "bias", "value")))
        return _rotated(forward, layer, joined, position, "k", head)
    assert part.k is not None
    return _rotated(forward, layer, _ready(part, x, norm, scale, part.k, part.k_norm, rows, times), position, "k", head)


def _read(forward: Recording, layer: int, position: int) -> tuple[Tensor, NormLayer | None, Tensor | None]:
    """The stream before the mixer, the norm it goes through, and that norm's divisor where a tap set it."""
    at = slice(position, position + 1)
    x = forward.get(f"blocks.{layer}.{forward.read_by(layer, 1)}", at)[0, 0].double()
    set_by_tap = forward.recorded.get(f"blocks.{layer}.ln1.scale")
    return x, forward.block(layer).norm(1), None if set_by_tap is None else set_by_tap[0, position]


def _input_scale(forward: Recording, layer: int) -> float:
    """What multiplies the normed stream before the attention reads it: 1 but beside a recurrence."""
    mixer = forward.config.mixer(layer)
    return mixer.in_scales[0] if isinstance(mixer, Parallel) else 1.0


def _projected(
    x: Tensor, norm: NormLayer | None, scale: Tensor | None, by: Linear, rows: slice = slice(None), times: float = 1.0
) -> Affine:
    """Rows of a projection of the normed stream; no matrix of the stream's own width is formed."""
    bias = None if by.bias is None else by.bias[rows].double()
    weight = by.weight[rows].double() * times
    if norm is None:
        plain = torch.zeros(len(weight), dtype=x.dtype, device=x.device) if bias is None else bias
        return Affine(weight, plain, weight @ x + plain)
    divisor = norm.scale(x) if scale is None else scale.to(x)
    matrix = weight * (gain(norm, x) / divisor)
    if norm.centred:
        matrix = matrix - matrix.mean(1, keepdim=True)
    added = torch.zeros(len(weight), dtype=x.dtype, device=x.device) if bias is None else bias
    if norm.bias is not None:
        added = added + weight @ norm.bias.double()
    return Affine(matrix, added, matrix @ x + added)


def _ready(
    part: AttentionPart,
    x: Tensor,
    norm: NormLayer | None,
    scale: Tensor | None,
    by: Linear,
    own: NormLayer | None,
    rows: slice,
    times: float,
) -> Affine:
    """Projected, cut, and normed where the norm comes before rotation; all heads while a norm needs them."""
    whole = part.choice.qk_norm == "whole"
    found = _projected(x, norm, scale, by, slice(None) if whole else rows, times)
    before = None if part.choice.qk_norm_after else own
    keep = None if whole and part.choice.qk_norm_after else rows
    if part.choice.clip_after:
        return found.normed(before, keep).cut(part.choice.clip)
    return found.cut(part.choice.clip).normed(before, keep)


def _rotated(forward: Recording, layer: int, found: Affine, position: int, side: str, head: int) -> Affine:
    """Rotated, normed where the norm comes after, and scaled by the position where the design does."""
    part = forward.attention(layer)
    at = forward.positions[:, position : position + 1]
    if part.table is not None:
        cos, sin = (x.double() for x in forward.transformer.angles(at, forward.positions.amax(1) + 1)[part.table])
        found = found.rotated(cos, sin, part.d_head)
    if part.choice.qk_norm_after:
        rows = slice(head * part.d_head, (head + 1) * part.d_head)
        found = found.normed(part.q_norm if side == "q" else part.k_norm, rows)
    if side == "q" and part.choice.length_scale is not None:
        found = found.times(length_scale(part.choice, at)[0, 0].double())
    return found
