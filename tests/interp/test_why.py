"""Accounts add up, on any design, and what they measure is what removing things does."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import ShapeError, TextError, UsageError
from glassformer.interp import edits
from glassformer.interp.decompose import KINDS, Reads
from glassformer.interp.replacement import Alternatives, _kind
from glassformer.interp.trace import Trace
from glassformer.model.transformer import Transformer
from tests.interp.helpers import Letters, model, planted, randomised
from tests.strategies import configs


@settings(max_examples=30, deadline=None)
@given(configs(), st.integers(0, 2**16), st.sampled_from([torch.float32, torch.float64]), st.booleans())
def test_the_parts_sum_to_the_number(config, seed, dtype, difference):
    transformer = randomised(Transformer(config), seed).to(dtype)
    ids = torch.randint(0, config.vocab_size, (9,), generator=torch.Generator().manual_seed(seed)).tolist()
    t = Trace(transformer, ids)
    found = t.why(against=int(t.logits(6).argmin()) if difference else None, position=6, words=0, parts=20)
    assert found.residual <= (1e-5 if dtype == torch.float32 else 1e-12)
    before = t.at("logits.precap" if config.logit_softcap is not None else "logits", 6).double()
    rest = before[found.target.way.against] if difference else before.mean()
    assert found.value == pytest.approx(float(before[found.target.way.token] - rest), rel=1e-4, abs=1e-4)


@settings(max_examples=10, deadline=None)
@given(configs(), st.integers(0, 2**16))
def test_what_is_measured_is_what_removing_does(config, seed):
    """Every part of every kind, taken out with a tap and the whole forward run again."""
    transformer = randomised(Transformer(config), seed).double()
    ids = torch.randint(0, config.vocab_size, (6,), generator=torch.Generator().manual_seed(seed)).tolist()
    t = Trace(transformer, ids)
    found = t.why(words=0)
    last = len(ids) - 1

    def number(tap=None):
        changed = Trace(transformer, ids, tap=tap)
        return float(changed.at("final.normed", -1).double() @ found.target.way.vector)

    whole = number()
    scale = float(found.parts.claimed.abs().sum())
    for i in range(0, len(found.parts), 7):
        part = found.part(i)
        layer, kind = part["layer"], part["kind"]
        if kind == "head":
            reads = Reads(t, layer, last)
            vector = reads.vectors(torch.tensor([part["head"]]), torch.tensor([part["source"]]))[0]
            site = f"blocks.{layer}.attn.out"
        elif kind in ("embedding", "position"):
            site = "embed" if kind == "embedding" else "pos_embed"
            vector = t.at(site, -1)
        elif kind == "feed_forward" and not config.feed_forward(0).bias and config.norm.kind == "rms":
            site = f"blocks.{layer}.mlp.out"
            vector = t.at(site, -1)
        else:
            continue
        tap = edits.tap(site, lambda x, where, v=vector: x - v, positions=last)
        assert part["total"] == pytest.approx(whole - number(tap), abs=1e-9 * scale), part
        stream = f"blocks.{config.n_layers - 1}.resid_post"
        tap = edits.tap(stream, lambda x, where, v=vector: x - v, positions=last)
        assert part["direct"] == pytest.approx(whole - number(tap), abs=1e-9 * scale), part


def test_the_last_layer_s_feed_forward_has_no_downstream():
    found = Trace(model(), [1, 2, 3]).why(words=0)
    part = next(p for p in found.ranked_parts("feed_forward") if p["layer"] == 1)
    assert part["total"] == pytest.approx(part["direct"], rel=1e-4)


def test_percentiles_and_counts():
    found = Trace(model(), [1, 2, 3, 4, 5]).why(words=0)
    heads = found.ranked_parts("head")
    assert len(heads) == 2 * 4 * 5
    assert heads[0]["percentile"] == 100.0
    assert heads[-1]["percentile"] == pytest.approx(100 / 40)
    assert found.ranked_by == "total"
    some = Trace(model(), [1, 2, 3, 4, 5]).why(words=0, parts=3)
    assert some.ranked_by == "direct"
    assert sum(p["total"] is not None for p in some.ranked_parts("head")) == 3
    assert some.ranked_parts("feed_forward")[0]["total"] is not None


def test_a_planted_cause_is_named_first():
    """A head that carries one token's presence to one prediction is found, and so is the word."""
    transformer, ids, cause = planted()
    t = Trace(transformer, ids, vocabulary=Letters(transformer.config.vocab_size))
    found = t.why()
    first = found.ranked_parts()[0]
    assert (first["kind"], first["layer"], first["head"], first["source"]) == ("head", 1, 2, cause)
    assert found.ranked_words()[0].word.positions == (cause,)
    assert found.words[cause].knocked_out == max(w.knocked_out for w in found.words if w.knocked_out is not None)
    assert found.words[0].sink
    said = found.sentence()
    assert f"the largest is head 1.2 reading '{t.tokens[cause]}'" in said
    assert f"'{found.words[cause].word.text}' matters most" in said


def test_the_json_is_as_promised():
    transformer, ids, _ = planted()
    data = Trace(transformer, ids, vocabulary=Letters(transformer.config.vocab_size)).why().to_dict()
    data = json.loads(json.dumps(data, allow_nan=False))
    assert list(data)[:8] == ["token", "unit", "value", "sum", "residual", "precision", "parts", "words"]
    assert list(data["parts"][0]) == [
        "layer",
        "kind",
        "head",
        "expert",
        "source",
        "claimed",
        "direct",
        "total",
        "percentile",
    ]
    word = data["words"][0]
    assert list(word)[:4] == ["word", "positions", "replaced", "knocked_out"]
    assert list(word["replaced"]) == ["median", "low", "high"]
    assert data["words"][-1]["knocked_out"] is None
    assert data["sum"] == pytest.approx(sum(p["claimed"] for p in data["parts"]))
    assert {p["kind"] for p in data["parts"]} <= set(KINDS)


