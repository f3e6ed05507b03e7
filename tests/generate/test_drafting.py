"""Speculation must not change the distribution: exact on enumerable cases, and statistically."""

from __future__ import annotations

import itertools

import pytest
import torch

from glassformer.errors import UsageError
from glassformer.generate.drafting import DraftModel, NgramLookup, accept
from glassformer.generate.sampling import GREEDY, Sampling, draw, probabilities


def two_step_target(first: torch.Tensor, second: torch.Tensor) -> dict[tuple[int, int], float]:
    return {(a, b): float(first[a] * second[a, b]) for a, b in itertools.product(range(len(first)), repeat=2)}


@pytest.mark.parametrize("certain", [True, False])
def test_the_first_two_tokens_are_distributed_as_without_guesses(certain):
    """A draft of two tokens against a model whose second distribution depends on the first token."""
    torch.manual_seed(3)
    vocab, n = 4, 30_000
    first = torch.rand(vocab, dtype=torch.float64)
    first[2] = 0  # something the model never says, but the drafter does
    first /= first.sum()
    second = torch.rand(vocab, vocab, dtype=torch.float64)
    second /= second.sum(1, keepdim=True)
    draft_p = torch.rand(2, vocab, dtype=torch.float64)
    draft_p /= draft_p.sum(1, keepdim=True)
    generator = torch.Generator().manual_seed(5)
    counts: dict[tuple[int, int], int] = {}
    for _ in range(n):
        drafts = [2, 1] if certain else [draw(draft_p[0], generator), draw(draft_p[1], generator)]
        if certain:
            drafts[0] = int(torch.randint(vocab, (1,), generator=generator))  # looked up, whatever it is
        after = second[drafts[0]]
        third = torch.full((vocab,), 1 / vocab, dtype=torch.float64)
        out = accept(torch.stack([first, after, third]), drafts, None if certain else draft_p, generator)
        if len(out) == 1:  # the next step draws the second token as usual
            out.append(draw(second[out[0]], generator))
        counts[out[0], out[1]] = counts.get((out[0], out[1]), 0) + 1
    expected = two_step_target(first, second)
    chi2 = sum((counts.get(k, 0) - n * p) ** 2 / (n * p) for k, p in expected.items() if p > 0)
    assert all(counts.get(k, 0) == 0 for k, p in expected.items() if p == 0)
    assert chi2 < 31.3  # 99.9 % of 11 degrees of freedom


def test_greedy_keeps_right_guesses_and_corrects_the_first_wrong_one():
    logits = torch.eye(5)[[3, 1, 4]] * 9
    target = torch.stack([probabilities(row, GREEDY) for row in logits])
    generator = torch.Generator()
    assert accept(target, [3, 1], None, generator) == [3, 1, 4]
    assert accept(target, [3, 2], None, generator) == [3, 1]
    assert accept(target, [0, 1], None, generator) == [3]
    assert accept(target[:1], [], None, generator) == [3]


def test_a_draft_equal_to_the_model_is_always_kept():
    p = torch.rand(3, 8, dtype=torch.float64)
    p /= p.sum(1, keepdim=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        drafts = [draw(p[0], generator), draw(p[1], generator)]
        assert accept(p, drafts, p[:2], generator)[:2] == drafts


def test_lookup_finds_the_latest_longest_repeat():
    look = NgramLookup(longest=3, shortest=2)
    assert look.look_up([1, 2, 3, 4, 5, 1, 2, 3], 2) == [4, 5]
    assert look.look_up([1, 2, 7, 9, 1, 2, 8, 0, 1, 2], 3) == [8, 0, 1]  # the latest, not the first
    assert look.look_up([9, 2, 3, 4, 1, 2, 3], 1) == [4]  # a shorter ending when the longer has no repeat
    assert look.look_up([1, 2, 3, 4], 4) == []
    assert look.look_up([1], 4) == []
    assert look.look_up([5, 5, 5], 3) == [5]
    with pytest.raises(UsageError, match="1 <= shortest <= longest; got 3 and 2"):
        NgramLookup(2, 3)


class Countdown:
    """A runner that always says one less, and remembers what it was given."""

    capacity = 64

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], list[int]]] = []

    def forward(self, tokens, slots, positions, out=None):
        self.calls.append((list(tokens), list(positions)))
        return torch.nn.functional.one_hot((torch.tensor(list(tokens)) - 1) % 16, 16)[list(out)].float() * 50


def test_a_draft_model_reads_only_what_is_new():
    runner = Countdown()
    draft = DraftModel(runner)
    generator = torch.Generator()
    drafts, q = draft.draft([1, 9], 3, GREEDY, generator)
    assert drafts == [8, 7, 6]
    assert q is not None
    assert q.shape == (3, 16)
    assert runner.calls == [([1, 9], [0, 1]), ([8], [2]), ([7], [3])]
    runner.calls.clear()
    draft.draft([1, 9, 8, 5], 1, Sampling(), generator)  # the second draft was refused: 5 came instead
    assert runner.calls == [([5], [3])]
