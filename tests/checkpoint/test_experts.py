"""Files of experts: in a tensor each or stacked, whole or not; and what transformers says of its routers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glassformer.checkpoint import open_checkpoint
from glassformer.errors import CheckpointError
from glassformer.interp.trace import trace
from glassformer.model import Transformer
from tests.checkpoint.test_alike import reference
from tests.tiny import gap


def saved(name: str, folder: Path) -> Any:
    model = reference(name)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
def test_router_scores_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    theirs = saved(name, tmp_path)
    opened = open_checkpoint(tmp_path)
    ours = Transformer.empty(opened.config).load(opened.tensors, dtype=torch.float32)
    ids = torch.randint(3, 96, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores = theirs(ids, output_router_logits=True).router_logits
    run = trace(ours, ids[0].tolist())
    sparse = [i for i, layer in enumerate(opened.config.layers) if layer.feed_forward.kind == "experts"]
    assert len(scores) == len(sparse)
    for layer, wanted in zip(sparse, scores, strict=True):
        assert gap(run[f"blocks.{layer}.mlp.router"], wanted) <= 1e-5


def test_stacked_experts_are_the_same_experts(tmp_path: Path) -> None:
    """As transformers holds them in memory: gate and up joined, all experts in one tensor."""
    theirs = saved("qwen3_moe", tmp_path)
    opened = open_checkpoint(tmp_path)
    plain = {key: tensor.clone() for key, tensor in opened.tensors.items()}
    held = load_file(tmp_path / "model.safetensors")
    kept = {key: tensor for key, tensor in held.items() if ".experts." not in key}
    kept |= {key: tensor for key, tensor in theirs.state_dict().items() if ".experts." in key}
    assert any(key.endswith("experts.gate_up_proj") for key in kept)
    save_file({key: tensor.contiguous() for key, tensor in kept.items()}, tmp_path / "model.safetensors")
    again = open_checkpoint(tmp_path)
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in plain.items())


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    saved("mixtral", tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    del held["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.1\.block_sparse_moe\.experts\.3\.w2\.weight"):
        open_checkpoint(tmp_path)


def test_one_expert_too_many_is_named(tmp_path: Path) -> None:
    saved("mixtral", tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.block_sparse_moe.experts.{}.w1.weight"
    held[name.format(4)] = held[name.format(0)].clone()
    save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds model\.layers\.0\.block_sparse_moe\.experts\.4\.w1\.weight"):
        open_checkpoint(tmp_path)


def test_a_router_of_another_width_is_named(tmp_path: Path) -> None:
    saved("mixtral", tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.block_sparse_moe.gate.weight"
    held[name] = held[name][:3].clone()
    save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"gate\.weight with shape \(3, 32\); its config calls for \(4, 32\)"):
        open_checkpoint(tmp_path)
