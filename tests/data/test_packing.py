"""Who is computed together: everybody once, within the budget, with little padding."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from glassformer.data.packing import PASS, SHARE, groups


@given(lengths=st.lists(st.integers(1, 300), max_size=80), budget=st.integers(1, 2000))
def test_everybody_is_in_one_group_that_fits(lengths: list[int], budget: int) -> None:
    found = groups(lengths, budget)
    assert sorted(index for group in found for index in group) == list(range(len(lengths)))
    for group in found:
        longest = lengths[group[0]]
        assert longest == max(lengths[i] for i in group)
        padded = longest * len(group)
        assert len(group) == 1 or padded <= budget
        assert len(group) == 1 or padded - sum(lengths[i] for i in group) <= PASS + SHARE * padded


def test_equal_lengths_need_no_more_passes_than_rows() -> None:
    assert [len(group) for group in groups([64] * 40, 64 * 16)] == [16, 16, 8]


def test_many_documents_cost_little_padding() -> None:
    lengths = [17 + (i * 7919) % 400 for i in range(400)]
    found = groups(lengths, 16 * 1024)
    padded = sum(lengths[group[0]] * len(group) for group in found)
    assert padded + PASS * len(found) < 1.06 * sum(lengths)
