"""Differential attention as a module: each pair of heads gives the normed difference of what its two heads read."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.choices import DifferentialAttention, Norm
from glassformer.model.choices.differential import LAMBDAS
from glassformer.model.layers import Linear
from glassformer.model.norms import at_least_float32
from glassformer.model.parts.attention import AttentionPart
from glassformer.model.sites import View, see


class DifferentialAttentionPart(AttentionPart):
    """One layer's differential attention; what the output projection reads is the sum of both heads of a pair, the
    second one's share negative."""

    lambda_q1: Tensor
    lambda_k1: Tensor
    lambda_q2: Tensor
    lambda_k2: Tensor

    def __init__(self, choice: DifferentialAttention, d_model: int, norm: Norm, layer: int, table: int | None) -> None:
        super().__init__(choice, d_model, norm, layer, table)
        self.pairs = choice
        self.v = Linear(d_model, choice.n_kv_heads * choice.d_head, choice.bias)
        for name in LAMBDAS:
            self.register_parameter(name, nn.Parameter(torch.empty(choice.d_head)))

    @property
    def taken(self) -> Float[Tensor, ""]:
        """λ: how much of the second head is taken from the first."""
        one, two = (
            (at_least_float32(a) * at_least_float32(b)).sum().exp()
            for a, b in ((self.lambda_q1, self.lambda_k1), (self.lambda_q2, self.lambda_k2))
        )
        return (one - two + self.pairs.start).to(self.lambda_q1.dtype)

    def _read(self, v: Float[Tensor, "*batch key kv_head d_head"]) -> Float[Tensor, "*batch key kv_head d_value"]:
        """Values of two heads side by side, once for each half of the heads."""
        first, second = v.chunk(2, dim=-2)
        wide = torch.cat([first, second], -1)
        return torch.cat([wide, wide], -2)

    def keys_and_values(
        self, x: Float[Tensor, "batch key d_model"]
    ) -> tuple[Float[Tensor, "batch key kv_head d_head"], Float[Tensor, "batch key kv_head d_value"]]:
        assert self.k is not None
        assert self.v is not None
        k = self.k(x).view(*x.shape[:-1], self.kv_heads, self.d_head)
        return self._ready(k, self.k_norm), self._read(self.v(x).view(*x.shape[:-1], self.kv_heads, self.d_head))

    def given(
        self,
        z: Float[Tensor, "batch query head d_value"],
        x: Float[Tensor, "batch query d_model"],
        view: View | None,
    ) -> Float[Tensor, "batch query head d_value"]:
        first, second = z.chunk(2, dim=2)
        apart = at_least_float32(first - self.taken * second)
        scale = (apart.square().mean(-1) + self.pairs.pair_eps).sqrt().to(z.dtype)
        return z * self.head_times(see(view, "attn.pair_scale", scale))

    def head_times(self, scale: Float[Tensor, "batch query pair"]) -> Float[Tensor, "batch query head 1"]:
        """What each head's sum of values is multiplied by, the divisors of its pair given."""
        times = (1 - self.pairs.start) / scale
        return torch.cat([times, -self.taken * times], -1)[..., None]

    def write(self, z: Float[Tensor, "batch query head d_value"]) -> Float[Tensor, "batch query d_model"]:
        first, second = z.chunk(2, dim=2)
        return self.o((first + second).flatten(-2))

    @property
    def head_columns(self) -> Float[Tensor, "head d_model d_value"]:
        columns = self.o.weight.view(-1, self.heads // 2, self.d_value).transpose(0, 1)
        return torch.cat([columns, columns])

    @property
    def value_matrix(self) -> Float[Tensor, "value d_model"]:
        assert self.v is not None
        rows = self.v.weight.view(self.kv_heads, self.d_head, -1)
        first, second = rows.chunk(2)
        wide = torch.cat([first, second], 1)
        return torch.cat([wide, wide]).flatten(0, 1)
