"""Files of single families that are broken in ways of their own: one sentence each, from settings and header alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glassformer.checkpoint import open_checkpoint, read_config, write_gguf
from glassformer.errors import CheckpointError, UnsupportedError
from tests.checkpoint.test_alike import reference
from tests.checkpoint.test_gguf_families import changed, folder


@pytest.fixture(scope="module")
def lightning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("minimax")
    reference("minimax").save_pretrained(at)
    return at


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"linear_attn_alpha_factor": 0}, "stream_scales are two numbers above 0"),
        ({"mlp_beta_factor": "much"}, "mlp_beta_factor"),
        ({"layer_types": ["linear_attention"] * 3}, "names 3 layer_types for 4 layers"),
        ({"layer_types": ["linear_attention"] * 3 + ["mamba3"]}, "layer_types to 'mamba3'"),
        ({"sliding_window": 0}, "window must hold at least 1 position"),
        ({"hidden_act": "gelu"}, "hidden_act to 'gelu'"),
        ({"num_experts_per_tok": 5}, "5 of 4 experts cannot be chosen"),
    ],
)
def test_settings_of_lightning_attention(lightning: Path, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    said = json.loads((lightning / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, **settings}))
    with pytest.raises((CheckpointError, UnsupportedError), match=words):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        (
            "model.layers.1.self_attn.qkv_proj.weight",
            (95, 32),
            r"qkv_proj\.weight with shape \(95, 32\); .* \(96, 32\)",
        ),
        ("model.layers.2.input_layernorm.weight", None, r"lacks model\.layers\.2\.input_layernorm\.weight"),
        ("model.norm.weight", None, r"lacks model\.norm\.weight"),
        ("model.layers.0.block_sparse_moe.experts.3.w2.weight", None, r"lacks .*experts\.3\.w2\.weight"),
        ("model.layers.0.block_sparse_moe.gate.weight", (5, 32), r"gate\.weight with shape \(5, 32\); .* \(4, 32\)"),
        ("model.layers.0.self_attn.slope_rate", None, None),
    ],
)
def test_tensors_of_lightning_attention(
    lightning: Path, tmp_path: Path, name: str, shape: tuple[int, ...] | None, words: str | None
) -> None:
    tensors = load_file(lightning / "model.safetensors")
    del tensors[name]
    if shape is not None:
        tensors[name] = torch.zeros(shape)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((lightning / "config.json").read_text())
    if words is None:  # its decays follow from its sizes
        assert open_checkpoint(tmp_path).config.n_layers == 4
        return
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("buffer", ["slope_rate", "query_decay", "key_decay", "diagonal_decay"])
def test_stored_decays_are_those_of_the_design(lightning: Path, tmp_path: Path, buffer: str) -> None:
    """transformers computes with those that a file holds: rounded ones are the same, others refused by name."""
    tensors, name = load_file(lightning / "model.safetensors"), f"model.layers.0.self_attn.{buffer}"
    (tmp_path / "config.json").write_text((lightning / "config.json").read_text())
    save_file({**tensors, name: tensors[name].bfloat16()}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).config.n_layers == 4
    save_file({**tensors, name: tensors[name] * 1.02}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedError, match=rf"stores other numbers in {name} than its config\.json implies"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "leave", "settings", "words"),
    [
        ("mimo_v2_flash", "blk.0.attn_sinks", {}, r"lacks blk\.0\.attn_sinks\.weight"),
        ("mimo_v2_flash", "blk.1.exp_probs_b", {}, r"lacks blk\.1\.exp_probs_b\.bias"),
        ("mimo_v2_flash", "", {"mimo2.attention.head_count_kv": [2, 2]}, r"head_count_kv to \[2, 2\]; .* \[4, 2\]"),
        ("mimo_v2_flash", "", {"mimo2.expert_weights_norm": False}, "expert_weights_norm to False"),
        ("glm_moe_dsa", "indexer.proj", {}, r"lacks blk\.0\.indexer\.proj\.weight"),
        ("glm_moe_dsa", "blk.1.indexer", {}, "indexer_types"),
        ("glm_moe_dsa", "", {"glm-dsa.attention.indexer.head_count": 5}, r"indexer\.\w+\.weight.*shape"),
    ],
)
def test_gguf_of_mimo_and_glm(tmp_path: Path, name: str, leave: str, settings: dict[str, Any], words: str) -> None:
    opened = open_checkpoint(folder(tmp_path, name))
    file = write_gguf(tmp_path / "m.gguf", opened.config, opened.tensors, family=name, dtype="float32")
    with pytest.raises((CheckpointError, UnsupportedError), match=words):
        read_config(changed(file, leave, settings))
