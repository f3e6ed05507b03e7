"""The memory that a step is said to take, against what torch keeps for the gradient and against itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from glassformer.errors import MemoryLimitError
from glassformer.model import Transformer
from glassformer.train import memory
from glassformer.train.adapter import adapted
from glassformer.train.recipe import Recipe
from glassformer.train.run_inputs import opened
from glassformer.train.torch_stepper import TorchStepper, fresh
from tests.tiny import tiny_directory

SMALL = {"layers": 3, "width": 64, "heads": 2, "context": 64, "native": "off"}


def engine(compute: torch.dtype = torch.float32, **settings: Any) -> TorchStepper:
    recipe = Recipe().with_settings({**SMALL, **settings})
    return TorchStepper(fresh(Transformer.empty(recipe.config(128)), 0), recipe, compute)


def kept_for_the_gradient(of: TorchStepper, rows: int) -> int:
    """Bytes that one forward keeps, each storage once, without the weights."""
    found: dict[int, int] = {}
    weights = {tensor.untyped_storage().data_ptr() for tensor in (of.weights.working, of.weights.master)}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(0, 128, (rows, of.recipe.model.context))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = of.objective(tokens, tokens)
    assert loss.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [
        {"design": "qwen3"},
        {"design": "qwen3", "fused": False},
        {"design": "llama", "kv_heads": 1},
        {"design": "gpt2"},
        {"design": "llama", "kv_heads": 1, "context": 128},
    ],
    ids=str,
)
def test_what_is_kept_for_the_gradient_is_counted(settings: dict[str, Any], compute: torch.dtype) -> None:
    """A row of the estimate is what one more row keeps, and room for what a processor's heap loses between."""
    of = engine(compute, **settings)
    a_row = kept_for_the_gradient(of, 5) - kept_for_the_gradient(of, 4)
    said = memory.estimate(of.recipe, of.config, compute).row
    assert a_row <= said <= 2.6 * a_row


def test_blocks_computed_again_keep_their_input_alone() -> None:
    of, plain = engine(recompute=True), engine(recompute=False, fused=False)
    a_row = kept_for_the_gradient(of, 5) - kept_for_the_gradient(of, 4)
    inputs = 3 * 64 * 64 * 4
    assert inputs <= a_row <= 2.5 * inputs < kept_for_the_gradient(plain, 1)
    assert a_row <= memory.estimate(of.recipe, of.config, torch.float32).row


def test_blocks_computed_again_give_the_same_gradients() -> None:
    results = []
    for recompute in (False, True):
        of = engine(design="llama", kv_heads=1, recompute=recompute)
        losses = []
        for step, length in enumerate((64, 32, 64)):
            of.zero()
            for part in range(2):
                tokens = torch.randint(0, 128, (2, length), generator=torch.Generator().manual_seed(2 * step + part))
                losses.append(float(of.accumulate(tokens, tokens, 1 / tokens.numel())))
            of.finish()
            of.step(0.1, 0.9)
        results.append((losses, of.weights.master.clone()))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-4)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-5)


def test_a_checkpoint_is_written_tensor_by_tensor(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    of = engine(torch.bfloat16)
    of.write(tmp_path)
    written = load_file(tmp_path / "state.safetensors")
    assert written.keys() == of.state().keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in of.state().items())


def test_the_native_step_has_a_bound() -> None:
    recipe = Recipe().with_settings({**SMALL, "context": 256})
    config = recipe.config(128)
    need = memory.estimate(recipe, config, torch.bfloat16, native=True, threads=2)
    assert need.total(1) < need.total(8) <= need.total(100_000) == need.total(1_000_000)
    assert need.rows(need.total(100_000), 512) == 512


def test_rows_are_chosen_by_what_fits() -> None:
    recipe = Recipe().with_settings({**SMALL, "memory": 1.0})
    config = recipe.config(128)
    need = memory.estimate(recipe, config, torch.float32)
    assert memory.rows_that_fit(recipe, config, torch.float32, need.total(5), 64) <= 5
    assert memory.rows_that_fit(recipe, config, torch.float32, need.total(5) * 100, 64) == 64
    with pytest.raises(MemoryLimitError, match="One row of 64 tokens needs about"):
        memory.rows_that_fit(recipe, config, torch.float32, need.fixed, 64)


@pytest.mark.parametrize("way", ["lora", "dora"])
def test_what_an_adapter_keeps_is_counted(tmp_path: Path, way: str) -> None:
    base = tiny_directory(tmp_path / "base", hidden_size=64, intermediate_size=96, vocab_size=128)
    settings = {"start": str(base), "adapter": way, "rank": 8, "context": 64, "native": "off", "kind": "adamw"}
    recipe = Recipe().with_settings(settings)
    start = opened(recipe.model.start)
    of = TorchStepper(adapted(start, start.config, recipe, torch.float32), recipe, torch.float32)
    a_row = kept_for_the_gradient(of, 5) - kept_for_the_gradient(of, 4)
    assert a_row <= memory.estimate(recipe, start.config, torch.float32).row <= 2.6 * a_row
