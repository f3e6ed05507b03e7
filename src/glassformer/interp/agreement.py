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
from jaxtyping import Float
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
    claims, effects = [], []
    for _ in range(samples):
        at = int(torch.randint(1, trace.length, (1,), generator=generator))
        h = stream[0, at]
        before = score(read(transformer, forward.last(slice(at, at + 1))[0]))
        best = known[before[0][known].topk(min(CHOICES, len(known))).indices]
        token = int(best[torch.randint(len(best), (1,), generator=generator)])
        random = torch.randn(h.shape, generator=generator, dtype=torch.float64).to(h)
        ways = torch.stack([*(_gradient(transformer, one, layer, h, token) for one in lenses.values()), random])
        edits = ways / ways.norm(dim=-1, keepdim=True).clamp(min=1e-30) * STEP * h.norm()
        claims.append([_claimed(transformer, one, layer, h, edits, token) for one in lenses.values()])
        effects.append(effect(trace, layer, at, h + edits)[:, token] - before[0, token])
    claimed = torch.stack([torch.stack([row[i] for row in claims]) for i in range(len(lenses))])
    return Agreement(layer, list(lenses), claimed.double().cpu(), torch.stack(effects).double().cpu())


def score(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
    """Logits less the vocabulary's mean."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide - wide.mean(-1, keepdim=True)


def seen(
    transformer: Transformer, lens: Readout | None, layer: int, x: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch vocab"]:
    """The scores that a lens reads (None: the plain one) in a layer's stream."""
    return score(read(transformer, x if lens is None else lens(layer, transformer.gathered(x))))


def _gradient(transformer: Transformer, lens: Readout | None, layer: int, h: Tensor, token: int) -> Tensor:
    with torch.enable_grad():
        x = h.detach().clone().requires_grad_()
        return torch.autograd.grad(seen(transformer, lens, layer, x[None])[0, token], x)[0]


def _claimed(
    transformer: Transformer, lens: Readout | None, layer: int, h: Tensor, edits: Tensor, token: int
) -> Tensor:
    both = seen(transformer, lens, layer, torch.cat([h[None], h + edits]))[:, token]
    return both[1:] - both[0]


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
