"""Which lens is right: each lens' claim about an edit against what the edit does.

A lens claims how much a token's logit changes when the stream changes. At drawn positions the stream is moved a little
along the direction that each lens reads the token by, and along a random one; the model runs on from there, and the
claims are compared with what came out. Knows one trace; the lenses are given to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.interp.readout import Readout, read
from glassformer.interp.run_from import Context
from glassformer.interp.vocabulary import known_ids

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.model import Transformer

# Length of each edit, as a share of the stream's own.
STEP = 0.05
# A token is drawn from so many of the model's likeliest.
CHOICES = 10
# So many samples are computed at once.
TOGETHER = 32


@dataclass(frozen=True)
class Agreement:
    """Claims and effects of edits in one layer; a claim or effect is the change of a logit over the vocabulary's mean.

    Attributes:
        lenses: names, in the order of `claimed`'s first axis; of its edits too, with a random direction last.
        claimed: (lens, sample, edit); measured: (sample, edit).
    """

    layer: int
    lenses: list[str]
    claimed: Float[Tensor, "lens sample edit"]
    measured: Float[Tensor, "sample edit"]

    def rows(self) -> list[dict[str, Any]]:
        """Per lens: the correlation of its claims with the effects of all edits, the mean effect of edits along it and
        that effect as a share of what it claims."""
        found = []
        for i, name in enumerate(self.lenses):
            both = torch.stack([self.claimed[i].flatten(), self.measured.flatten()])
            spread = bool((both.std(dim=1) > 0).all())
            own, effect = self.claimed[i, :, i], self.measured[:, i]
            found.append(
                {
                    "lens": name,
                    "layer": self.layer,
                    "correlation": float(torch.corrcoef(both)[0, 1]) if spread else None,
                    "effect": float(effect.mean()),
                    "share": float((effect * own).sum() / own.square().sum()) if bool((own != 0).any()) else None,
                }
            )
        return found


@torch.no_grad()
def agreement(
    trace: Trace, layer: int, lenses: Mapping[str, Readout | None], *, samples: int = 16, seed: int = 0
) -> Agreement:
    """Compare lenses in the stream as it leaves a layer.

    Args:
        lenses: by name; None is the plain lens.
        samples: positions (the first left out), each with a token drawn from the model's likeliest there.
        seed: of the draw.

    Raises:
        UsageError: an edited trace, no lenses, or a text of one token.
    """
    layer = trace.layer(layer)
    forward, transformer = trace.forward, trace.transformer
    if forward.edit is not None:
        raise UsageError("Lenses are compared in the model as it is; trace it without edits.")
    if not lenses or samples < 1 or trace.length < 2:
        raise UsageError("Comparing lenses takes a lens, a sample, and a text of two tokens or more.")
    if layer == trace.config.n_layers - 1:
        raise UsageError("After the last layer every lens is the model itself; name an earlier layer.")
    generator = torch.Generator().manual_seed(seed)
    known = torch.tensor(known_ids(trace.vocabulary, transformer.config.vocab_size), device=transformer.device)
    stream = forward.get(f"blocks.{layer}.resid_post")
    draws = []
    for _ in range(samples):
        at = int(torch.randint(1, trace.length, (1,), generator=generator))
        nth = int(torch.randint(min(CHOICES, len(known)), (1,), generator=generator))
        draws.append((at, nth, torch.randn(stream.shape[-1], generator=generator, dtype=torch.float64)))
    claims, effects = [], []
    for low in range(0, samples, TOGETHER):
        positions, nths, randoms = zip(*draws[low : low + TOGETHER], strict=True)
        where = torch.tensor(positions, device=stream.device)
        before = score(read(transformer, forward.last()[0, where]))
        best = known[before[:, known].topk(min(CHOICES, len(known))).indices]
        tokens = best.gather(1, torch.tensor(nths, device=stream.device)[:, None])[:, 0]
        h = stream[0, where]
        ways = [_gradients(transformer, one, layer, h, tokens) for one in lenses.values()]
        edits = torch.stack([*ways, torch.stack(randoms).to(h)], 1)
        edits *= STEP * h.norm(dim=-1)[:, None, None] / edits.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        moved = h[:, None] + edits
        claims.append(torch.stack([_claimed(transformer, one, layer, h, moved, tokens) for one in lenses.values()]))
        effects.append(_effects(trace, layer, where, moved, tokens) - before.gather(1, tokens[:, None]))
    claimed, measured = torch.cat(claims, 1), torch.cat(effects)
    return Agreement(layer, list(lenses), claimed.double().cpu(), measured.double().cpu())


def score(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
    """Logits less the vocabulary's mean."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide - wide.mean(-1, keepdim=True)


