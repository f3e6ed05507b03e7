"""The number that an explanation explains, and the linear reading of it from the residual stream.

The score of a token is read out of the last residual stream by the final norm and the unembedding. With
the norm's divisor fixed as run, that is linear: one vector to take the inner product with. Everything is
accumulated in float64, whatever the model's precision. Knows one position of one trace.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UnsupportedError, UsageError
from glassformer.interp.head_outputs import gain
from glassformer.model.config import Config

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace

LOGIT = "logit minus the vocabulary's mean"
PRECAP = "logit before the soft cap, minus the vocabulary's mean"
DIFFERENCE = "logit difference"
PRECAP_DIFFERENCE = "difference of the logits before the soft cap"


@dataclass(frozen=True)
class Direction:
    """A token's (or a difference's) direction in the normed residual stream.

    Attributes:
        token, against: ids.
        vector: float64; its product with `final.normed`, plus `offset`, is the number.
        unit: the number's unit, in words.
        offset: what the unembedding's own bias adds to the number.
    """

    token: int
    against: int | None
    vector: Float[Tensor, " d_model"]
    unit: str
    offset: float = 0.0


def linear(config: Config) -> None:
    """Raise UnsupportedError where the final norm does not read the residual stream itself."""
    if config.head is not None:
        raise UnsupportedError(
            "A matrix and an activation stand between this model's last residual stream and its final norm, so a score "
            "is no sum of parts of the stream."
        )


@torch.no_grad()
def direction(trace: Trace, token: str | int | None, against: str | int | None, position: int) -> Direction:
    """The direction of a token after a position; None means the most probable one there."""
    chosen = int(trace.logits(position).argmax()) if token is None else trace.token_id(token)
    other = None if against is None else trace.token_id(against)
    if other == chosen:
        raise UsageError(f"{trace.token_text(chosen)!r} cannot be explained against itself; name another token.")
    w = trace.transformer.unembedding
    times = trace.config.logit_scale or 1.0
    b = trace.transformer.unembed_bias
    rest = w.sum(0, dtype=torch.float64) / w.shape[0] if other is None else w[other].double()
    offset = 0.0
    if b is not None:
        offset = float(b[chosen].double() - (b.double().mean() if other is None else b[other].double())) * times
    capped = trace.config.logit_softcap is not None
    if other is None:
        unit = PRECAP if capped else LOGIT
    else:
        unit = PRECAP_DIFFERENCE if capped else DIFFERENCE
    return Direction(chosen, other, (w[chosen].double() - rest) * times, unit, offset)


@dataclass(frozen=True)
class Target:
    """What is explained: one number at one position, and how the stream gives it.

    Attributes:
        way: the token's direction; position: after which it is predicted.
        value: the number as run (product with the normed stream of the forward), float64.
        stream: the last residual stream at the position, float64.
        reading: vector whose product with a part of the stream is that part's share, the final norm's
            divisor as run; a LayerNorm's centring is in it. Where a layer stands before the final norm, so is that
            layer, its norm's divisor and what its activation multiplied each number by as run.
        bias: the share of the final norm's bias, and of such a layer's.
        again: the number of any last streams, all after them computed anew, where such a layer stands between.
        logit, probability: of the token, as the model said.
        softcap: the step from the score before the cap to the logit, or None.
    """

    way: Direction
    position: int
    value: float
    stream: Float[Tensor, " d_model"]
    reading: Float[Tensor, " d_model"]
    bias: float
    scale: float
    eps: float
    centred: bool
    normed: bool
    logit: float
    probability: float
    softcap: dict[str, Any] | None
    again: Callable[[Float[Tensor, "*part d_model"]], Float[Tensor, "*part"]] | None = None

    def share(self, parts: Float[Tensor, "*part d_model"]) -> Float[Tensor, "*part"]:
        """Each part's share of the number, in float64."""
        return parts.double() @ self.reading

    def without(
        self, claimed: Float[Tensor, "*part"], overlap: Float[Tensor, "*part"], square: Float[Tensor, "*part"]
    ) -> Float[Tensor, "*part"]:
        """The number if a part were removed from the last stream alone, the final norm computed anew.

        Args:
            claimed: the part's share; overlap: its product with the (centred) stream; square: its own
                (centred) squared length. Three scalars suffice: no part is written out in full.
        """
        if not self.normed:
            return self.share(self.stream) - claimed + self.bias
        d = self.stream.shape[0]
        x = self.stream - self.stream.mean() if self.centred else self.stream
        mean_square = (x.square().sum() - 2 * overlap + square).clamp(min=0) / d
        new_scale = (mean_square + self.eps).sqrt()
        old = (x.square().sum() / d + self.eps).sqrt()
        linear = self.share(self.stream) - claimed
        return linear * (old / new_scale) + self.bias


