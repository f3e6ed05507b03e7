"""Taps do what they say, in one forward, in batches, under padding and inside generation."""

from __future__ import annotations

import pytest
import torch

import glassformer
from glassformer.errors import ShapeError, SiteError, UsageError
from glassformer.interp import edits
from glassformer.interp.taps import Compose, compose
from glassformer.interp.trace import Trace
from glassformer.model import Cache
from tests.interp.helpers import close, model
from tests.tiny import tiny_directory

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


def logits(transformer, *taps, ids=IDS, mask=None):
    with torch.no_grad():
        return transformer(torch.tensor([ids]), mask=mask, tap=compose(*taps, config=transformer.config))[0]


def every_edit(transformer):
    """One of each, with positions before and after the split into prompt and continuation."""
    other = Trace(transformer, [7, 8, 9, 10, 11, 12, 13, 14, 15, 16])
    vector = torch.linspace(-1, 1, 16)
    return {
        "ablate a head": edits.ablate(layer=0, head=1),
        "ablate some positions": edits.ablate(layer=1, head=[0, 2], positions=[2, 7]),
        "ablate a neuron": edits.ablate(layer=0, neuron=[3, 4]),
        "ablate sources": edits.ablate(layer=1, keys=[0, 6]),
        "ablate a part": edits.ablate(layer=-1, part="feed_forward", positions=slice(3, 8)),
        "mean": edits.ablate(layer=0, head=2, method="mean", reference=other),
        "resample": edits.ablate(layer=0, head=2, method="resample", reference=other),
        "resample a pattern": edits.ablate("blocks.1.attn.pattern", head=3, method="resample", reference=other),
        "steer": edits.steer(vector, layer=0, strength=2.0, positions=slice(4, None)),
        "knock out": edits.knockout(keys=[1, 5]),
        "knock out some": edits.knockout(keys=2, queries=slice(5, 9), layer=1, head=0),
        "replace": edits.replace("blocks.0.mlp.out", torch.stack([vector, -vector]), positions=[1, 8]),
        "replace with a trace": edits.replace("blocks.1.resid_pre", other, positions=[5, 6]),
        "replace a number": edits.replace("blocks.*.ln2.scale", 1.5),
        "freeze": edits.freeze("blocks.0.attn.pattern", other),
        "freeze scales": edits.freeze(["blocks.*.ln1.scale", "final.scale"], other),
        "own": edits.tap("blocks.1.attn.rot_k", lambda x, where: x * 0.5, positions=[3]),
    }


@pytest.mark.parametrize("name", every_edit(model()))
def test_generation_with_a_cache_equals_one_forward(name):
    transformer = model()
    tap = every_edit(transformer)[name]
    whole = logits(transformer, tap)
    assert not torch.allclose(whole, logits(transformer)), "the tap does nothing"
    cache = Cache(transformer.config, 1, 16)
    bound = tap.bind(transformer.config)
    pieces = [IDS[:4], *([i] for i in IDS[4:])]
    with torch.no_grad():
        parts = [transformer(torch.tensor([piece]), cache, tap=bound)[0] for piece in pieces]
    close(torch.cat(parts), whole, name)
    bound.finish()


@pytest.mark.parametrize("name", every_edit(model()))
def test_left_padding_changes_nothing(name):
    transformer = model()
    tap = every_edit(transformer)[name]
    whole = logits(transformer, tap)
    tokens = torch.tensor([[0, 0, 0, *IDS], [*IDS, 1, 2, 3]])
    mask = torch.tensor([[False] * 3 + [True] * 10, [True] * 13])
    if "freeze" not in name and ("resample" in name or "trace" in name):
        tap_rows = every_edit(transformer)[name]
        tokens, mask = tokens[:1], mask[:1]
        tap = tap_rows
    with torch.no_grad():
        padded = transformer(tokens, mask=mask, tap=tap.bind(transformer.config))
    close(padded[0, 3:], whole, name)


