"""The race: both of the transformer's ways give one answer, and who ran is said with its size."""

from __future__ import annotations

import pytest
import torch

from glassformer.errors import TextError, UsageError
from glassformer.model import Attention, FeedForward, Transformer, uniform
from glassformer.predict.race import Recurrent, lengths, race


@pytest.fixture(scope="module")
def tiny() -> Transformer:
    torch.manual_seed(0)
    return Transformer(uniform(50, 16, 4, 40, Attention(2, 1, 8), FeedForward(64))).eval()


def test_all_read_the_same_passage(tiny: Transformer) -> None:
    told: list[tuple[str, int]] = []
    before = torch.random.get_rng_state()
    found = race(tiny, list(range(20)), progress=lambda *at: told.append(at))
    assert torch.equal(before, torch.random.get_rng_state())
    assert [lap.tokens for lap in found.laps] == [8, 16, 20]
    assert told == [("word by word", 20), *((who, n) for n in (8, 16, 20) for who in ("at once", "recurrent"))]
    for lap in found.laps:
        assert lap.gap < 1e-5
        assert min(lap.at_once, lap.word_by_word, lap.recurrent) > 0
    data = found.to_dict()
    assert data["laps"][0]["at_once_tokens_per_second"] == pytest.approx(8 / found.laps[0].at_once)
    assert (data["layers"], data["width"], data["dtype"], data["device"]) == (4, 16, "float32", "cpu")


def test_the_recurrent_network_is_about_as_large(tiny: Transformer) -> None:
    size = sum(p.numel() for p in tiny.parameters())
    recurrent = Recurrent(tiny.config, size)
    a_layer = 6 * 16 * 16 + 6 * 16
    assert abs(recurrent.parameters_in_all - size) <= a_layer / 2
    assert recurrent.parameters_in_all == 50 * 16 + recurrent.gru.num_layers * a_layer
    assert recurrent(torch.zeros(1, 5, dtype=torch.long)).shape == (1, 50)


@pytest.mark.parametrize(("tokens", "expected"), [(1, [1]), (8, [8]), (9, [8, 9]), (40, [8, 16, 32, 40])])
def test_lengths(tokens: int, expected: list[int]) -> None:
    assert lengths(tokens) == expected


def test_chosen_lengths(tiny: Transformer) -> None:
    assert [lap.tokens for lap in race(tiny, [1, 2, 3], [3, 1], repeats=1).laps] == [1, 3]


def test_what_cannot_be_meant(tiny: Transformer) -> None:
    with pytest.raises(TextError, match="holds no token"):
        race(tiny, [])
    with pytest.raises(TextError, match="has 41 tokens and the model reads at most 40"):
        race(tiny, [0] * 41)
    with pytest.raises(UsageError, match=r"between 1 and the passage's 3 tokens; got \[4\]"):
        race(tiny, [1, 2, 3], [4])
    with pytest.raises(UsageError, match="got 0 repeats"):
        race(tiny, [1, 2, 3], repeats=0)
