"""What drafters propose; that answers do not change with them is the engine's test."""

from __future__ import annotations

import pytest
import torch

from glassformer.errors import UsageError
from glassformer.generate.drafting import DraftModel, NgramLookup
from glassformer.generate.settings import GREEDY, Sampling


def test_lookup_finds_the_latest_longest_repeat():
    look = NgramLookup(longest=3, shortest=2)
    growing = [1, 2, 3]
    assert look.look_up(growing, 3) == []
    growing += [4, 1, 2, 3]
    assert look.look_up(growing, 2) == [4, 1]
    assert look.look_up([1, 2, 3, 4, 5, 1, 2, 3], 2) == [4, 5]
    assert look.look_up([1, 2, 7, 9, 1, 2, 8, 0, 1, 2], 3) == [8, 0, 1]  # the latest, not the first
    assert look.look_up([9, 2, 3, 4, 1, 2, 3], 1) == [4]  # a shorter ending when the longer has no repeat
    assert look.look_up([1, 2, 3, 4], 4) == []
    assert look.look_up([1], 4) == []
    assert look.look_up([5, 5, 5], 3) == [5, 5, 5]  # a repeat that reaches the end goes on
    assert look.look_up([7, 1, 2, 3, 1, 2, 3], 5) == [1, 2, 3, 1, 2]
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
    assert draft.draft([1, 9], 3, GREEDY, generator) == [8, 7, 6]
    assert runner.calls == [([1, 9], [0, 1]), ([8], [2]), ([7], [3])]
    runner.calls.clear()
    draft.draft([1, 9, 8, 5], 1, Sampling(), generator)  # the second draft was refused: 5 came instead
    assert runner.calls == [([5], [3])]
