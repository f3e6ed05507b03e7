"""Sampling against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import UsageError
from glassformer.generate.sampling import (
    adjust,
    choose,
    draw,
    generator,
    kept,
    logprobs,
    probabilities,
)
from glassformer.generate.settings import GREEDY, Sampling

logit_lists = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=60)


def by_hand(logits: list[float], s: Sampling) -> list[float]:
    """The definition, one filter after the other, in plain Python."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if s.top_k:
        order = order[: s.top_k]
    top = max(logits)
    weights = {i: math.exp((logits[i] - top) / s.temperature) for i in order}
    total = sum(weights.values())
    p = {i: w / total for i, w in weights.items()}
    if s.top_p < 1:
        chosen, mass = [], 0.0
        for i in order:
            if mass >= s.top_p:
                break
            chosen.append(i)
            mass += p[i]
        order = chosen
    if s.min_p > 0:
        order = [i for i in order if p[i] >= s.min_p * p[order[0]]]
    total = sum(p[i] for i in order)
    return [p[i] / total if i in order else 0.0 for i in range(len(logits))]


@given(
    logits=logit_lists,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.integers(0, 70),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
@settings(deadline=None)
def test_filters_equal_their_definition(logits, temperature, top_k, top_p, min_p):
    s = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    got = probabilities(torch.tensor(logits), s)
    expected = torch.tensor(by_hand(torch.tensor(logits).double().tolist(), s), dtype=torch.float64)
    # A sum within rounding of top_p may or may not take one token more.
    if (got > 0).sum() == (expected > 0).sum():
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    else:
        assert abs(int((got > 0).sum()) - int((expected > 0).sum())) <= 1


@pytest.mark.parametrize("settings_", [{"top_p": 0.999999}, {"min_p": 1e-6}, {"top_p": 0.9999999, "min_p": 1e-7}])
def test_a_flat_large_vocabulary_is_searched_as_far_as_needed(settings_):
    logits = torch.linspace(0, -5, 20_000)
    s = Sampling(**settings_)
    expected = torch.tensor(by_hand(logits.double().tolist(), s), dtype=torch.float64)
    torch.testing.assert_close(probabilities(logits, s), expected, rtol=1e-9, atol=1e-12)


def test_ties_go_to_the_lower_id():
    logits = torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0])
    assert choose(logits, GREEDY, torch.Generator()) == 1
    assert kept(logits, Sampling(top_k=2))[0].tolist() == [1, 2]


def test_temperature_zero_is_greedy_whatever_the_rest_says():
    ids, p = kept(torch.tensor([0.0, 2.0, 1.0]), Sampling(temperature=0, top_k=3, top_p=0.1))
    assert (ids.tolist(), p.tolist()) == ([1], [1.0])


