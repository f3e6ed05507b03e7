"""Places within a feed-forward part of experts, computed from what a trace kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from glassformer.model.parts.experts import ExpertsPart

if TYPE_CHECKING:
    from glassformer.interp.recording import Index, Recording


def in_experts(forward: Recording, layer: int, mlp: ExpertsPart, leaf: str, at: Index) -> Tensor:
    """A place of a feed-forward part of experts that the trace did not keep.

    Raises:
        KeyError: the part has no such place.
    """
    prefix, x = f"blocks.{layer}.mlp.", forward.input(layer, 2, at)
    stream = None if mlp.ln_in is None else forward.get(f"blocks.{layer}.{forward.read_by(layer, 2)}", at)
    if leaf == "router":
        return mlp.scored(x, stream)
    if leaf == "latent":
        return mlp.narrowed(mlp.entering(x, stream))
    if leaf in ("pre", "pre_linear"):
        gated = mlp.experts.gate is not None and leaf == "pre"
        read = mlp.entering(x, stream) if mlp.narrow is None else forward.get(prefix + "latent", at)
        return mlp.inputs("gate" if gated else "up", read, forward.recorded[prefix + "weights"][:, at])
    if leaf == "post":
        up = None if mlp.experts.gate is None else forward.get(prefix + "pre_linear", at)
        return mlp.post(forward.get(prefix + "pre", at), up, forward.recorded[prefix + "weights"][:, at])
    part = mlp.shared
    assert part is not None
    if leaf == "shared_pre":
        return part.pre(x)
    if leaf == "shared_pre_linear":
        return part.up(x)
    if leaf == "shared_post":
        up = None if part.gate is None else forward.get(prefix + "shared_pre_linear", at)
        return part.post(forward.get(prefix + "shared_pre", at), up)
    if leaf == "shared_gate":
        return mlp.shared_share(x)
    if leaf == "shared":
        out = mlp.scaled(part.down(forward.get(prefix + "shared_post", at)))
        if mlp.shared_gate is not None:
            out = out * forward.get(prefix + "shared_gate", at)
        return out if mlp.ln_shared is None else mlp.ln_shared(out)
    raise KeyError(prefix + leaf)
