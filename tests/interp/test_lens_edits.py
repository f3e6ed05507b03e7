"""Interventions along a lens: the vectors, the moves, claims and effects, against whole forwards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from glassformer.errors import UsageError
from glassformer.interp import edits
from glassformer.interp.fitting import fit
from glassformer.interp.lens_edits import token_vector
from glassformer.interp.trace import Trace
from glassformer.model import Config, Transformer
from tests.interp.helpers import model
from tests.interp.test_readouts import ids, made_one
from tests.interp.test_sharing import in_copies
from tests.model.test_stacks import PHASES, drawn
from tests.strategies import stacks


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    return model(n_layers=3).double()


def test_the_vector_is_the_gradient_of_what_the_lens_reads(transformer: Transformer) -> None:
    """Of the token's score times the final norm's divisor, which the vector leaves out, along the stream's surface."""
    lens = fit(transformer, ids(60), "jacobian", window=12)
    for through in (None, lens):
        found = token_vector(transformer, through, 1, 7)
        x = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
        y = x if through is None else lens(1, x)
        logits = transformer.unembed_hidden(transformer.final.apply_scale(y, torch.ones(1, dtype=torch.float64)))
        [slope] = torch.autograd.grad(logits[7] - logits.mean(), x)
        torch.testing.assert_close(found, slope / slope.norm())


@pytest.mark.parametrize("swapped", [False, True])
def test_claims_are_the_lens_s_and_effects_the_model_s(transformer: Transformer, swapped: bool) -> None:
    lens = fit(transformer, ids(60), "relevance", window=12)
    run = Trace(transformer, ids(10))
    other = 11 if swapped else None
    found = run.lens_edit(1, 7, other, through=lens, position=6, strength=0.3)
    h = run["blocks.1.resid_post"][6]
    a = token_vector(transformer, lens, 1, 7)
    if swapped:
        b = token_vector(transformer, lens, 1, 11)
        c = torch.linalg.lstsq(torch.stack([a, b], 1), h[:, None]).solution[:, 0]  # its coordinates along both
        moved = h + (c[1] - c[0]) * a + (c[0] - c[1]) * b
        assert float(moved.norm()) == pytest.approx(float(h.norm()))
        assert [float(a @ moved), float(b @ moved)] == pytest.approx([float(b @ h), float(a @ h)])
    else:
        moved = h + 0.3 * h.norm() * a
    after = Trace(transformer, run.ids, tap=edits.replace("blocks.1.resid_post", moved, positions=6))
    through_tap = Trace(transformer, run.ids, tap=found.tap)
    torch.testing.assert_close(through_tap["logits"], after["logits"])

    def centred(x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(-1, keepdim=True)

    torch.testing.assert_close(found.measured, centred(torch.stack([run.logits(6), after.logits(6)])))
    read = transformer.unembed_hidden(transformer.normed(torch.stack([h, moved]) @ lens.matrices[1].T))
    torch.testing.assert_close(found.claimed, centred(read))
    told = found.to_dict(3)
    assert [row["id"] for row in told["tokens"]] == ([7, 11] if swapped else [7])
    assert told["tokens"][0]["measured"]["after"] == pytest.approx(float(after.logits(6).softmax(-1)[7]))
    assert [row["id"] for row in told["top"]] == after.logits(6).topk(3).indices.tolist()
    p, q = run.logits(6).log_softmax(-1), after.logits(6).log_softmax(-1)
    assert told["kl"] == pytest.approx(float((p.exp() * (p - q)).sum()))
    change = (centred(read)[1] - centred(read)[0], found.measured[1] - found.measured[0])
    assert told["correlation"] == pytest.approx(float(torch.corrcoef(torch.stack(change))[0, 1]))


@pytest.mark.parametrize("kind", ["plain", "tuned", "jacobian", "relevance"])
def test_in_copies_a_token_s_vector_moves_all_of_them(kind: str) -> None:
    """The gradient of what is read, by all copies, with the lengths that they have held."""
    transformer = drawn(in_copies())
    lens = None if kind == "plain" else fit(transformer, ids(60), kind, window=12, steps=1)
    run = Trace(transformer, ids(10))
    h = run["blocks.1.resid_post"][6].clone().requires_grad_()
    if lens is None or kind == "tuned":
        y = made_one(transformer, h, held=True)
        y = y if lens is None else y @ lens.matrices[1].T + lens.biases[1]
    else:
        y = h @ lens.matrices[1].T
    logits = transformer.unembed_hidden(transformer.final.apply_scale(y, torch.ones(1, dtype=torch.float64)))
    [slope] = torch.autograd.grad(logits[7] - logits.mean(), h)
    way = token_vector(transformer, lens, 1, 7, h.detach())
    torch.testing.assert_close(way, slope / slope.norm())
    found = run.lens_edit(1, 7, through=lens, position=6, strength=0.3)
    moved = h.detach() + 0.3 * h.detach().norm() * way
    after = Trace(transformer, run.ids, tap=edits.replace("blocks.1.resid_post", moved, positions=6)).logits(6)
    torch.testing.assert_close(found.measured[1], after - after.mean())


@given(stacks())
@settings(max_examples=8, phases=PHASES)
def test_the_effect_is_the_tap_s_in_every_design(config: Config) -> None:
    transformer = drawn(config)
    if config.head is not None or config.n_layers < 2:
        return
    text = torch.randint(0, config.vocab_size, (7,), generator=torch.Generator().manual_seed(0)).tolist()
    run = Trace(transformer, text)
    found = run.lens_edit(0, 1, position=4)
    after = Trace(transformer, text, tap=found.tap).logits(4)
    torch.testing.assert_close(found.measured[1], (after - after.mean()).double(), rtol=1e-6, atol=1e-7)


def test_what_cannot_be_moved_is_refused(transformer: Transformer) -> None:
    run = Trace(transformer, ids(6))
    with pytest.raises(UsageError, match="earlier layer"):
        run.lens_edit(-1, 3)
    with pytest.raises(UsageError, match="cannot be swapped with itself"):
        run.lens_edit(0, 3, 3)
    with pytest.raises(UsageError, match="without edits"):
        Trace(transformer, ids(6), tap=edits.ablate(layer=0)).lens_edit(0, 3)
