"""Scoring: every token once, with the context that was promised, equal to the direct sum."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glassformer.errors import TextError, UsageError
from glassformer.model import Attention, FeedForward, Transformer, uniform
from glassformer.predict.score import Score, context_windows, score


@pytest.fixture(scope="module")
def tiny() -> Transformer:
    torch.manual_seed(0)
    config = uniform(50, 16, 2, 24, Attention(2, 1, 8), FeedForward(32))
    model = Transformer(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3)
    return model


@given(tokens=st.integers(2, 200), context=st.integers(1, 50), data=st.data())
def test_every_token_is_predicted_once(tokens: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    seen: list[int] = []
    for start, inputs, new in context_windows(tokens, context, stride):
        assert start >= 0
        assert start + inputs <= tokens - 1
        assert inputs == min(context, tokens - 1)
        assert seen == list(range(1, start + inputs - new + 1)), "the new ones follow what is done"
        assert start == 0 or inputs - new >= context - stride
        seen += range(start + 1 + inputs - new, start + inputs + 1)
    assert seen == list(range(1, tokens))


@pytest.mark.parametrize("stride", [1, 5, 12, 24])
@pytest.mark.parametrize("batch", [1, 3])
def test_it_is_the_direct_sum(tiny: Transformer, stride: int, batch: int) -> None:
    ids = torch.randint(0, 50, (70,), generator=torch.Generator().manual_seed(1)).tolist()
    expected = 0.0
    with torch.inference_mode():
        for target in range(1, 70):
            # The window that a target falls in, from the definition.
            end = 24 if target <= 24 else min(69, 24 + math.ceil((target - 24) / stride) * stride)
            inputs = torch.tensor([ids[max(0, end - 24) : target]])
            expected -= float(torch.log_softmax(tiny(inputs)[0, -1].double(), -1)[ids[target]])
    found = score(tiny, ids, 24, stride, batch=batch)
    assert found.tokens == 69
    assert found.nats == pytest.approx(expected, rel=1e-5)


def test_only_what_counts_is_counted(tiny: Transformer) -> None:
    ids = list(range(50))
    even = score(tiny, ids, 24, 8, counted=lambda start, n: np.arange(start, start + n) % 2 == 0)
    odd = score(tiny, ids, 24, 8, counted=lambda start, n: np.arange(start, start + n) % 2 == 1)
    both = score(tiny, ids, 24, 8)
    assert (even.tokens, odd.tokens, both.tokens) == (24, 25, 49)
    assert even.nats + odd.nats == pytest.approx(both.nats, rel=1e-6)
    assert math.isnan(score(tiny, ids, counted=lambda start, n: np.zeros(n, dtype=bool)).loss)


def test_progress_and_units(tiny: Transformer) -> None:
    told: list[tuple[int, int | None, str]] = []
    score(tiny, list(range(40)), 8, 4, progress=lambda *at: told.append(at))
    assert told[-1] == (39, 39, "tokens")
    made = Score(nats=10 * math.log(2), tokens=5, context=8, stride=4)
    assert made.loss == pytest.approx(2 * math.log(2))
    assert made.perplexity == pytest.approx(4)
    assert made.bits_per_byte(20) == pytest.approx(0.5)
    assert Score(1e9, 1, 1, 1).perplexity == math.inf


def test_what_cannot_be_meant(tiny: Transformer) -> None:
    with pytest.raises(TextError, match="at least 2 tokens, for the first has nothing before it; got 1"):
        score(tiny, [1])
    with pytest.raises(UsageError, match="context must be 1 to 24 tokens, which this model reads; got 25"):
        score(tiny, [1, 2], 25)
    with pytest.raises(UsageError, match="stride must be 1 to the context of 8; got 9"):
        score(tiny, [1, 2], 8, 9)


@pytest.mark.parametrize("bos", [None, 0])
@pytest.mark.parametrize("batch", [1, 4, None])
def test_documents_are_read_apart_and_begin_as_the_model_asks(
    tiny: Transformer, bos: int | None, batch: int | None
) -> None:
    generator = torch.Generator().manual_seed(2)
    lengths = [1, 5, 24, 25, 70, 2]
    documents = [[0, *torch.randint(1, 50, (n - 1,), generator=generator).tolist()] for n in lengths]
    expected, tokens = 0.0, 0
    with torch.inference_mode():
        for ids in documents:
            done, step = 0, 12
            while done < len(ids) - 1:
                begins = done > 0 and bos is not None
                end = min(len(ids) - 1, 24 if done == 0 else done + step)
                start = max(0, end - 24 + begins)
                window = [0] * begins + ids[start:end]
                logits = torch.log_softmax(tiny(torch.tensor([window]))[0].double(), -1)
                for target in range(done + 1, end + 1):
                    expected -= float(logits[target - 1 - start + begins, ids[target]])
                tokens += end - done
                done = end
    edges = np.cumsum([0, *lengths]).tolist()
    spans = list(itertools.pairwise(edges))
    found = score(tiny, list(itertools.chain(*documents)), 24, 12, documents=spans, bos=bos, batch=batch)
    assert found.tokens == tokens == sum(n - 1 for n in lengths)
    assert found.nats == pytest.approx(expected, rel=1e-5)
