"""Where a part goes in a stream that stands in copies: the matrix from what it adds to what a later layer computes
with, or to the last stream.

Each layer mixes the copies by numbers that depend on the position and hands its parts to them in shares; the copies
are made one at the end. With these numbers as run, all of it is linear. Knows one position of one trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.interp import normed_sums
from glassformer.model.layers import Linear
from glassformer.model.parts.copies import CopiesPart, ratio

if TYPE_CHECKING:
    from glassformer.interp.recording import Recording


@dataclass
class Ways:
    """The ways of one position, float64.

    Attributes:
        after: per layer, what each copy that leaves it comes to in every copy of the last of them, (copy, copy).
        shares: per layer, how much of what attention and feed-forward add each copy takes.
        mixed: per layer, (copy, copy): how a copy that enters comes to those that leave it, its parts apart.
        ends: (copy, d_model, d_model), from each copy of the last of them to what is read.
        begins: (copy, d_model), the copies of the embedding.
    """

    after: list[Float[Tensor, "copy copy"]]
    shares: list[Float[Tensor, " copy"]]
    mixed: list[Float[Tensor, "copy copy"]]
    ends: Float[Tensor, "copy d_model d_model"]
    begins: Float[Tensor, "copy d_model"]

    def matrix(self, layer: int, weights: Float[Tensor, " copy"]) -> Float[Tensor, "d_model d_model"]:
        """From what a layer adds to its copies in these shares to what is read."""
        return torch.einsum("j,jab->ab", weights @ self.after[layer], self.ends)

    def of_part(self, layer: int, part: int) -> Float[Tensor, "d_model d_model"]:
        """The same for its attention and what stands beside it (1), its feed-forward part (2), its embedding (3)."""
        shares = self.shares[layer]
        return self.matrix(layer, shares if part < 3 else (torch.arange(len(shares)) > 0).to(shares))

    def embedding(self) -> Float[Tensor, " d_model"]:
        """What the embedding's copies come to in what is read."""
        through = self.mixed[0] @ self.after[0] if self.mixed else torch.eye(len(self.begins)).to(self.begins)
        return torch.einsum("ij,jab,ib->a", through, self.ends, self.begins)


def ways(forward: Recording, position: int, layers: int | None = None) -> Ways:
    """The ways of a position of one text through the first layers to the copy that the next one computes with; None
    for all layers, to the last stream."""
    at = slice(position, position + 1)
    streams = dict(forward.walk(at))
    shares, mixed = [], []
    for layer in range(forward.config.n_layers if layers is None else layers):
        block, prefix = forward.block(layer), f"blocks.{layer}."
        copies = block.copies
        assert isinstance(copies, CopiesPart)
        first = streams[prefix + "resid_pre"][0, 0].unflatten(-1, (copies.n, -1))[0]
        middle, added = streams[prefix + "resid_mid"], forward.recorded[prefix + "mlp.out"][:, at]
        share = copies.shares(block.joined(2, middle, added))[0, 0].double()
        own = copies.mixing(first).double().T  # (taken, predicted)
        keep = block.choice.stream_scale(1) - 1.0
        mixed.append(own + keep * own[:, :1] * share)
        shares.append(share)
    begins = streams["blocks.0.resid_pre"][0, 0].double().unflatten(-1, (-1, forward.config.d_model))
    after = [torch.eye(len(begins)).to(begins)]
    for one in reversed(mixed[1:]):
        after.append(one @ after[-1])
    ends = _last_ends(forward, streams) if layers is None else _next_ends(forward, streams, layers)
    return Ways(after[::-1], shares, mixed, ends, begins)


def _next_ends(forward: Recording, streams: dict[str, Tensor], layer: int) -> Float[Tensor, "copy d_model d_model"]:
    """From each copy that enters a layer to the one that it computes with."""
    copies, entering = forward.block(layer).copies, streams[f"blocks.{layer}.resid_pre"][0, 0]
    assert isinstance(copies, CopiesPart)
    taken = copies.mixing(entering.unflatten(-1, (copies.n, -1))[0])[0].double()
    return taken[:, None, None] * torch.eye(forward.config.d_model).to(taken)


def _last_ends(forward: Recording, streams: dict[str, Tensor]) -> Float[Tensor, "copy d_model d_model"]:
    """From each copy that leaves the last layer to the stream that is unembedded."""
    n, transformer = forward.config.copies, forward.transformer
    assert n is not None
    last = streams[f"blocks.{forward.config.n_layers - 1}.resid_post"][0, 0].unflatten(-1, (n, -1))
    ends = [torch.eye(last.shape[1], dtype=torch.float64, device=last.device)]
    for copy, gather in zip(last[1:], transformer.gather, strict=True):
        assert isinstance(gather, Linear)
        ends.append(gather.weight.double() * ratio(last[0], gather(copy)).double())
    return torch.stack(ends) / n


def carried(
    forward: Recording, layer: int, part: int, position: int, x: Float[Tensor, "*part d_model"]
) -> Float[Tensor, "*part d_model"]:
    """What a mixer (1) or feed-forward part (2) adds at a position, as it stands in the last stream."""
    if any(choice.norms == "sum" for choice in forward.config.layers):
        return x.double() @ normed_sums.ways(forward, position, forward.config.n_layers).parts[layer, part].T
    if forward.config.copies is None:
        return x * forward.carried(layer, part)
    return x.double() @ ways(forward, position).of_part(layer, part).T


def walk_copies(
    forward: Recording, layer: int, x: Float[Tensor, "batch query wide"], at: slice | Tensor
) -> Iterator[tuple[str, Tensor]]:
    """The stream at every place of a layer that computes with one of several copies, from all of them before it."""
    block, prefix = forward.block(layer), f"blocks.{layer}."
    copies = block.copies
    assert isinstance(copies, CopiesPart)

    def kept(name: str, y: Tensor) -> Tensor:
        return forward.recorded[name][:, at] if name in forward.recorded else y

    added = {part: forward.recorded[f"{prefix}{part}.out"][:, at] for part in ("attn", "laurel", "mlp", "ple")}
    x = kept(prefix + "resid_pre", x)
    yield prefix + "resid_pre", x
    predicted = copies.predicted(x)
    active = kept(prefix + "resid_active", predicted[..., 0, :])
    yield prefix + "resid_active", active
    middle = kept(prefix + "resid_mid", block.joined(1, active, added["attn"]) + added["laurel"])
    yield prefix + "resid_mid", middle
    late = copies.corrected(block.replaced(predicted, active), block.joined(2, middle, added["mlp"]))
    late = kept(prefix + "resid_late", late)
    yield prefix + "resid_late", late
    yield prefix + "resid_post", kept(prefix + "resid_post", late + copies.beside(added["ple"]))