@torch.no_grad()
def target(trace: Trace, token: str | int | None, against: str | int | None, position: int) -> Target:
    """The number to explain, from a trace of one text."""
    position = trace.position(position)
    way = direction(trace, token, against, position)
    forward, norm = trace.forward, trace.transformer.final
    at = slice(position, position + 1)
    stream, head = forward.last(at)[0, 0].double(), trace.transformer.head
    read = stream if head is None else forward.read_out(at)[0, 0].double()  # what the final norm reads
    scale, eps, centring = 1.0, 0.0, False
    if norm is not None:
        eps, centring = norm.eps, norm.centred
        scale = float(forward.get("final.scale", at)[0, 0, 0].double())
    if norm is not None and "final.scale" not in forward.recorded:
        centred = read - read.mean() if norm.centred else read
        scale = math.sqrt(float(centred.square().mean()) + norm.eps)
    reading = way.vector * gain(norm, way.vector) / scale
    if centring:
        reading = reading - reading.mean()
    bias = way.offset
    if norm is not None and norm.bias is not None:
        bias += float(way.vector @ norm.bias.double())
    again = None
    if head is not None:
        reading, more = _through_head(trace, reading, at)
        bias += more
        again = functools.partial(_number, trace, way)
    value = float(way.vector @ forward.get("final.normed", at)[0, 0].double()) + way.offset
    logits = trace.logits(position).double()
    cap = trace.config.logit_softcap
    step = None
    if cap is not None:
        before = float(trace.at("logits.precap", position)[way.token])
        step = {"cap": cap, "before": before, "after": float(logits[way.token])}
    return Target(
        way=way,
        position=position,
        value=value,
        stream=stream,
        reading=reading,
        bias=bias,
        scale=scale,
        eps=eps,
        centred=centring,
        normed=norm is not None,
        logit=float(logits[way.token]),
        probability=float(torch.softmax(logits, -1)[way.token]),
        softcap=step,
        again=again,
    )


def _through_head(
    trace: Trace, reading: Float[Tensor, " d_model"], at: slice
) -> tuple[Float[Tensor, " d_model"], float]:
    """A reading of what the final norm reads as one of the last residual stream, and what the biases between give."""
    head, forward = trace.transformer.head, trace.forward
    assert head is not None
    pre, norm = forward.get("head.pre", at)[0, 0].double(), head.norm
    given = forward.read_out(at)[0, 0].double()
    factor = torch.where(pre == 0, 0.0, given / torch.where(pre == 0, 1.0, pre))
    onto = reading * factor
    bias = 0.0 if head.dense.bias is None else float(onto @ head.dense.bias.double())
    onto = onto @ head.dense.weight.double()
    if norm.bias is not None:
        bias += float(onto @ norm.bias.double())
    stream = forward.last(at)[0, 0].double()
    if "head.scale" in forward.recorded:
        scale = forward.recorded["head.scale"][0, at][0, 0].double()
    else:
        centred = stream - stream.mean() if norm.centred else stream
        scale = (centred.square().mean() + norm.eps).sqrt()
    onto = onto * gain(norm, onto) / scale
    return (onto - onto.mean() if norm.centred else onto), bias


@torch.no_grad()
def _number(trace: Trace, way: Direction, streams: Float[Tensor, "*part d_model"]) -> Float[Tensor, "*part"]:
    """The number that these last residual streams give."""
    transformer = trace.transformer
    normed = transformer.normed(streams.to(transformer.device, transformer.dtype)).double()
    return normed @ way.vector + way.offset
