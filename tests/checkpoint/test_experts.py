"""Files of experts: in a tensor each or stacked, whole or not; and what transformers says of its routers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glassformer.checkpoint import open_checkpoint
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.interp.trace import Trace
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
    run = Trace(ours, ids[0].tolist())
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


def altered(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """The file with other tensors."""
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file({key: tensor.clone().contiguous() for key, tensor in held.items()}, folder / "model.safetensors")


def said(folder: Path) -> str:
    """The refusal, which is one sentence or two."""
    with pytest.raises((CheckpointError, UnsupportedError)) as refusal:
        open_checkpoint(folder)
    text = str(refusal.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


@pytest.mark.parametrize(
    ("name", "key", "words"),
    [
        ("gpt_oss", "mlp.experts.gate_up_proj", "lacks model.layers.1.mlp.experts.gate_up_proj"),
        ("gpt_oss", "mlp.router.bias", "lacks model.layers.1.mlp.router.bias"),
        ("gpt_oss", "self_attn.sinks", "lacks model.layers.1.self_attn.sinks"),
        ("glm4_moe", "mlp.gate.e_score_correction_bias", "lacks model.layers.1.mlp.gate.e_score_correction_bias"),
        ("qwen2_moe", "mlp.shared_expert_gate.weight", "lacks model.layers.1.mlp.shared_expert_gate.weight"),
        (
            "deepseek_v3",
            "mlp.shared_experts.down_proj.weight",
            "lacks model.layers.1.mlp.shared_experts.down_proj.weight",
        ),
    ],
)
def test_a_part_of_experts_that_is_missing_or_misshapen_is_named(
    tmp_path: Path, name: str, key: str, words: str
) -> None:
    saved(name, tmp_path)
    whole = f"model.layers.1.{key}"
    kept = load_file(tmp_path / "model.safetensors")[whole]
    altered(tmp_path, lambda held: held.update({whole: kept[:-1]}))
    assert f"{whole} with shape ({kept.shape[0] - 1}" in said(tmp_path)
    altered(tmp_path, lambda held: held.pop(whole))
    assert words in said(tmp_path)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("mixtral", {"num_local_experts": 3}, "gate.weight with shape (4, 32); its config calls for (3, 32)"),
        ("mixtral", {"num_local_experts": 5}, "experts.4.w1.weight"),
        ("mixtral", {"num_experts_per_tok": 5}, "5 of 4"),
        ("mixtral", {"num_experts_per_tok": 0}, "n_active must be a whole number of at least 1"),
        ("mixtral", {"num_local_experts": 0}, "experts"),
        ("mixtral", {"num_local_experts": "four"}, "num_local_experts to 'four'"),
        ("glm4_moe", {"n_group": 3}, "groups"),
        ("glm4_moe", {"topk_group": 7}, "groups"),
        ("gpt_oss", {"num_local_experts": 9}, "router.weight with shape (4, 32); its config calls for (9, 32)"),
    ],
)
def test_counts_of_experts_that_the_file_contradicts_are_named(
    tmp_path: Path, name: str, settings: dict[str, Any], words: str
) -> None:
    saved(name, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    assert words in said(tmp_path)