def test_a_knockout_renormalises_and_keeps_the_diagonal():
    transformer = model()
    plain = Trace(transformer, IDS)
    t = Trace(transformer, IDS, tap=edits.knockout(keys=slice(0, 10), layer=0))
    close(t.pattern(0), torch.eye(10).expand(4, 10, 10))
    t = Trace(transformer, IDS, tap=edits.knockout(keys=2, queries=6, layer=0, head=1))
    expected = plain.pattern(0).clone()
    expected[1, 6, 2] = 0
    expected[1, 6] /= expected[1, 6].sum()
    close(t.pattern(0), expected)
    t = Trace(transformer, IDS, tap=edits.ablate(layer=0, head=1, keys=2, positions=6))
    assert float(t.pattern(0)[1, 6].sum()) < 1


def test_taps_compose_in_order():
    transformer = model()
    double = edits.tap("blocks.0.mlp.out", lambda x, where: x * 2)
    add = edits.tap("blocks.0.mlp.out", lambda x, where: x + 1)
    both, reverse = edits.record("blocks.0.mlp.out"), edits.record("blocks.0.mlp.out")
    plain = Trace(transformer, IDS)["blocks.0.mlp.out"]
    logits(transformer, double, add, both)
    close(both["blocks.0.mlp.out"][0], plain * 2 + 1)
    logits(transformer, Compose(add, double), reverse)
    close(reverse["blocks.0.hook_mlp_out"][0], (plain + 1) * 2)


def test_a_tap_of_ones_own():
    class Mine:
        reads = frozenset({"blocks.0.hook_mlp_out"})
        writes = frozenset({"blocks.1.attn.z"})

        def __init__(self):
            self.calls = []

        def __call__(self, site, x, where):
            self.calls.append((site, where.positions.shape))
            return x * 0

    transformer, mine = model(), Mine()
    close(logits(transformer, mine), logits(transformer, edits.ablate("blocks.1.attn.z")))
    assert mine.calls == [("blocks.0.hook_mlp_out", (1, 10)), ("blocks.1.attn.z", (1, 10))]


def test_rows_of_a_batch_are_edited_apart():
    transformer = model()
    taps = [edits.ablate(layer=0, head=h, rows=h) for h in range(4)]
    with torch.no_grad():
        tokens = torch.tensor([IDS] * 5)
        out = transformer(tokens, tap=compose(*taps, config=transformer.config))
    for h in range(4):
        close(out[h], logits(transformer, edits.ablate(layer=0, head=h)))
    close(out[4], logits(transformer))
    with pytest.raises(ShapeError, match="row 3 of a batch of 1"):
        logits(transformer, taps[3])


def test_a_record_joins_what_generation_passed():
    transformer = model()
    kept = edits.record("blocks.*.attn.pattern", "blocks.1.resid_post")
    bound = kept.bind(transformer.config)
    cache = Cache(transformer.config, 1, 16)
    with torch.no_grad():
        for piece in (IDS[:6], IDS[6:7], IDS[7:]):
            transformer(torch.tensor([piece]), cache, tap=bound)
    t = Trace(transformer, IDS)
    close(kept["blocks.1.attn.pattern"][0], t.pattern(1))
    close(kept["blocks.1.resid_post"][0], t["blocks.1.resid_post"])
    assert len(kept.pieces("blocks.1.resid_post")) == 3
    assert sorted(kept) == ["blocks.0.attn.pattern", "blocks.1.attn.pattern", "blocks.1.resid_post"]
    kept.clear()
    with pytest.raises(SiteError, match="was not recorded; recorded is nothing yet"):
        kept["blocks.1.resid_post"]


