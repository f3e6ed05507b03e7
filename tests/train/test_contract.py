"""Every form of the training step is the model's own loss and gradient, whatever design is drawn."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from glassformer.errors import ConfigError
from glassformer.kernels.compile import find_compiler
from glassformer.model import Config, Transformer
from glassformer.train.native import refusal
from glassformer.train.native_step import NativeStep
from glassformer.train.recipe import OptimizerSpec
from glassformer.train.weights import FlatWeights
from tests.interp.helpers import randomised
from tests.strategies import configs, stacks, trained_natively

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(
    find_compiler() is None and not os.environ.get("CI"), reason="there is no C++ compiler here"
)


def batch_of(config: Config, seed: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(0, config.vocab_size, (rows, length), generator=generator) for _ in range(2))
    y[0, : length // 3] = -100  # some do not count
    return x, y


def truth(transformer: Transformer, x: Tensor, y: Tensor) -> tuple[float, dict[str, Tensor]]:
    """The loss and its gradient by autograd through the model itself, in the model's dtype."""
    transformer.requires_grad_(True)
    loss = cross_entropy(transformer(x).flatten(0, 1), y.flatten(), ignore_index=-100, reduction="sum")
    loss.backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in transformer.named_parameters()}
    return float(loss.detach()), {name: grad.float() for name, grad in found.items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor], within: float = 1e-4) -> None:
    size = max(float(grad.norm()) for grad in expected.values())
    assert found.keys() <= expected.keys()
    for name, grad in expected.items():
        assert (found.get(name, torch.zeros_like(grad)) - grad).norm() <= within * (grad.norm() + 0.1 * size), name


def native_is_the_model(config: Config, seed: int, rows: int, length: int) -> None:
    x, y = batch_of(config, seed, rows, length)
    loss, expected = truth(randomised(Transformer(config), seed).double(), x, y)
    weights = FlatWeights(randomised(Transformer(config), seed).requires_grad_(True), torch.float32, tied=config.tied)
    step = NativeStep(config, weights, OptimizerSpec(), threads=1)
    assert float(step.accumulate(x, y, 1.0)) == pytest.approx(loss, rel=1e-5)
    same(weights.named_grads(), expected)


ROWS, LENGTHS, SEEDS = st.integers(1, 5), st.integers(1, 48), st.integers(0, 99)


@needs_compiler
@settings(max_examples=30)
@given(trained_natively(), SEEDS, ROWS, LENGTHS)
def test_the_native_step_is_the_model_in_every_design_it_takes(
    config: Config, seed: int, rows: int, length: int
) -> None:
    assert refusal(config) is None
    native_is_the_model(config, seed, rows, length)


def grafted(config: Config, other: Config, place: str, field: str) -> Config:
    """The design with one field of its parts, its norm or itself taken from another design."""
    if place == "config":
        return dataclasses.replace(config, **{field: getattr(other, field)})
    if place == "norm":
        return dataclasses.replace(config, norm=dataclasses.replace(config.norm, **{field: getattr(other.norm, field)}))
    if place == "layer":
        change: dict[str, Any] = {field: getattr(other.layers[0], field)}
    else:
        ours, theirs = getattr(config.layers[0], place), getattr(other.layers[0], place)
        if type(theirs) is not type(ours):
            return config
        change = {place: dataclasses.replace(ours, **{field: getattr(theirs, field)})}
    return dataclasses.replace(config, layers=tuple(dataclasses.replace(x, **change) for x in config.layers))


def fields(kind: Any, *without: str) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.name not in without]


def places(config: Config) -> list[tuple[str, str]]:
    layer = config.layers[0]
    return [
        *(("config", name) for name in fields(config, "layers", "norm", "vocab_size", "d_model", "context")),
        *(("norm", name) for name in fields(config.norm)),
        *(("layer", name) for name in fields(layer, "mixer", "feed_forward")),
        *(("mixer", name) for name in fields(layer.mixer)),
        *(("feed_forward", name) for name in fields(layer.feed_forward)),
    ]


@needs_compiler
@settings(max_examples=8)
@given(
    trained_natively(), st.lists(st.one_of(stacks(max_layers=1), configs(max_layers=1)), min_size=6, max_size=6), SEEDS
)
def test_what_the_native_step_does_not_do_it_refuses(config: Config, others: list[Config], seed: int) -> None:
    for place, field in places(config):
        for other in others:
            try:
                changed = grafted(config, other, place, field)
            except ConfigError:
                continue
            if changed != config:
                break
        else:
            continue
        if refusal(changed) is None:
            note(f"{place}.{field}")
            native_is_the_model(changed, seed, 2, 20)


def test_the_sharded_step_is_the_model_in_every_design(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("sharded_designs.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    both = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(tmp_path / "store"), "8"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said[0][-4000:]
