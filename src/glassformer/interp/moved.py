"""What an edit moves on a text that is not about it: how far every prediction moves, and which tokens most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# A plain passage for when no text is given; written for this purpose.
NEUTRAL = (
    "The library opens at nine and closes at six. On weekdays the reading room on the second floor is quiet, and most "
    "of the tables stand by the windows. A bus stops in front of the door every twenty minutes. Visitors leave their "
    "bags in the lockers, take a number at the desk, and wait until a place is free."
)


@dataclass(frozen=True)
class Moved:
    """What an edit moves.

    Attributes:
        kl: per position, the divergence of the changed prediction from the unchanged one, KL(unchanged ‖ changed),
            in nats.
        top_changed: the share of positions whose first choice is another.
        raised, lowered: tokens whose probability, averaged over the positions, rises and falls most: id, text, and
            that average before and after.
    """

    kl: Float[Tensor, " query"]
    top_changed: float
    raised: list[dict[str, Any]]
    lowered: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "positions": len(self.kl),
            "kl_mean": float(self.kl.mean()),
            "kl_max": float(self.kl.max()),
            "top_changed": self.top_changed,
            "raised": self.raised,
            "lowered": self.lowered,
        }


def moved(before: Float[Tensor, "query vocab"], after: Float[Tensor, "query vocab"], text: Any, k: int = 10) -> Moved:
    """Compare two models' logits over one text; `text(id)` names a token."""
    old, new = (torch.log_softmax(x.double(), -1) for x in (before, after))
    kl = (old.exp() * (old - new)).sum(-1).clamp(min=0)
    first, second = old.exp().mean(0), new.exp().mean(0)
    change = second - first

    def named(ids: list[int]) -> list[dict[str, Any]]:
        return [{"id": i, "token": text(i), "before": float(first[i]), "after": float(second[i])} for i in ids]

    k = min(k, len(change))
    up, down = change.topk(k), (-change).topk(k)
    return Moved(
        kl.cpu(),
        float((old.argmax(-1) != new.argmax(-1)).double().mean()),
        named([i for i, c in zip(up.indices.tolist(), up.values.tolist(), strict=True) if c > 0]),
        named([i for i, c in zip(down.indices.tolist(), down.values.tolist(), strict=True) if c > 0]),
    )
