"""Experts as heads are shown: who was chosen where, with what weight, and what each wrote for one token.

What an expert wrote is its part of the additive account (`decompose.expert_parts`), so that its share of a score is the
one that `why` claims; biases and the part that every token passes stand beside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UnsupportedError, UsageError
from glassformer.interp.circuits import unembedded
from glassformer.interp.copies import carried
from glassformer.interp.decompose import expert_parts, feed_forward_part, given_by_experts
from glassformer.interp.logit_target import target
from glassformer.interp.vocabulary import known_ids
from glassformer.model.choices import Experts as Choice

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.model.config import Config


@dataclass(frozen=True)
class Experts:
    """The experts of one layer.

    Attributes:
        layer: theirs; n_experts, n_active: how many there are, and how many a token meets.
        weights: (query, expert), what each expert's output was multiplied by at every position; 0 where not chosen.
        token, position, unit, value: the number that shares are of.
        experts: those chosen at the position, the heaviest first, each with expert, weight, score (the router's),
            length (of what it added to the stream), contribution (its share of the number) and the tokens that what
            it added raises and lowers.
        shared: length and contribution of the part that every token passes, or None.
        apart: what the parts and the layer's output differ by at most, relative to its largest number.
    """

    layer: int
    n_experts: int
    n_active: int
    weights: Float[Tensor, "query expert"]
    token: str
    position: int
    unit: str
    value: float
    experts: list[dict[str, Any]]
    shared: dict[str, float] | None
    apart: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self.__dict__, "weights": self.weights.tolist()}


def expert_layers(config: Config) -> list[int]:
    """The layers that have experts.

    Raises:
        UnsupportedError: none has.
    """
    found = [i for i, layer in enumerate(config.layers) if isinstance(layer.feed_forward, Choice)]
    if not found:
        raise UnsupportedError("No layer of this model has experts; its feed-forward parts serve every token.")
    return found


@torch.no_grad()
def experts(
    trace: Trace,
    layer: int,
    token: str | int | None = None,
    against: str | int | None = None,
    position: int = -1,
    *,
    words: int = 5,
) -> Experts:
    """Who was chosen in a layer, and what they wrote at a position; `words` tokens raised and lowered by each.

    Raises:
        UnsupportedError: the layer has no experts; it says which have.
        UsageError: for fewer than one word.
    """
    if words < 1:
        raise UsageError("At least one word can be shown for each expert.")
    layer, have = trace.layer(layer), expert_layers(trace.config)
    choice = trace.config.layers[layer].feed_forward
    if not isinstance(choice, Choice):
        raise UnsupportedError(f"Layer {layer} has no experts; layers {', '.join(map(str, have))} have.")
    goal = target(trace, token, against, position)
    at, name = goal.position, f"blocks.{layer}.mlp."
    weights = trace.tensor(name + "weights")[0].double()
    scores = trace.forward.get(name + "router", slice(at, at + 1))[0, 0].double()
    known = torch.tensor(known_ids(trace.vocabulary, trace.config.vocab_size), device=weights.device)
    k = min(words, len(known))

    def share(x: Tensor) -> float:
        return float(goal.share(carried(trace.forward, layer, 2, at, x)))

    found: list[dict[str, Any]] = []
    for expert, x in expert_parts(trace, layer, at).items():
        pushed = unembedded(trace.transformer, x.to(trace.transformer.dtype))[known]
        found.append(
            {
                "expert": expert,
                "weight": float(weights[at, expert]),
                "score": float(scores[expert]),
                "length": float(x.norm()),
                "contribution": share(x),
                "raises": [trace.token_text(int(known[i])) for i in pushed.topk(k).indices],
                "lowers": [trace.token_text(int(known[i])) for i in (-pushed).topk(k).indices],
            }
        )
    found.sort(key=lambda one: -abs(one["weight"]))
    shared = None
    if choice.shared is not None:
        x = feed_forward_part(trace, layer, at)
        shared = {"length": float(x.norm()), "contribution": share(x)}
    out = trace.forward.recorded[name + "out"][0, at].double()
    apart = (out - given_by_experts(trace, layer, at)).abs().max() / out.abs().max().clamp(min=1e-30)
    return Experts(
        layer=layer,
        n_experts=choice.n_experts,
        n_active=choice.n_active,
        weights=weights,
        token=trace.token_text(goal.way.token),
        position=at,
        unit=goal.way.unit,
        value=goal.value,
        experts=found,
        shared=shared,
        apart=float(apart),
    )