def seen(
    transformer: Transformer, lens: Readout | None, layer: int, x: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch vocab"]:
    """The scores that a lens reads (None: the plain one) in a layer's stream."""
    return score(read(transformer, x if lens is None else lens.of(transformer, layer, x)))


def _gradients(
    transformer: Transformer,
    lens: Readout | None,
    layer: int,
    h: Float[Tensor, "sample d_model"],
    tokens: Int[Tensor, " sample"],
) -> Float[Tensor, "sample d_model"]:
    """Of the score that a lens reads for each sample's own token."""
    with torch.enable_grad():
        x = h.detach().clone().requires_grad_()
        own = seen(transformer, lens, layer, x).gather(1, tokens[:, None])
        return torch.autograd.grad(own.sum(), x)[0]


def _claimed(
    transformer: Transformer,
    lens: Readout | None,
    layer: int,
    h: Float[Tensor, "sample d_model"],
    moved: Float[Tensor, "sample edit d_model"],
    tokens: Int[Tensor, " sample"],
) -> Float[Tensor, "sample edit"]:
    """How much a lens says that each sample's own token gains when its stream is moved."""
    both = seen(transformer, lens, layer, torch.cat([h[:, None], moved], 1))
    own = both.gather(2, tokens[:, None, None].expand(-1, both.shape[1], -1))[..., 0]
    return own[:, 1:] - own[:, :1]


def _effects(
    trace: Trace,
    layer: int,
    at: Int[Tensor, " sample"],
    moved: Float[Tensor, "sample edit d_model"],
    tokens: Int[Tensor, " sample"],
) -> Float[Tensor, "sample edit"]:
    """The score of each sample's own token when its stream is moved; the samples of one position run together."""
    found = torch.empty(moved.shape[:2], dtype=torch.float64, device=moved.device)
    for position in set(at.tolist()):
        here = (at == position).nonzero()[:, 0]
        after = effect(trace, layer, position, moved[here].flatten(0, 1)).unflatten(0, (len(here), -1))
        found[here] = after.gather(2, tokens[here][:, None, None].expand(-1, after.shape[1], -1))[..., 0].to(found)
    return found


def effect(trace: Trace, layer: int, at: int, x: Float[Tensor, "edit d_model"]) -> Float[Tensor, "edit vocab"]:
    """Scores at a position when a layer leaves `x` there, the rest of the model run on from it."""
    forward, rows = trace.forward, len(x)
    shared = {
        key: (k[:, :, : at + 1].expand(rows, -1, -1, -1), v[:, :, : at + 1].expand(rows, -1, -1, -1))
        for key, (k, v) in forward.shared(layer + 1).items()
    }
    last = trace.transformer.stream(
        x[:, None],
        forward.positions[:, at : at + 1].expand(rows, -1),
        start=at,
        layers=range(layer + 1, trace.config.n_layers),
        cache=Context(forward, at, rows) if at else None,
        shared=shared,
        inputs=forward.inputs(slice(at, at + 1), rows),
    )
    return score(read(trace.transformer, last[:, 0]))
