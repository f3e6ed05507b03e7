"""One gradient step on one sentence, to look at: what the loss asked of the weights, and what came of it.

The step is plain gradient descent, so that what is shown is the gradient and nothing else. Its length is chosen so
that the loss should fall by a stated share if it were a straight line; how far it falls in truth stands beside it.
The model that is given never changes. This module knows a transformer and ids, no text.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glassformer.errors import TextError, UsageError
from glassformer.model import Transformer
from glassformer.train.torch_stepper import Objective
from glassformer.train.weights import norms


@dataclass(frozen=True)
class Mover:
    """One weight that moved far: its parameter, its place in it, and its value before and after."""

    name: str
    index: tuple[int, ...]
    before: float
    after: float


@dataclass(frozen=True)
class GradientStep:
    """A gradient step on one text.

    Attributes:
        ids: the text's tokens.
        rate: the learning rate; the weights moved by `rate` times the gradient.
        loss, loss_after: mean −log p of each next token, before and after, in nats.
        promised: the fall that the gradient promised to first order, rate × (gradient norm)².
        gradient_norm: of all weights together.
        gradient_norms, weight_norms: of each component.
        before, after: (token, vocab) next-token log-probabilities after every token.
        movers: the weights that moved furthest relative to their parameter's typical size.
        slice: the loss along the line through the step, as pairs of how many steps far and the loss there.
    """

    ids: tuple[int, ...]
    rate: float
    loss: float
    loss_after: float
    promised: float
    gradient_norm: float
    gradient_norms: dict[str, float]
    weight_norms: dict[str, float]
    before: Tensor
    after: Tensor
    movers: tuple[Mover, ...]
    slice: tuple[tuple[float, float], ...] = ()


def one_step(
    transformer: Transformer,
    ids: Sequence[int],
    *,
    rate: float | None = None,
    share: float = 0.1,
    movers: int = 10,
    along: Sequence[float] = (),
) -> GradientStep:
    """Take one gradient step on a copy of `transformer`.

    Args:
        transformer: float32 weights; left as it is.
        ids: at least two tokens; each but the first is predicted from those before it.
        rate: the learning rate, or None for the one that promises to take away `share` of the loss.
        share: see `rate`.
        movers: how many weights to name.
        along: where on the line through the step its loss is computed: 0 is before it, 1 after, 2 twice as far.

    Raises:
        TextError: for fewer than two tokens, or more than the model's context.
        UsageError: for a rate or a share that is not above 0.
    """
    return Descent(transformer, ids).step(rate=rate, share=share, movers=movers, along=along)


class Descent:
    """Gradient steps on one sentence, one after the other, on a copy of a model.

    Args:
        transformer: float32 weights; left as it is.
        ids: at least two tokens; each but the first is predicted from those before it.

    Raises:
        TextError: for fewer than two tokens, or more than the model's context.
    """

    def __init__(self, transformer: Transformer, ids: Sequence[int]) -> None:
        if len(ids) < 2:
            raise TextError(
                f"A step needs a text of at least 2 tokens, one to predict from another; this has {len(ids)}."
            )
        context = transformer.config.context
        if len(ids) > context:
            raise TextError(f"The text has {len(ids)} tokens; this model was made for {context}. Give a shorter one.")
        self.ids = tuple(ids)
        self.tokens = torch.tensor([list(ids)], device=transformer.device)
        self.model = copy.deepcopy(transformer).float().requires_grad_(True)
        self.weights = dict(self.model.named_parameters())
        self.told = self._log_probabilities()

    @torch.no_grad()
    def _log_probabilities(self) -> Tensor:
        return self.model(self.tokens)[0].float().log_softmax(-1)

    def _loss(self, told: Tensor) -> float:
        return float(-told[:-1].gather(1, self.tokens[0, 1:, None]).mean())

    @property
    def learnt(self) -> bool:
        """Whether every token of the sentence is the likeliest after those before it."""
        return bool((self.told[:-1].argmax(-1) == self.tokens[0, 1:]).all())

    def step(
        self, *, rate: float | None = None, share: float = 0.1, movers: int = 0, along: Sequence[float] = ()
    ) -> GradientStep:
        """Take a step; see `one_step`. Raises `UsageError`."""
        if rate is not None and not (rate > 0 and math.isfinite(rate)):
            raise UsageError(f"The learning rate must be above 0; got {rate}.")
        if not 0 < share <= 1:
            raise UsageError(f"The share of the loss to take away is above 0 and at most 1; got {share}.")
        before, weights = self.told, self.weights
        self.model.zero_grad(set_to_none=True)
        loss = Objective(self.model)(self.tokens[:, :-1], self.tokens[:, 1:]) / (len(self.ids) - 1)
        loss.backward()
        grads = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in weights.items()}
        square = sum(float(grad.double().square().sum()) for grad in grads.values())
        chosen = rate if rate is not None else share * float(loss.detach()) / square if square else 0.0
        sizes = norms({name: p.detach() for name, p in weights.items()})
        moved = _movers(weights, grads, chosen, movers)
        seen = self._along(grads, chosen, along) if along else []
        with torch.no_grad():
            for name, p in weights.items():
                p.sub_(grads[name], alpha=chosen)
        self.told = self._log_probabilities()
        return GradientStep(
            ids=self.ids,
            rate=chosen,
            loss=self._loss(before),
            loss_after=self._loss(self.told),
            promised=chosen * square,
            gradient_norm=square**0.5,
            gradient_norms=norms(grads),
            weight_norms=sizes,
            before=before,
            after=self.told,
            movers=moved,
            slice=tuple(seen),
        )

    @torch.no_grad()
    def _along(self, grads: Mapping[str, Tensor], rate: float, along: Sequence[float]) -> list[tuple[float, float]]:
        """The loss at each place of the line through the step; the weights are put back as they were."""
        held = {name: p.detach().clone() for name, p in self.weights.items()}
        seen = []
        for at in along:
            for name, p in self.weights.items():
                torch.sub(held[name], grads[name], alpha=rate * at, out=p.detach())
            seen.append((float(at), self._loss(self._log_probabilities())))
        for name, p in self.weights.items():
            p.copy_(held[name])
        return seen


@torch.no_grad()
def _movers(weights: Mapping[str, Tensor], grads: Mapping[str, Tensor], rate: float, many: int) -> tuple[Mover, ...]:
    """The weights whose change is largest against their parameter's root mean square."""
    found: list[tuple[float, str, int]] = []
    for name, grad in grads.items():
        size = float(weights[name].square().mean().sqrt()) or 1.0
        top = (grad.abs().flatten() / size).topk(min(many, grad.numel()))
        found += [(value, name, i) for value, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]
    movers = []
    for _, name, flat in sorted(found, reverse=True)[:many]:
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), grads[name].shape))
        before = float(weights[name][index])
        movers.append(Mover(name, index, before, before - rate * float(grads[name][index])))
    return tuple(movers)
