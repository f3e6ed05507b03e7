"""Engines of every runner on a tiny model."""

from __future__ import annotations

import pytest
import torch

from glassformer.generate.engine import Engine
from glassformer.model import Transformer
from tests.generate.engines import CONFIG, EXPERTS, RUNNERS, Letters, Reference


@pytest.fixture(scope="module", params=RUNNERS)
def runner(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(runner) -> Transformer:
    torch.manual_seed(1)
    transformer = Transformer(EXPERTS if "experts" in runner else CONFIG)
    with torch.no_grad():
        for p in transformer.parameters():
            p.normal_(0, 0.5) if p.ndim > 1 else p.fill_(1.0)
    return transformer.requires_grad_(False)


@pytest.fixture(scope="module")
def reference(runner, model) -> Reference:
    return Reference(model, runner.partition(" ")[0])


@pytest.fixture
def make(reference, model):
    """Engines of the runner under test, which answer with it from the first token on."""
    made: list[Engine] = []

    def build(tokenizer=None, **options) -> Engine:
        native = reference.kind != "torch"
        precision = reference.kind if native else "exact"
        engine = Engine(model, tokenizer, precision=precision, use_native=native, **options)
        made.append(engine)
        assert engine.wait(120)
        assert engine.path.startswith("native" if native else "eager")
        return engine

    yield build
    for engine in made:
        engine.close()


@pytest.fixture
def engine(make):
    return make(Letters(), slots=3)
