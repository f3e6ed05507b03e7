"""Activation patching is a forward with that place replaced; attribution is its gradient."""

from __future__ import annotations

import pytest
import torch

from glassformer.checkpoint import open_checkpoint
from glassformer.errors import ShapeError, SiteError, UsageError
from glassformer.interp import patch_sweep
from glassformer.interp.edits import ablate, knockout, record, steer, tap
from glassformer.interp.patching import SITES, patch
from glassformer.interp.taps import Compose
from glassformer.interp.trace import Trace
from glassformer.model import Transformer
from tests.interp.helpers import Letters, model
from tests.tiny import VARIANTS, tiny_hf, tiny_tokens

RIGHT, WRONG = 3, 7


def prompts(vocab: int = 40, length: int = 14, at: tuple[int, ...] = (4, 5)) -> tuple[list[int], list[int]]:
    """Two texts of one length that differ at some positions."""
    clean = [int(i) % vocab for i in tiny_tokens(1, length, seed=5)[0]]
    return clean, [(id + 1) % vocab if i in at else id for i, id in enumerate(clean)]


def naively(clean: Trace, ids: list[int], what: str, edit=None, position: int = -1) -> torch.Tensor:
    """The grid by whole forwards, one for each place, with a tap that puts the clean numbers in."""
    config = clean.config
    columns = config.n_heads(0) if what == "heads" else len(ids)
    out = torch.zeros(config.n_layers, columns, dtype=torch.float64)
    way = (clean.transformer.unembedding[RIGHT] - clean.transformer.unembedding[WRONG]).double()
    for layer in range(config.n_layers):
        site = f"blocks.{layer}.{SITES[what]}"
        wanted = clean.tensor(site)
        for column in range(columns):

            def put(x, where, wanted=wanted, column=column):
                chosen = (slice(None), slice(None), column) if what == "heads" else (slice(None), column)
                x = x.clone()
                x[chosen] = wanted[chosen]
                return x

            taps = [*([edit] if edit is not None else []), tap(site, put)]
            run = Trace(clean.transformer, ids, tap=Compose(*taps))
            out[layer, column] = run["final.normed"][position].double() @ way
    return out


def check(transformer: Transformer, vocab: int = 40, edit=None, position: int = -1, length: int = 14) -> None:
    one, other = prompts(vocab, length)
    clean, corrupted = Trace(transformer, one, tap=edit), Trace(transformer, other, tap=edit)
    for what in SITES:
        found = patch([(clean, corrupted)], what, answer=RIGHT, wrong=WRONG, position=position)
        expected = naively(clean, other, what, edit, position)
        scale = max(expected.abs().max(), abs(found.clean[0]))
        assert (found.measured[0] - expected).abs().max() <= 2e-5 * scale, what
        # The two ends: the whole clean stream brings everything back where one position carries all of it.
        assert found.correlation is None or -1 <= found.correlation <= 1 + 1e-9


@pytest.mark.parametrize("family", sorted(VARIANTS))
def test_patching_is_a_forward_with_that_place_replaced(tmp_path, family):
    tiny_hf(family).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    check(Transformer.empty(checkpoint.config).load(checkpoint.tensors), vocab=320)


