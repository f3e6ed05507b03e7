"""What a layer's heads were handed from every position, and what multiplies it before the output projection.

It knows one traced forward; the output projection that follows is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.interp.recording import ALL, Index, Recording
from glassformer.model.choices import Attention, Parallel
from glassformer.model.parts.channels import ChannelsPart, ratio
from glassformer.model.parts.differential import DifferentialAttentionPart


def weights_and_values(forward: Recording, layer: int, query: int, head: int | None = None) -> tuple[Tensor, Tensor]:
    """What a query's heads (or one) were handed from every position up to its own, before any gate: weights (batch,
    head, key) and the values (batch, head, key, d_head) that they multiply.

    Where every channel has a share of its own, it stands in the values, and weights are 1.
    """
    seen, here = slice(0, query + 1), slice(query, query + 1)
    mixer, grid = forward.mixer(layer), f"{forward.prefix(layer)}.pattern"
    if isinstance(mixer, ChannelsPart):
        values = mixer.handed(forward.kept(layer), query)
        if forward.edits_grid(layer):
            shown = mixer.implied(forward.kept(layer, query + 1), query)[:, 0, 0]
            values = values * ratio(forward.grid(layer, grid, None, here, seen)[:, 0, 0], shown)[..., None]
        return torch.ones_like(values[:, None, :, 0]), values[:, None]
    weights = forward.grid(layer, grid, None if head is None else [head], here, seen)[:, :, 0]
    values = forward.values(layer, seen).transpose(1, 2)
    shared = forward.config.n_heads(layer) // values.shape[1]
    if head is not None:
        return weights, values[:, head // shared, None]
    return weights, values.repeat_interleave(shared, dim=1)


def mixer_constant(forward: Recording, layer: int, query: int) -> Float[Tensor, "batch d_model"] | None:
    """What a layer's mixer adds at a query that comes from no position, its output projection's bias apart."""
    mixer = forward.mixer(layer)
    if not isinstance(mixer, ChannelsPart) or mixer.constant is None:
        return None
    times = output_factor(forward, layer, slice(query, query + 1))
    assert times is not None
    return (times[:, 0, 0].double() * mixer.constant.double()) @ mixer.o.weight.double().T


def output_factor(forward: Recording, layer: int, at: Index = ALL) -> Float[Tensor, "batch query head d_head"] | None:
    """What each head's sum of values is multiplied by before the output projection; None for nothing.

    An attention's output gate and norm, or a state space's, with the norm's divisor as run.
    """
    mixer = forward.config.mixer(layer)
    if isinstance(mixer, Parallel):
        return forward.of_both(layer, lambda own: _factor(forward, layer, own, at))
    return _factor(forward, layer, mixer, at)


def _factor(forward: Recording, layer: int, mixer: Any, at: Index) -> Tensor | None:
    if not isinstance(mixer, Attention):
        prefix = f"blocks.{layer}.{mixer.prefix}."
        return forward.recurrence(layer).factor(forward.get(prefix + "mixed", at), forward.get(prefix + "gate", at))
    part = forward.attention(layer)
    if isinstance(part, DifferentialAttentionPart):
        times = part.head_times(forward.recorded[f"blocks.{layer}.attn.pair_scale"][:, at])
        return times.expand(-1, -1, -1, part.d_value)
    gate = None if part.gate is None else forward.get(f"blocks.{layer}.attn.gate", at)
    if part.out_norm is None:
        return gate
    times = part.normed_times(forward.recorded[f"blocks.{layer}.attn.z_scale"][:, at])
    return times if gate is None else gate * times