@pytest.mark.parametrize("filters", [{}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_temperatures_and_penalties_at_the_edge_of_floats_still_mean_something(filters):
    logits = torch.tensor([-3.0, 12.0, 11.5, 0.0])
    coldest = probabilities(logits, Sampling(temperature=5e-324, **filters))
    assert coldest.tolist() == [0, 1, 0, 0]
    hottest = probabilities(logits, Sampling(temperature=1.7e308))
    assert hottest.tolist() == [0.25] * 4
    for penalty in (1e-300, 1e300):
        s = Sampling(repetition_penalty=penalty, **filters)
        p = probabilities(adjust(logits, s, prompt=[0, 1, 2], answer=[]), s)
        assert float(p.sum()) == pytest.approx(1.0)
        assert p[0] == 0  # what was said and unlikely
        assert p[1] == p[2] > 0  # what was said and likely: as far up, or down, as floats reach
    everything = Sampling(repetition_penalty=1e300)
    assert probabilities(adjust(-logits - 20, everything, [0, 1, 2, 3], []), everything).isfinite().all()


def test_penalties_and_bias_equal_their_formulas():
    logits = torch.tensor([2.0, -2.0, 1.0, -1.0, 0.5])
    s = Sampling(repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5, logit_bias={4: 3.0, 0: -1.0})
    got = adjust(logits, s, prompt=[0, 1], answer=[2, 2, 3])
    expected = [
        (2.0 - 1.0) / 2,  # biased first; in the prompt
        -2.0 * 2,  # in the prompt, negative
        1.0 / 2 - 0.25 - 2 * 0.5,  # twice in the answer
        -1.0 * 2 - 0.25 - 0.5,  # once
        0.5 + 3.0,  # never said
    ]
    torch.testing.assert_close(got, torch.tensor(expected))
    assert logits.tolist() == [2.0, -2.0, 1.0, -1.0, 0.5]
    assert adjust(logits, Sampling(), [0], [1]) is logits
    with pytest.raises(UsageError, match="logit_bias names token 9; this vocabulary has 5."):
        adjust(logits, Sampling(logit_bias={9: 1.0}), [], [])


def test_draws_follow_the_distribution():
    p = torch.tensor([0.1, 0.0, 0.6, 0.3, 0.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    n = 20_000
    counts = torch.bincount(torch.tensor([draw(p, generator) for _ in range(n)]), minlength=5)
    assert counts[1] == counts[4] == 0
    chi2 = (((counts - n * p) ** 2) / (n * p))[[0, 2, 3]].sum()
    assert chi2 < 13.8  # 99.9 % of 2 degrees of freedom


@pytest.mark.parametrize("vocab", [1, 5, 255, 256, 257, 1000, 1024])
@pytest.mark.parametrize("temperature", [1e-40, 0.01, 0.7, 3.0])
def test_drawing_from_a_whole_vocabulary_is_drawing_from_its_distribution(vocab, temperature):
    """The same numbers give the same tokens as inverting the whole cumulative sum in float64."""
    logits = 4 * torch.randn(vocab, generator=torch.Generator().manual_seed(vocab))
    logits[vocab // 2 + 1 :: 3] = -torch.inf
    sampling = Sampling(temperature=temperature)
    p = probabilities(logits, sampling)
    one, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    drawn = [choose(logits, sampling, one) for _ in range(300)]
    assert drawn == [draw(p, other) for _ in range(300)]
    assert len(set(drawn)) > 1 or temperature < 0.7 or vocab == 1


def test_a_number_at_the_very_end_draws_the_last_token_that_can_be_drawn(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda n, dtype, generator: torch.ones(n, dtype=dtype))
    for vocab in (4, 256, 300, 512):
        logits = torch.zeros(vocab)
        logits[-2:] = -torch.inf
        assert choose(logits, Sampling(), torch.Generator()) == vocab - 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("mass", [0.05, 0.3, 0.9])
def test_typical_sampling_keeps_what_transformers_keeps(mass, temperature):
    from transformers import TypicalLogitsWarper

    for seed in range(20):
        x = 3 * torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        expected = TypicalLogitsWarper(mass)(None, x[None] / temperature)[0].softmax(0)
        got = probabilities(x, Sampling(temperature=temperature, typical_p=mass))
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_a_nucleus_of_nothing_is_the_likeliest_token():
    logits = torch.tensor([1.0, 3.0, 2.0, 3.0])
    assert probabilities(logits, Sampling(top_p=0)).tolist() == [0, 1, 0, 0]


def test_seeds_reproduce_and_differ():
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0))

    def text(seed: int | None) -> list[int]:
        s = Sampling(seed=seed, top_p=0.95)
        made = generator(s)
        return [choose(logits, s, made) for _ in range(20)]

    assert text(7) == text(7)
    assert text(7) != text(8)
    assert text(None) != text(None)


def test_logprobs_are_the_models_own():
    logits = torch.tensor([1.0, 3.0, 2.0, 3.0])
    mine, top = logprobs(logits, 2, top=3)
    expected = torch.log_softmax(logits.double(), 0)
    assert mine.id == 2
    assert mine.logprob == pytest.approx(float(expected[2]))
    assert [t.id for t in top] == [1, 3, 2]
    assert [t.logprob for t in top] == pytest.approx([float(expected[i]) for i in (1, 3, 2)])
    assert logprobs(logits, 0)[1] == ()


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0; got -0.1."),
        ({"temperature": math.nan}, "temperature must be at least 0; got nan."),
        ({"temperature": math.inf}, "temperature must be at least 0; got inf."),
        ({"top_k": -2}, "top_k must be a whole number of at least 0; got -2."),
        ({"top_p": -0.1}, "top_p must be between 0 and 1; got -0.1."),
        ({"top_p": 1.5}, "top_p must be between 0 and 1; got 1.5."),
        ({"min_p": 2}, "min_p must be between 0 and 1; got 2."),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0; got 0."),
        ({"presence_penalty": 101}, "presence_penalty must be between -100 and 100; got 101."),
        ({"logit_bias": {3: 500.0}}, "logit_bias of token 3 must be between -100 and 100; got 500.0."),
        ({"logit_bias": {-3: 5.0}}, "logit_bias names token -3; ids begin at 0."),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(settings_, message):
    with pytest.raises(UsageError) as caught:
        Sampling(**settings_)
    assert str(caught.value) == message
