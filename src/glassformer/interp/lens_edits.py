"""Interventions along what a lens reads: a token put into a layer's stream, or exchanged for another.

A lens reads a token by one vector of the stream. *Put* moves the stream along it; *swap* mirrors the stream so that the
directions of two tokens change places and its length stays. What the lens says of the moved stream is its claim; what
the rest of the model makes of it is measured beside it. Knows one trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.interp.agreement import effect, score, seen
from glassformer.interp.edit_ops import Apply
from glassformer.interp.head_outputs import gain
from glassformer.interp.logit_target import linear
from glassformer.interp.readout import Readout, read
from glassformer.interp.select import Places, Selection

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.model import Transformer
    from glassformer.model.sites import Where


def token_vector(
    transformer: Transformer, lens: Readout | None, layer: int, token: int, h: Float[Tensor, " d_stream"] | None = None
) -> Float[Tensor, " d_stream"]:
    """The unit vector of a layer's stream by which a lens (None: the plain one) reads a token, against the vocabulary's
    mean and with the final norm's divisor left out. What copies come to is read with the lengths that they have in `h`,
    held; a lens by all copies needs none."""
    linear(transformer.config)
    w, norm = transformer.unembedding, transformer.final
    way = w[token].double() - w.mean(0, dtype=torch.float64)
    way = way * gain(norm, way)
    if norm is not None and norm.centred:
        way = way - way.mean()
    if lens is not None:
        way = lens.matrices[layer].to(way).T @ way
    if h is not None and len(way) < len(h):
        with torch.enable_grad():
            x = h.detach().double().requires_grad_()
            way = torch.autograd.grad(_gathered(transformer, x) @ way, x)[0]
    return way / way.norm()


def _gathered(transformer: Transformer, x: Float[Tensor, " d_stream"]) -> Float[Tensor, " d_model"]:
    """What copies come to, their lengths held, in the model's own numbers."""
    own = transformer.gathered(x.to(transformer.dtype), held=True)
    return own.to(x.dtype)


@dataclass(frozen=True)
class LensEdit:
    """What a lens claims of an intervention, and what it does.

    Attributes:
        lens: kind of the lens, "plain" for none; layer, position: where the stream is moved.
        token: the one that is put in, or that another takes the place of; other: that one, for a swap.
        strength: how far a token is put in, in lengths of the stream; None for a swap.
        claimed, measured: (2, vocab) the scores before and after that the lens reads, and that the model gives.
        tap: the edit, for `model.edited`.
    """

    lens: str
    layer: int
    position: int
    token: int
    other: int | None
    strength: float | None
    claimed: Float[Tensor, "when vocab"]
    measured: Float[Tensor, "when vocab"]
    tap: Apply
    trace: Trace

    @property
    def correlation(self) -> float | None:
        """Pearson's, of claimed and measured changes over the vocabulary; None where nothing changes."""
        both = torch.stack([self.claimed[1] - self.claimed[0], self.measured[1] - self.measured[0]])
        return float(torch.corrcoef(both)[0, 1]) if bool((both.std(dim=1) > 0).all()) else None

    def to_dict(self, top: int = 5) -> dict[str, Any]:
        """Plain data for JSON: tokens with their probabilities before and after."""
        p, q = self.claimed.softmax(-1), self.measured.softmax(-1)
        text = self.trace.token_text

        def row(token: int) -> dict[str, Any]:
            return {
                "id": token,
                "token": text(token),
                "claimed": {"before": float(p[0, token]), "after": float(p[1, token])},
                "measured": {"before": float(q[0, token]), "after": float(q[1, token])},
            }

        return {
            "lens": self.lens,
            "layer": self.layer,
            "position": self.position,
            "strength": self.strength,
            "swap": self.other is not None,
            "tokens": [row(t) for t in (self.token, self.other) if t is not None],
            "top": [row(t) for t in self.measured[1].topk(min(top, self.measured.shape[1])).indices.tolist()],
            "kl": float((q[0] * (q[0] / q[1]).log()).nansum()),
            "correlation": self.correlation,
        }


@torch.no_grad()
def lens_edit(
    trace: Trace,
    layer: int,
    token: str | int,
    other: str | int | None = None,
    *,
    through: Readout | None = None,
    position: int = -1,
    strength: float = 0.5,
) -> LensEdit:
    """Put a token into a layer's stream at one position, or swap it with another.

    Args:
        other: the token that takes `token`'s place, and it its; None puts `token` in.
        through: the lens along whose vectors it is done; None for the plain one.
        strength: how far a token is put in, in lengths of the stream there.

    Raises:
        UsageError: an edited trace, the last layer, or a token swapped with itself.
        UnsupportedError: a design whose last stream the final norm does not read.
    """
    layer, at = trace.layer(layer), trace.position(position)
    if trace.forward.edit is not None:
        raise UsageError("A lens is tried on the model as it is; trace the text without edits.")
    if layer == trace.config.n_layers - 1:
        raise UsageError("After the last layer every lens is the model itself; name an earlier layer.")
    one, two = trace.token_id(token), None if other is None else trace.token_id(other)
    if one == two:
        raise UsageError(f"{trace.token_text(one)!r} cannot be swapped with itself; name another token.")
    h = trace.forward.get(f"blocks.{layer}.resid_post", slice(at, at + 1))[0]
    way = token_vector(trace.transformer, through, layer, one, h[0])
    if two is not None:
        way = way - token_vector(trace.transformer, through, layer, two, h[0])
        way = way / way.norm()

    def move(x: Tensor, where: Where | None = None) -> Tensor:
        wide = x.double()
        if two is not None:
            return (wide - 2 * (wide @ way)[..., None] * way).to(x)
        return (wide + strength * wide.norm(dim=-1, keepdim=True) * way).to(x)

    both = torch.cat([h, move(h)])
    before = score(read(trace.transformer, trace.forward.last(slice(at, at + 1))[0]))
    after = effect(trace, layer, at, both[1:])
    return LensEdit(
        lens="plain" if through is None else through.kind,
        layer=layer,
        position=at,
        token=one,
        other=two,
        strength=None if two is not None else strength,
        claimed=seen(trace.transformer, through, layer, both).double().cpu(),
        measured=torch.cat([before, after]).double().cpu(),
        tap=Apply((), layer, ("resid_post",), Selection(positions=Places.of(at)), move),
        trace=trace,
    )