def test_the_model_itself_never_changes():
    transformer = model()
    before = logits(transformer)
    logits(transformer, *every_edit(transformer).values())
    assert torch.equal(logits(transformer), before)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: edits.ablate(), UsageError, "Say what to ablate: a site, a layer, a head, a neuron or an expert."),
        (lambda: edits.ablate("embed", layer=3), UsageError, "either a site or a layer"),
        (lambda: edits.ablate(layer=0, part="atention"), UsageError, "no part 'atention'; choose attention"),
        (lambda: edits.ablate(layer=0, method="drop"), UsageError, "method 'drop' is unknown; choose zero"),
        (lambda: edits.ablate(layer=0, method="mean"), UsageError, "needs one, a trace of other text"),
        (lambda: edits.ablate(layer=9), SiteError, "no layer 9: the model has 2 layers, 0 to 1"),
        (lambda: edits.ablate(layer=0, head=4), SiteError, "'blocks.0.attn.z' has 4 heads, 0 to 3; there is no 4"),
        (lambda: edits.ablate("blocks.0.mlp.out", head=0), SiteError, "'blocks.0.mlp.out' has no heads; its axes"),
        (lambda: edits.ablate("blocks.0.attn.x"), SiteError, "no site 'blocks.0.attn.x'. Did you mean"),
        (lambda: edits.ablate(layer=0, positions=-1), ShapeError, "-1 has no fixed meaning while a text grows"),
        (lambda: edits.ablate(layer=0, positions=[]), ShapeError, "given no positions"),
        (lambda: edits.ablate(layer=0, neuron=24), SiteError, "has 24 units, 0 to 23; there is no 24"),
        (lambda: edits.steer(torch.ones(3), layer=0), ShapeError, "needs 16 numbers .d_model.; got .3,."),
        (lambda: edits.steer(torch.ones(16)), UsageError, "Say where to steer"),
        (lambda: edits.replace("embed", torch.ones(2, 5)), ShapeError, "does not fit .1, 10, 16., .batch, query"),
        (lambda: edits.record(), SiteError, "names of the sites"),
        (lambda: edits.tap("logits.precap", lambda x, where: x), SiteError, "not soft-capped; use logits"),
    ],
)
def test_what_is_asked_wrongly_is_said(make, error, message):
    with pytest.raises(error, match=message):
        logits(model(), make())


def test_a_reference_that_is_too_short_is_refused():
    transformer = model()
    short = Trace(transformer, [1, 2, 3])
    with pytest.raises(ShapeError, match="recorded text has 3 tokens, and position 9"):
        logits(transformer, edits.ablate(layer=0, head=0, method="resample", reference=short))
    close(logits(transformer, edits.freeze("embed", Trace(transformer, IDS[:3]))), logits(transformer))


def test_an_unbound_tap_says_so():
    with pytest.raises(SiteError, match=r"not bound to a model yet; use model.edited"):
        model()(torch.tensor([IDS]), tap=edits.ablate(layer=0))


def test_a_position_that_never_comes_is_an_error_in_the_end():
    transformer = model()
    bound = edits.ablate(layer=0, positions=[2, 12]).bind(transformer.config)
    transformer(torch.tensor([IDS]), tap=bound)
    with pytest.raises(SiteError, match="means position 12, and the text ended at position 9"):
        bound.finish()


def test_an_edited_model_generates_as_it_predicts(tmp_path):
    loaded = glassformer.load(tiny_directory(tmp_path / "tiny"))
    text = "The American shrew"
    for tap in (
        edits.ablate(layer=1, head=2),
        edits.knockout(keys=1),
        edits.steer(torch.linspace(-2, 2, 32), layer=0, positions=slice(2, None)),
    ):
        edited = loaded.edited(tap)
        ids = edited.encode(text)
        for _ in range(6):
            ids.append(edited.next(ids).top(1)[0].id)
        got = [piece.id for piece in edited.generate(text, max_tokens=6, temperature=0) if piece.id is not None]
        assert len(got) > 1
        assert got == ids[len(edited.encode(text)) :][: len(got)]
        assert edited.next(text).top(1)[0].probability != loaded.next(text).top(1)[0].probability
    with pytest.raises(SiteError, match="no layer 5"):
        loaded.edited(edits.ablate(layer=5))
    with pytest.raises(SiteError, match="means position 40"):
        loaded.edited(edits.ablate(layer=0, positions=40)).next(text)
