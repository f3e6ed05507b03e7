"""One gradient step, to look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import glassformer as gf
from glassformer.cli.app import main
from glassformer.errors import TextError, UsageError
from glassformer.train import train
from glassformer.train.gradient_step import one_step
from glassformer.train.recipe import Recipe


@pytest.fixture
def run(small: Callable[..., Recipe], out: Callable[[], Path]) -> Path:
    path = train(small(steps=30, batch=8), out=out(), quiet=True).path
    assert path is not None
    return path


def test_a_step_lowers_the_loss_and_leaves_the_model(run: Path) -> None:
    model = gf.load(run, device="cpu")
    kept = {name: p.clone() for name, p in model.transformer.state_dict().items()}
    ids = model.encode("the dog sat")
    small_step = one_step(model.transformer, ids, share=0.001)
    fall = small_step.loss - small_step.loss_after
    assert fall == pytest.approx(small_step.promised, rel=0.05)
    assert small_step.promised == pytest.approx(0.001 * small_step.loss, rel=1e-4)
    assert small_step.rate * small_step.gradient_norm**2 == pytest.approx(small_step.promised)
    assert sum(v * v for v in small_step.gradient_norms.values()) ** 0.5 == pytest.approx(
        small_step.gradient_norm, rel=1e-4
    )
    after = model.transformer.state_dict()
    assert all(torch.equal(after[name], kept[name]) for name in kept)
    assert all(p.grad is None for p in model.transformer.parameters())


def test_what_moves_is_named(run: Path) -> None:
    model = gf.load(run, device="cpu")
    step = one_step(model.transformer, model.encode("the dog"), movers=5)
    assert len(step.movers) == 5
    for mover in step.movers:
        assert model.transformer.state_dict()[mover.name][mover.index].item() == pytest.approx(mover.before)
        assert mover.after != mover.before


def test_what_cannot_be_stepped_on_is_refused(run: Path) -> None:
    transformer = gf.load(run, device="cpu").transformer
    with pytest.raises(TextError, match="needs a text of at least 2 tokens"):
        one_step(transformer, [3])
    with pytest.raises(TextError, match="The text has 99 tokens; this model was made for 16"):
        one_step(transformer, [3] * 99)
    with pytest.raises(UsageError, match="The learning rate must be above 0; got -1"):
        one_step(transformer, [3, 4], rate=-1)
    with pytest.raises(UsageError, match="The share of the loss"):
        one_step(transformer, [3, 4], share=2)


def test_the_verb(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["step", str(run), "the cat", "--json"])
    assert left.value.code == 0
    data = json.loads(capsys.readouterr().out)
    assert data["loss_after"] < data["loss"]
    assert [row["token"] for row in data["tokens"]] == list("he cat")
    with pytest.raises(SystemExit) as left:
        main(["step", str(run), "the cat"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "the gradient promised" in said
    assert "moved furthest" in said
