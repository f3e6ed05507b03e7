"""Alignment by exchanging: what is exchanged, what training finds where the answer is known, and its controls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

from glassformer.errors import UsageError
from glassformer.interp import edits
from glassformer.interp.alignment import Bases, align
from glassformer.interp.direction import Direction
from glassformer.interp.directions import direction
from glassformer.interp.trace import Trace
from glassformer.model import Config, Transformer
from tests.interp.helpers import model
from tests.model.test_stacks import PHASES, drawn
from tests.strategies import stacks

AXIS = 5


@pytest.fixture(scope="module")
def known() -> Transformer:
    """A model that says token 3 or 9 by the sign of one coordinate of the stream, whatever the others are."""
    transformer = model(n_layers=2).double()
    with torch.no_grad():
        for block in transformer.blocks:
            for matrix in (block.attn.o, block.mlp.down):
                matrix.weight.zero_()
                matrix.bias.zero_()
        for matrix in (transformer.embed.weight, transformer.unembedding):
            matrix.copy_(torch.randn(matrix.shape, generator=torch.Generator().manual_seed(1)))
        transformer.embed.weight[:, AXIS] = torch.where(torch.arange(40) < 20, 3.0, -3.0)
        transformer.unembedding[:, :] *= 0.01
        transformer.unembedding[3], transformer.unembedding[9] = 0.0, 0.0
        transformer.unembedding[3, AXIS], transformer.unembedding[9, AXIS] = 5.0, -5.0
    return transformer


def sides(transformer: Transformer, count: int = 16) -> tuple[list[Trace], list[Trace]]:
    return tuple(  # type: ignore[return-value]
        [Trace(transformer, [1, *([2] * (i % 3)), low + i]) for i in range(count)] for low in (0, 20)
    )


def test_what_is_exchanged_is_what_an_edit_of_the_whole_forward_exchanges() -> None:
    transformer = model(n_layers=3).double()
    g = torch.Generator().manual_seed(0)
    texts = [Trace(transformer, torch.randint(0, 40, (n,), generator=g).tolist()) for n in (5, 7, 5, 1, 7, 1)]
    sources = texts[::-1]
    basis = torch.linalg.qr(torch.randn(16, 3, generator=g, dtype=torch.float64)).Q.T
    found = Bases(texts, sources, 1).exchanged(basis)
    for i, (text, source) in enumerate(zip(texts, sources, strict=True)):
        other = source["blocks.1.resid_post"][-1]
        at = len(text) - 1

        def put(x: torch.Tensor, where: object, other: torch.Tensor = other) -> torch.Tensor:
            return x + (other - x) @ basis.T @ basis

        after = Trace(transformer, text.ids, tap=edits.tap("blocks.1.resid_post", put, positions=at)).logits(-1)
        right, own = int(source.logits(-1).argmax()), int(text.logits(-1).argmax())
        assert float(found[i]) == pytest.approx(float(after[right] - after[own]), abs=1e-9)


def test_it_finds_the_coordinate_that_the_answer_hangs_on(known: Transformer, tmp_path: Path) -> None:
    positive, negative = sides(known)
    found = direction("sign", positive, negative, 0, method="das")
    assert found.subspace is not None
    assert float(found.subspace[0, AXIS].abs()) > 0.97
    assert float(found.vector[AXIS]) == pytest.approx(6.0, rel=0.1)
    facts = found.facts
    assert (facts["accuracy"], facts["trained"], facts["whole"]) == (1.0, 1.0, 1.0)
    assert facts["random"] < 0.3
    assert facts["shuffled"] < 0.9
    assert facts["selectivity"] == facts["accuracy"] - facts["shuffled"]
    assert (facts["pairs"], facts["held_out"], facts["dimensions"]) == (16, 4, 1)
    found.save(tmp_path / "sign")
    read = Direction.load(tmp_path / "sign", known)
    assert torch.equal(read.subspace, found.subspace)
    assert torch.equal(read.vector, found.vector)
    steered = Trace(known, positive[0].ids, tap=edits.steer(read, strength=-2.0)).logits(-1)
    assert (int(positive[0].logits(-1).argmax()), int(steered.argmax())) == (3, 9)
    few, again = (align(positive, negative, 1, steps=3, controls=1) for _ in range(2))
    assert torch.equal(few[0], again[0])
    assert few[1] == again[1]


def test_a_wide_subspace_holds_the_coordinate(known: Transformer) -> None:
    basis, facts = align(*sides(known), 1, dimensions=3, steps=20, controls=0)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert (facts["accuracy"], facts["shuffled"], facts["selectivity"]) == (1.0, None, None)


@given(stacks())
@settings(max_examples=8, phases=PHASES)
def test_every_design_is_exchanged_as_an_edit_does(config: Config) -> None:
    """With the whole space exchanged, by every kind of part."""
    transformer = drawn(config)
    if config.copies:
        return
    g = torch.Generator().manual_seed(0)
    texts = [Trace(transformer, torch.randint(0, config.vocab_size, (6,), generator=g).tolist()) for _ in range(2)]
    found = Bases(texts, texts[::-1], 0).gaps(torch.stack([t["blocks.0.resid_post"][-1] for t in texts[::-1]]))
    for i, (text, source) in enumerate(zip(texts, texts[::-1], strict=True)):
        value = source["blocks.0.resid_post"][-1]
        after = Trace(transformer, text.ids, tap=edits.replace("blocks.0.resid_post", value, positions=5)).logits(-1)
        right, own = int(source.logits(-1).argmax()), int(text.logits(-1).argmax())
        if config.logit_softcap is None:
            gap = float(after[right] - after[own])
            times = config.logit_scale or 1.0
            assert float(found[i]) * times == pytest.approx(gap, rel=1e-6, abs=1e-8)


def test_what_cannot_be_aligned_is_refused(known: Transformer) -> None:
    positive, negative = sides(known, 5)
    with pytest.raises(UsageError, match="in pairs; there are 5 positive and 4 negative"):
        direction("x", positive, negative[:4], 0, method="das")
    alike = sides(known, 10)[0]
    with pytest.raises(UsageError, match="of 5 pairs 0 are"):
        direction("x", alike[:5], alike[5:], 0, method="das")
    # Both kinds on both sides: what rounding leaves between the means is no direction.
    for method in ("mean", "probe", "das"):
        with pytest.raises(UsageError, match="On average the examples do not differ in layer 0"):
            direction("x", [*positive, *negative], [*negative, *positive], 0, method=method)
    with pytest.raises(UsageError, match="1 to 16 dimensions"):
        direction("x", positive, negative, 0, method="das", dimensions=17)
    with pytest.raises(UsageError, match="Only alignment"):
        direction("x", positive, negative, 0, dimensions=2)
    with pytest.raises(UsageError, match="take position last"):
        direction("x", positive, negative, 0, method="das", position="mean")
