"""What inspection says of a real model."""

from __future__ import annotations

import pytest
import torch

from glassformer.interp import edits

pytestmark = pytest.mark.smollm2

TEXT = "The capital of France is"


def test_france_is_why_paris(smollm2):
    found = smollm2.trace(TEXT).why()
    assert found.token == " Paris"
    assert found.target.probability == pytest.approx(0.7725, abs=2e-4)
    assert found.residual <= 1e-5
    earlier = [w.word.text for w in found.ranked_words() if w.word.positions != (4,)]
    assert earlier[0] == "France"
    head = found.ranked_parts("head", sink=False)[0]
    assert found.tokens[head["source"]] == " France"
    assert head["percentile"] > 99
    assert found.words[0].sink
    assert found.sink["attention"] > 0.5
    assert "'France' matters most" in found.sentence()


def test_the_lens_ends_in_paris(smollm2):
    found = smollm2.trace(TEXT).lens(3, positions=[-1])
    assert found.texts[int(found.ids[-1, 0, 0])] == " Paris"
    assert float(found.probabilities[-1, 0, 0]) == pytest.approx(0.7725, abs=2e-4)


def test_long_texts_by_row_and_tile(smollm2):
    ids = (smollm2.encode("A long walk through many words, over and over again. ") * 100)[:600]
    trace = smollm2.trace(ids)
    row = trace.pattern(20, 4, -1)
    assert row.shape == (600,)
    assert float(row.sum()) == pytest.approx(1, abs=1e-5)
    tile = trace.pattern(20, 4, slice(300, 556), slice(200, 456))
    assert torch.allclose(tile[100], trace.pattern(20, 4, 400, slice(200, 456)), atol=1e-6)
    assert torch.allclose(trace.logits(), smollm2.logits(ids)[-1], atol=1e-3)


def test_without_the_head_that_reads_france(smollm2):
    edited = smollm2.edited(edits.ablate(layer=23, head=4))
    before, after = smollm2.next(TEXT).probability(" Paris"), edited.next(TEXT).probability(" Paris")
    assert after < before
    assert smollm2.next(TEXT).probability(" Paris") == before
