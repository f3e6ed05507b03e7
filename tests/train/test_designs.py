"""Designs of other families' parts in training: gradients, resuming to the bit, export, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glassformer.checkpoint import write_hf
from glassformer.checkpoint.families import named
from glassformer.errors import UsageError
from glassformer.model import Transformer
from glassformer.train import checkpoint, designs, train
from glassformer.train.recipe import Recipe
from glassformer.train.torch_stepper import Objective, fresh
from glassformer.train.weights import component, kind_of
from tests.tiny import gap

VOCAB = 61


def recipe(design: str, **settings: Any) -> Recipe:
    shape = {"layers": 4, "width": 32, "heads": 4, "context": 24, "d_ff": 0, "precision": "fp32"}
    return Recipe().with_settings({**shape, "design": design, **settings})


def drawn(design: str, dtype: torch.dtype = torch.float32) -> Transformer:
    """A model of a design whose parts all give something."""
    transformer = fresh(Transformer.empty(recipe(design).config(VOCAB)), 3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in transformer.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * (0.05 if p.ndim == 1 else 0.3 * p.shape[-1] ** -0.5))
    return transformer.to(dtype).requires_grad_(True)


def tokens(rows: int = 2) -> Tensor:
    return torch.randint(0, VOCAB, (rows, 13), generator=torch.Generator().manual_seed(1))


def loss_of(model: Transformer, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


def groups(model: Transformer) -> Iterator[list[Tensor]]:
    """The parameters of each component."""
    found: dict[str, list[Tensor]] = {}
    for name, p in model.named_parameters():
        found.setdefault(component(name), []).append(p)
    yield from found.values()


@pytest.mark.parametrize("design", designs.TINY)
def test_gradients_are_those_of_the_loss(design: str) -> None:
    """In float64, along a random direction of each component's weights: the slope is the gradient's."""
    model, ids = drawn(design, torch.float64), tokens()
    loss_of(model, ids).backward()
    generator = torch.Generator().manual_seed(2)
    step = 1e-6
    for parameters in groups(model):
        directions = [torch.randn(p.shape, dtype=torch.float64, generator=generator) for p in parameters]
        size = sum(float(d.square().sum()) for d in directions) ** 0.5
        found = sum(
            float((p.grad * d).sum()) for p, d in zip(parameters, directions, strict=True) if p.grad is not None
        )
        ends = []
        with torch.no_grad():
            for move in (step, -2 * step):
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(d, alpha=move / size)
                ends.append(float(loss_of(model, ids)))
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=step / size)
        slope = (ends[0] - ends[1]) / (2 * step) * size
        assert slope == pytest.approx(found, rel=1e-5, abs=1e-6 * size)


@pytest.mark.parametrize("design", designs.TINY)
def test_the_training_step_has_these_gradients_too(design: str) -> None:
    exact, ids = drawn(design, torch.float64), tokens()
    loss_of(exact, ids).backward()
    model = drawn(design)
    Objective(model)(ids[:, :-1], ids[:, 1:]).backward()
    theirs = dict(exact.named_parameters())
    for name, p in model.named_parameters():
        want = theirs[name].grad
        if want is None:
            assert p.grad is None or not p.grad.any()
            continue
        scale = max(float(want.abs().max()), 1e-2)
        assert float((p.grad.double() - want).abs().max()) < 1e-3 * scale, name


# transformers' plain form of xLSTM takes no states as small as these; tests/checkpoint/test_alike.py has larger ones.
OPENED = [design for design in designs.TINY if design != "xlstm-tiny"]


@pytest.mark.parametrize("design", OPENED)
def test_what_is_trained_is_of_the_family(tmp_path: Path, design: str) -> None:
    """Its HF folder is opened by transformers, which computes the same."""
    from transformers import AutoModelForCausalLM

    model = drawn(design)
    kind = designs._TINY[design][0]
    assert named(kind).to_hf(model.config)["model_type"] == kind
    assert "hf" in recipe(design).exports
    write_hf(tmp_path, model.config, dict(model.named_parameters()), family=kind)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        assert gap(model(tokens()), theirs(tokens()).logits) < 1e-4


@pytest.mark.parametrize("design", ["olmoe-tiny", "mamba2-tiny", "gemma4-tiny", "qwen3-next-tiny", "xlstm-tiny"])
def test_a_killed_run_goes_on_to_the_bit(
    small: Callable[..., Recipe], out: Callable[[], Path], killed: Callable[..., Any], design: str
) -> None:
    wanted = small(design=design, steps=5, save_every=2, micro_batch=3, context=16, eval_every=2)
    straight = train(wanted, out=out(), quiet=True)
    place = out()
    with killed(3):
        assert train(wanted, out=place, quiet=True).interrupted
    assert train(out=place, resume=True, quiet=True).loss == straight.loss
    assert straight.path is not None
    a, b = (checkpoint.newest(path / "checkpoints", print) for path in (place, straight.path))
    assert a is not None
    assert b is not None
    ours, theirs = a.tensors(), b.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_channels_and_heads_have_of_their_own_is_no_matrix() -> None:
    assert kind_of("blocks.0.ssm.conv.weight", (192, 4)) == "vector"
    assert kind_of("blocks.0.mamba.a_log", (128, 16)) == "vector"
    assert kind_of("blocks.0.mlstm.norm", (4, 16)) == "vector"
    assert kind_of("layer_inputs.embed.weight", (61, 32)) == "embed"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"design": "olmoe"}, "design is one of"),
        ({"design": "qwen3", "experts": 4}, "designs with experts"),
        ({"design": "olmoe-tiny", "experts": 4, "active": 5}, "active is 5 of 4 experts"),
        ({"design": "mamba2-tiny", "kv_heads": 2}, "has no place for kv_heads"),
        ({"design": "mamba-tiny", "d_ff": 64}, "has no place for d_ff"),
        ({"design": "olmoe-tiny", "kv_heads": 3}, "cannot be had in this shape"),
        ({"design": "olmoe-tiny", "shard": "full"}, "set kind=adamw"),
        ({"design": "olmoe-tiny", "balance": -1}, "balance must be at least 0"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        recipe(**settings)
