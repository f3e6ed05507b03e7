"""Rotary positions: the angles, and turning queries and keys by them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.kernels import ops
from glassformer.model.choices import RopeScaling, Sinusoids

Angles = tuple[Tensor, Tensor]


class RotaryTable:
    """The angles of rotary positions (arXiv:2104.09864), one table per base.

    The frequencies are computed in float32 whatever the weights' precision, as the checkpoints were
    trained; a float64 model uses the same float32 frequencies, so it is the same function.
    """

    def __init__(self, dims: int, theta: float, scaling: RopeScaling | None) -> None:
        self.dims, self.theta, self.scaling = dims, theta, scaling
        self.varies = scaling is not None and scaling.varies
        self.frequencies = _frequencies(dims, theta, scaling)
        self.factor = scaling.attention_factor if scaling is not None and scaling.kind in ("yarn", "longrope") else 1.0
        self._on: dict[torch.device, Tensor] = {}

    def __call__(
        self,
        positions: Int[Tensor, "batch query"],
        dtype: torch.dtype,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch query 1 pair"], Float[Tensor, "batch query 1 pair"]]:
        """Cosine and sine of every rotated pair's angle at every position; `lengths` are those of the whole texts, up
        to the last of these positions where they are not given."""
        frequencies = self._on.get(positions.device)
        if frequencies is None:
            frequencies = self._on[positions.device] = self.frequencies.to(positions.device)
        if self.varies:
            lengths = positions.amax(1) + 1 if lengths is None else lengths
            frequencies = self._of_lengths(frequencies, lengths)
        angles = positions[..., None, None].float() * frequencies
        cos, sin = angles.cos(), angles.sin()
        if self.factor != 1.0:
            cos, sin = cos * self.factor, sin * self.factor
        return cos.to(dtype), sin.to(dtype)

    def regime(self, lengths: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """What of a text's length decides its frequencies: two texts with the same number have the same."""
        if not self.varies:
            return torch.zeros_like(lengths)
        assert self.scaling is not None
        original = self.scaling.original_context
        return (lengths > original).long() if self.scaling.kind == "longrope" else lengths.clamp(min=original)

    def _of_lengths(self, usual: Tensor, lengths: Int[Tensor, " batch"]) -> Float[Tensor, "batch 1 1 pair"]:
        assert self.scaling is not None
        scaling, beyond = self.scaling, (lengths > self.scaling.original_context)[:, None]
        if scaling.kind == "longrope":
            other = _powers(self.dims, self.theta).to(usual.device)
            other = 1.0 / (torch.tensor(scaling.long_factors, device=usual.device) * other)
        else:
            stretch = scaling.factor * lengths.float() / scaling.original_context - (scaling.factor - 1)
            base = self.theta * stretch.clamp(min=1.0) ** (self.dims / (self.dims - 2))
            shares = torch.arange(0, self.dims, 2, dtype=torch.int64, device=usual.device).float() / self.dims
            other = 1.0 / base[:, None] ** shares
        return torch.where(beyond, other, usual)[:, None, None]


class SinusoidTable:
    """The fixed vectors of positions (arXiv:1706.03762), computed in float32 as rotary angles are."""

    def __init__(self, d_model: int, choice: Sinusoids) -> None:
        self.first, half = choice.first, d_model // 2
        steps = torch.arange(half, dtype=torch.int64, device="cpu").float()
        if choice.closed:
            self.frequencies = torch.exp(steps * -(math.log(10_000) / (half - 1)))
        else:
            self.frequencies = 1 / torch.pow(10_000, 2 * steps / d_model)

    def __call__(self, positions: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        """The vector of each position, in float32."""
        angles = (positions + self.first).float()[..., None] * self.frequencies.to(positions.device)
        return torch.cat([angles.sin(), angles.cos()], -1)


def rotate(
    x: Float[Tensor, "batch query head d_head"], cos: Tensor, sin: Tensor
) -> Float[Tensor, "batch query head d_head"]:
    """Turn the first 2·pair dimensions of every head; the first half pairs with the second half."""
    return ops.rotate(x, cos, sin)


def _powers(dims: int, theta: float) -> Float[Tensor, " pair"]:
    return theta ** (torch.arange(0, dims, 2, dtype=torch.int64, device="cpu").float() / dims)


def _frequencies(dims: int, theta: float, scaling: RopeScaling | None) -> Float[Tensor, " pair"]:
    powers = _powers(dims, theta)
    frequencies = 1.0 / powers
    if scaling is None or scaling.kind == "dynamic":
        return frequencies
    if scaling.kind == "longrope":
        return 1.0 / (torch.tensor(scaling.factors, dtype=torch.float32, device="cpu") * powers)
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "proportional":
        still = torch.arange(dims // 2, device="cpu") >= int(scaling.share * dims // 2)
        return (frequencies / scaling.factor).masked_fill(still, 0.0)
    if scaling.kind == "factors":
        return frequencies / torch.tensor(scaling.factors, dtype=torch.float32, device="cpu")
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling)
    return _yarn(powers, dims, theta, scaling)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    turns = scaling.original_context * frequencies / (2 * math.pi)
    blend = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def _yarn(powers: Tensor, dims: int, theta: float, scaling: RopeScaling) -> Tensor:
    def pair_that_turns(times: float) -> float:
        return dims * math.log(scaling.original_context / (times * 2 * math.pi)) / (2 * math.log(theta))

    begin, end = pair_that_turns(scaling.high), pair_that_turns(scaling.low)
    if scaling.truncate:
        begin, end = math.floor(begin), math.ceil(end)
    first, last = max(begin, 0), min(end, dims - 1)
    width = max(last - first, 0.001)
    slow = ((torch.arange(dims // 2, dtype=torch.float32, device="cpu") - first) / width).clamp(0, 1)
    return (1.0 / (scaling.factor * powers)) * slow + (1.0 / powers) * (1 - slow)