def test_words_are_replaced_from_a_seed():
    transformer, ids, _ = planted()
    t = Trace(transformer, ids, vocabulary=Letters(transformer.config.vocab_size))
    one, two, other = t.why(), t.why(), t.why(seed=1)
    assert [w.alternatives for w in one.words] == [w.alternatives for w in two.words]
    assert [w.alternatives for w in one.words] != [w.alternatives for w in other.words]
    assert all(len(w.alternatives) >= 20 for w in one.words)
    for w in one.words:
        assert w.replaced["low"] <= w.replaced["median"] <= w.replaced["high"]
        assert w.word.text not in [a.strip() for a in w.alternatives]


def test_a_replaced_word_is_another_forward():
    transformer, ids, cause = planted()
    t = Trace(transformer, ids, vocabulary=Letters(transformer.config.vocab_size))
    found = t.why(alternatives=20)
    effect = found.words[cause]
    numbers = []
    for text in effect.alternatives:
        changed = [*ids[:cause], t.token_id(text), *ids[cause + 1 :]]
        normed = Trace(transformer, changed).at("final.normed", -1).double()
        numbers.append(found.value - float(normed @ found.target.way.vector))
    assert effect.replaced["low"] == pytest.approx(min(numbers), abs=1e-4)
    assert effect.replaced["high"] == pytest.approx(max(numbers), abs=1e-4)
    tap = edits.knockout(keys=cause, queries=slice(cause + 1, None))
    normed = Trace(transformer, ids, tap=tap).at("final.normed", -1).double()
    assert effect.knocked_out == pytest.approx(found.value - float(normed @ found.target.way.vector), abs=1e-4)


def test_long_texts_measure_the_words_that_are_read_from_most(monkeypatch):
    transformer, ids, cause = planted()
    t = Trace(transformer, ids, vocabulary=Letters(transformer.config.vocab_size))
    found = t.why(words=2)
    measured = [w.word.positions[0] for w in found.words if w.replaced is not None]
    assert measured == [cause, len(ids) - 1]
    monkeypatch.setattr("glassformer.interp.why.TOKENS", 24 * 7)
    measured = [w.word.positions[0] for w in t.why().words if w.replaced is not None]
    assert measured == [cause, len(ids) - 1]


def test_one_token_is_enough():
    found = Trace(model(), [3], vocabulary=Letters(40)).why()
    assert found.words[0].knocked_out is None
    assert found.residual < 1e-5
    assert found.sentence()
    json.dumps(found.to_dict(), allow_nan=False)


def test_alternatives_keep_their_kind():
    kinds = {b" the": "space lower", b"The": "capital", b" USA": "space upper", b"12": "digits", b", ": "signs"}
    assert {piece: _kind(piece) for piece in kinds} == kinds
    assert _kind(b"\xf0\x9f") == "bytes"
    draw = Alternatives(None, 50, seed=0)
    rows = draw.draw([3, 4], 24)
    assert len(rows) >= 20
    assert all(a != 3 and b != 4 for a, b in rows)


def test_the_soft_cap_is_a_last_step():
    t = Trace(model(logit_softcap=5.0), [1, 2, 3])
    found = t.why(words=0)
    step = found.target.softcap
    assert step["after"] == pytest.approx(5.0 * torch.tanh(torch.tensor(step["before"] / 5.0)).item(), rel=1e-5)
    assert "before the soft cap" in found.target.way.unit
    assert "before the soft cap" in found.sentence()
    assert Trace(model(), [1, 2]).why(words=0).target.softcap is None


def test_an_edited_model_is_explained_as_edited():
    transformer = model().double()
    for tap in (
        edits.steer(torch.ones(16).double(), layer=0),
        edits.ablate(layer=1, head=2),
        edits.steer(torch.ones(16).double(), "blocks.1.resid_pre"),
        edits.ablate(layer=0, part="attention"),
        edits.knockout(keys=1),
        edits.replace("final.scale", 2.0),
    ):
        t = Trace(transformer, [1, 2, 3, 4], tap=tap)
        found = t.why(words=0)
        assert found.residual < 1e-12
        assert found.value == pytest.approx(float(t.at("final.normed", -1) @ found.target.way.vector))


def test_bfloat16_says_so():
    found = Trace(model().bfloat16(), [1, 2, 3, 4]).why(words=0)
    assert found.precision == "bfloat16"
    assert found.residual < 0.05
    assert "(bfloat16)" in found.sentence()


def test_what_is_asked_wrongly_is_said():
    vocabulary = Letters(40)
    t = Trace(model(), [1, 2, 3], vocabulary=vocabulary)
    with pytest.raises(TextError, match=r"'bcd' is not one token here but 3: 'b', 'c', 'd'\. Name one of those"):
        t.why("bcd")
    with pytest.raises(ShapeError, match="no position 3"):
        t.why(position=3)
    with pytest.raises(TextError, match="no token 40: the vocabulary has 40, 0 to 39"):
        t.why(40)
    with pytest.raises(UsageError, match="against itself"):
        t.why("b", "b")
    with pytest.raises(UsageError, match="ask one of them"):
        Trace(model(), [[1], [2]]).why()
    with pytest.raises(UsageError, match="knows no vocabulary"):
        Trace(model(), [1]).why("b")
