"""One request's next token: what a constraint allows comes as often as the masked distribution says."""

from __future__ import annotations

import pytest
import torch

from glassformer.generate.request import Request, RequestHandle
from glassformer.generate.sampling import generator, probabilities
from glassformer.generate.sequence import Sequence
from glassformer.generate.settings import GREEDY, Sampling
from glassformer.generate.stop import StopMatcher

DRAWS = 20_000


class Allowing:
    """A constraint that always allows the same tokens, and counts how often it is asked for all of them."""

    stopped = False

    def __init__(self, allowed: torch.Tensor) -> None:
        self._allowed, self.asked = allowed, 0

    def allowed(self) -> torch.Tensor:
        self.asked += 1
        return self._allowed

    def possible(self, tokens: list[int]) -> int:
        return next((i for i, token in enumerate(tokens) if not self._allowed[token]), len(tokens))

    def accept(self, token: int) -> None:
        pass

    def forced(self) -> list[int]:
        return []


def made(matcher: Allowing, sampling: Sampling) -> Sequence:
    request = Request((0,), sampling=sampling, stop_ids=frozenset())
    stops = StopMatcher(None, (), frozenset())
    return Sequence(RequestHandle(request), 0, [0], stops, generator(sampling), 64, matcher=matcher)


@pytest.mark.parametrize("count", [11, 2], ids=["most are allowed", "few are allowed"])
def test_the_allowed_are_drawn_by_the_masked_distribution(count):
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1))
    allowed = torch.zeros(12, dtype=torch.bool)
    allowed[logits.argsort()[:count]] = True  # the likeliest are left out
    matcher = Allowing(allowed)
    one = made(matcher, Sampling(seed=3))
    found = torch.zeros(12)
    for _ in range(DRAWS):
        found[one._choose(logits)] += 1
    want = DRAWS * torch.where(allowed, logits, -torch.inf).softmax(0)
    assert torch.equal(found > 0, allowed)
    surprise = float(((found - want)[allowed] ** 2 / want[allowed]).sum())  # chi-square, count - 1 degrees of freedom
    assert surprise < 30
    rejected = float(logits.softmax(0)[~allowed].sum())  # so often the model's own choice gives way
    assert abs(matcher.asked / DRAWS - rejected) < 0.02


@pytest.mark.parametrize("settings", [{"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.5, "temperature": 2.0}])
def test_filters_see_what_the_constraint_leaves(settings):
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1))
    allowed = torch.zeros(12, dtype=torch.bool)
    allowed[logits.argsort()[2:9:2]] = True
    sampling = Sampling(seed=3, **settings)
    found, one = torch.zeros(12), made(Allowing(allowed), sampling)
    for _ in range(DRAWS // 10):
        found[one._choose(logits)] += 1
    want = probabilities(torch.where(allowed, logits, -torch.inf), sampling)
    assert float((found / found.sum() - want).abs().max()) < 0.05


def test_the_likeliest_allowed_is_taken_and_all_are_asked_for_only_where_it_is_not_the_likeliest():
    logits = torch.tensor([0.0, 3.0, 2.0, 1.0])
    matcher = Allowing(torch.tensor([True, True, False, True]))
    assert made(matcher, GREEDY)._choose(logits) == 1
    assert matcher.asked == 0
    assert made(matcher, GREEDY)._choose(logits - torch.tensor([0.0, 9.0, 0.0, 0.0])) == 3
    assert matcher.asked == 1