@pytest.mark.parametrize(
    "design",
    [
        {"windows": (5, None)},
        {"softcap": 3.0, "post": True},
        {"parallel": True, "logit_softcap": 4.0},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "edit",
    [
        steer(torch.linspace(-1, 1, 16), layer=0),
        ablate(layer=1, head=2),
        knockout(keys=1, layer=0),
        tap("final.scale", lambda x, where: 2 * x),
    ],
    ids=["steered", "ablated", "knocked out", "final norm"],
)
def test_patching_in_an_edited_model(design, edit):
    check(model(**design), edit=edit)


def test_patching_measured_before_the_end():
    check(model(windows=(5, None)), position=8)


@pytest.mark.parametrize(("held", "work"), [(1, 1), (4096, 1 << 14)])
def test_small_batches_give_the_same(monkeypatch, held, work):
    """Columns and layers split over many batches, and rows over many calls."""
    monkeypatch.setattr(patch_sweep, "_HELD", held)
    monkeypatch.setattr(patch_sweep, "_WORK", work)
    check(model(n_layers=3))
    one, other = prompts()
    t = model()
    double = patch([(Trace(t, one), Trace(t, other))], metric=lambda x, _: x[:, RIGHT] - x[:, WRONG])
    plain = patch([(Trace(t, one), Trace(t, other))], answer=RIGHT, wrong=WRONG)
    torch.testing.assert_close(double.measured, plain.measured, atol=1e-5, rtol=1e-5)


def test_nothing_is_run_where_nothing_differs(monkeypatch):
    """Before the first other token no place can do anything, and none is run."""
    t = model()
    one, other = prompts(at=(9,))
    clean, corrupted = Trace(t, one), Trace(t, other)
    seen: list[int] = []
    run = t.stream

    def counting(*args, **kwargs):
        if "start" in kwargs:  # not the gradient of the estimate, which runs the whole text
            seen.append(kwargs["start"])
        return run(*args, **kwargs)

    monkeypatch.setattr(t, "stream", counting)
    found = patch([(clean, corrupted)], answer=RIGHT, wrong=WRONG)
    assert min(seen) == 9
    assert (found.measured[0, :, :9] == found.corrupted[0]).all()
    assert (found.restored[0, :, :9] == 0).all()
    assert found.restored[0, 0, 9] == pytest.approx(1, abs=1e-4)  # the runs differ by 3 % of the logits


def test_attribution_is_exact_where_everything_is_linear():
    """A word that differs by a millionth changes everything by its gradient."""
    t = model(n_layers=3).double()
    with torch.no_grad():
        t.embed.weight[1] = t.embed.weight[2] + 1e-6 * torch.linspace(-1, 1, 16, dtype=torch.float64)
    one, other = [5, 9, 1, 7, 8, 4], [5, 9, 2, 7, 8, 4]
    for what in SITES:
        found = patch([(Trace(t, one), Trace(t, other))], what, answer=RIGHT, wrong=WRONG)
        assert found.correlation > 1 - 1e-6, what
        true = found.measured - found.corrupted[0]
        assert (found.attribution - true).abs().max() <= 1e-3 * true.abs().max(), what


def test_several_pairs_and_a_metric_of_one_s_own():
    t = model()
    pairs = []
    for at in ((4,), (2, 6), (12,)):
        one, other = prompts(at=at)
        pairs.append((Trace(t, one), Trace(t, other)))
    said: list[tuple[int, int]] = []
    together = patch(
        pairs, answer=[RIGHT, 5, 9], wrong=[WRONG, 6, None], progress=lambda done, total, _: said.append((done, total))
    )
    assert said[-1] == (6, 6)
    assert said == sorted(said)
    for i, (right, wrong) in enumerate(((RIGHT, WRONG), (5, 6))):
        alone = patch([pairs[i]], answer=right, wrong=wrong)
        assert torch.equal(alone.measured[0], together.measured[i])
        assert torch.equal(alone.attribution[0], together.attribution[i])
    mean = patch(
        pairs[:2], metric=lambda logits, pair: logits[:, RIGHT + pair].softmax(0) * 0 + logits[:, RIGHT + pair]
    )
    assert mean.unit == "the caller's metric"
    assert mean.clean[1] == pytest.approx(float(pairs[1][0].logits(-1)[RIGHT + 1]), abs=1e-5)
    assert mean.to_dict()["pairs"][0]["answer"] is None
    probability = patch(pairs, "heads", metric=lambda logits, _: logits.softmax(-1)[:, RIGHT])
    assert probability.measured.shape == (3, 2, 4)
    assert 0 <= probability.measured.min() <= probability.measured.max() <= 1
    shorter = (Trace(t, [1, 2, 3, 4]), Trace(t, [1, 9, 3, 4]))
    assert patch([pairs[0], shorter], "heads", answer=RIGHT, wrong=WRONG).measured.shape == (2, 2, 4)


def test_a_tap_that_only_looks_is_not_called_again():
    t = model()
    one, other = prompts()
    kept = record("blocks.1.attn.z")
    corrupted = Trace(t, other, tap=kept)
    patch([(Trace(t, one), corrupted)], answer=RIGHT, wrong=WRONG)
    assert len(kept.pieces("blocks.1.attn.z")) == 1


def test_what_cannot_be_patched_is_said():
    t = model()
    letters = Letters(40)
    one, other = prompts()
    a, b = Trace(t, one, vocabulary=letters), Trace(t, other, vocabulary=letters)
    short = Trace(t, one[:-1], vocabulary=letters)
    with pytest.raises(ShapeError, match=r"The prompts are 14 and 13 tokens long \(.* \| .*they need as many tokens"):
        patch([(a, short)])
    with pytest.raises(UsageError, match="The two prompts are the same, so there is nothing to patch"):
        patch([(a, Trace(t, one, vocabulary=letters))])
    with pytest.raises(UsageError, match="nothing called 'neurons' to patch; choose stream, attention"):
        patch([(a, b)], "neurons")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs at least one pair"):
        patch([])
    with pytest.raises(UsageError, match="either a metric or the tokens"):
        patch([(a, b)], metric=lambda x, _: x[:, 0], answer=1)
    with pytest.raises(ShapeError, match=r"one number for each row .*, shape \(1,\); it gave shape \(\)"):
        patch([(a, b)], metric=lambda x, _: x.sum())
    with pytest.raises(ShapeError, match="it gave float"):
        patch([(a, b)], metric=lambda x, _: 1.0)  # type: ignore[arg-type,return-value]
    with pytest.raises(UsageError, match="Pair 1 gives -?0 both ways"):
        patch([(a, b)], metric=lambda x, _: 0 * x[:, 0])
    with pytest.raises(UsageError, match="2 answers; give one for each, or one for all"):
        patch([(a, b)], answer=[1, 2])
    with pytest.raises(ShapeError, match=r"The pairs are 4, 14 tokens long; a grid over positions needs"):
        patch([(a, b), (Trace(t, [1, 2, 3, 4]), Trace(t, [1, 9, 3, 4]))], answer=1, wrong=2)
    with pytest.raises(UsageError, match="one text each; take one of a batch"):
        patch([(Trace(t, [one, other]), b)])
    with pytest.raises(UsageError, match="same model"):
        patch([(a, Trace(model(seed=1), other))])
    with pytest.raises(ShapeError, match="there is no position 20"):
        patch([(a, b)], answer=1, wrong=2, position=20)
    with pytest.raises(UsageError, match="cannot be explained against itself"):
        patch([(a, b)], answer=1, wrong=1)
    with pytest.raises(SiteError, match="no layer 9"):
        Trace(t, one, tap=ablate(layer=9))


def test_two_prompts_with_one_answer_ask_for_the_answers():
    t = model()
    with torch.no_grad():
        t.unembed.weight.zero_()
        t.unembed.weight[6] = t.final.weight
    one, other = prompts()
    a, b = Trace(t, one, vocabulary=Letters(40)), Trace(t, other, vocabulary=Letters(40))
    ends = {int(x.logits(-1).argmax()) for x in (a, b)}
    if len(ends) == 1:
        with pytest.raises(
            UsageError, match=r"Both prompts are continued with '.*'; name the answer and the wrong one\."
        ):
            patch([(a, b)])
