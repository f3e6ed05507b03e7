"""GGUF of every family that llama.cpp has: written and read again, names as the `gguf` package has them.

What llama.cpp itself computes from these files is compared in `benchmarks/gguf_families.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from glassformer.checkpoint import open_checkpoint, raw_blocks, read_config, write_gguf
from glassformer.checkpoint.families import FAMILIES, by_architecture
from glassformer.checkpoint.gguf_header import read_gguf_header
from glassformer.checkpoint.gguf_writer import UnlikeWarning
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model import Transformer
from tests.checkpoint import test_alike
from tests.checkpoint.gguf_settings import GGUF, settings_of
from tests.tiny import VARIANTS, gap

# Architectures of llama.cpp that the `gguf` package of this environment does not list yet.
NEWER = {"cohere2moe", "granite_swa", "hy_v3", "laguna", "mellum"}
ARCHITECTURES = {name: number for number, name in gguf.constants.MODEL_ARCH_NAMES.items()}


def _setting_names() -> set[str]:
    """Every setting that the `gguf` package knows, without an architecture's name."""

    def values(group: Any) -> Iterator[str]:
        for value in vars(group).values():
            if isinstance(value, str):
                yield value
            elif isinstance(value, type):
                yield from values(value)

    found = {name.removeprefix("{arch}.") for name in values(gguf.constants.Keys) if name.startswith("{arch}.")}
    return found | {"rope.scaling.attn_factor", "attention.value_scale"}


SETTINGS = _setting_names()


def folder(tmp_path: Path, name: str, **more: Any) -> Path:
    usual = test_alike.SETTINGS.get(name, test_alike.SETTINGS.get(test_alike.kind(name), {}))
    test_alike.SETTINGS[f"{name}: for GGUF"] = {**settings_of(name, usual), **more}
    model = test_alike.reference(f"{name}: for GGUF")
    del test_alike.SETTINGS[f"{name}: for GGUF"]
    model.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def test_every_family_with_an_architecture_is_tried() -> None:
    written = {name for name, family in FAMILIES.items() if family.gguf is not None}
    assert written - set(VARIANTS) - {"internlm3", "iquestcoder"} <= {test_alike.kind(name) for name in GGUF}
    names = {family.gguf.architecture for family in FAMILIES.values() if family.gguf is not None}
    assert len(names & set(ARCHITECTURES)) >= 50


@pytest.mark.parametrize("name", sorted(GGUF))
def test_written_and_read_again(tmp_path: Path, name: str) -> None:
    opened = open_checkpoint(folder(tmp_path, name))
    family = FAMILIES[test_alike.kind(name)]
    file = write_gguf(tmp_path / "m.gguf", opened.config, opened.tensors, family=family.name, dtype="float32")
    header = read_gguf_header(file)
    assert by_architecture(header.settings["general.architecture"], "", header.settings).gguf is not None
    again = open_checkpoint(file, cache=tmp_path)
    ids = torch.randint(3, 96, (1, 20), generator=torch.Generator().manual_seed(1))
    logits = []
    for one in (opened, again):
        with torch.no_grad():
            logits.append(Transformer.empty(one.config).load(one.tensors, dtype=torch.float32)(ids))
    assert gap(logits[1], logits[0]) <= 1e-5
    blocks = raw_blocks(file)
    assert family.gguf is not None
    for key, tensor in family.gguf.fold(opened.config).tensors(opened.tensors).items():
        assert torch.allclose(again.tensors[key].float(), tensor.float(), atol=1e-6, rtol=1e-5), key
        assert blocks[key].shape == tuple(tensor.shape)
    _as_the_package_names_them(header)


def _as_the_package_names_them(header: Any) -> None:
    architecture = header.settings["general.architecture"]
    if architecture not in ARCHITECTURES:
        assert architecture in NEWER
        return
    known = {
        gguf.constants.TENSOR_NAMES[tensor].format(bid="*", xid="*")
        for tensor in gguf.constants.MODEL_TENSORS[ARCHITECTURES[architecture]]
    }
    found = {re.sub(r"\.(weight|bias|scale)$", "", re.sub(r"^blk\.\d+\.", "blk.*.", name)) for name in header.tensors}
    assert found <= known | {"rope_freqs"}
    settings = {name.removeprefix(f"{architecture}.") for name in header.settings if name.startswith(architecture)}
    assert settings <= SETTINGS


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("qwen2_moe", {"norm_topk_prob": True}, "renormalise"),
        ("mixtral", {"sliding_window": 5}, "window"),
        ("arcee", {"mlp_bias": True}, "bias"),
        ("falcon", {"bias": True}, "bias"),
        ("mamba", {"use_bias": True}, "bias"),
        ("gemma3n_text", {"final_logit_softcapping": 5.0}, "caps the logits of Gemma 3n at 30"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "experts in every layer of architecture qwen3moe"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}, "best two"),
        ("laguna", {"layer_types": ["sliding_attention", "full_attention"]}, "first layer without a window"),
        ("laguna", {"moe_router_logit_softcapping": 2.0}, "router_cap"),
        ("falcon_h1", {"mamba_norm_before_gate": True}, "norm_first"),
        ("kimi_linear", {"linear_num_heads": 3}, "heads"),
        ("apertus", {"attention_bias": True}, "bias"),
        ("exaone4", {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}, "window"),
    ],
)
def test_what_llama_cpp_would_compute_differently_is_refused(
    tmp_path: Path, name: str, change: dict[str, Any], match: str
) -> None:
    opened = open_checkpoint(folder(tmp_path, name, **change))
    with pytest.raises(UnsupportedError, match=match):
        write_gguf(tmp_path / "m.gguf", opened.config, opened.tensors, family=name)


def test_convolutions_and_decays_with_more_axes_are_read(tmp_path: Path) -> None:
    """As llama.cpp's converter writes those of Kimi Linear."""
    opened = open_checkpoint(folder(tmp_path, "kimi_linear"))
    file = write_gguf(tmp_path / "m.gguf", opened.config, opened.tensors, family="kimi_linear", dtype="float32")
    axes = {"ssm_conv1d": (0, 2), "ssm_a": (0, 3)}

    def wider(name: str, data: Any) -> Any:
        for part, places in axes.items():
            if part in name:
                flat = data.reshape(-1, data.shape[-1]) if part == "ssm_conv1d" else data.reshape(1, -1)
                return np.expand_dims(flat, places)
        return data

    again = open_checkpoint(changed(file, data=wider), cache=tmp_path)
    for key, tensor in opened.tensors.items():
        assert torch.allclose(again.tensors[key], tensor.float(), atol=1e-6), key


def test_what_llama_cpp_does_not_bound_is_said(tmp_path: Path) -> None:
    opened = open_checkpoint(folder(tmp_path, "nemotron_h", time_step_min=0.3))
    with pytest.warns(UnlikeWarning, match=r"lower bound of dt, which transformers keeps at 0\.3"):
        file = write_gguf(tmp_path / "m.gguf", opened.config, opened.tensors, family="nemotron_h", dtype="float32")
    assert read_config(file).mixer(0).dt_limit == (0.0, float("inf"))


def test_experts_beside_dense_parts_are_refused_in_nemotron_h(tmp_path: Path) -> None:
    opened = open_checkpoint(folder(tmp_path, "nemotron_h", layers_block_type=["mlp", "full_attention", "moe"]))
    with pytest.raises(UnsupportedError, match="experts in every feed-forward layer of architecture nemotron_h_moe"):
        write_gguf(tmp_path / "m.gguf", opened.config, opened.tensors, family="nemotron_h")


def changed(
    file: Path, leave: str = "", settings: dict[str, Any] | None = None, data: Any = lambda name, data: data
) -> Path:
    """A copy of a GGUF without the tensors whose names hold `leave`, with other settings and data."""
    reader = gguf.GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    target = file.with_name("changed.gguf")
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = (settings or {}).get(name, field.contents())
        kind = field.types[0]
        writer.add_key_value(name, value, kind, field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        if not leave or leave not in tensor.name:
            writer.add_tensor(tensor.name, data(tensor.name, tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    ("leave", "settings", "match"),
    [
        ("ffn_down_exps", {}, r"lacks blk\.0\.ffn_down_exps\.weight"),
        ("ffn_up_exps", {}, r"router in layer 0 and no blk\.0\.ffn_up_exps\.weight of all experts"),
        ("ffn_gate_inp", {}, r"lacks blk\.0\.ffn_gate_inp\.weight, blk\.1\.ffn_gate_inp\.weight"),
        ("", {"llama.expert_count": 5}, r"ffn_.*shape \(4, .*calls for \(5, "),
        ("", {"llama.expert_used_count": 9}, "9 of 4 experts cannot be chosen"),
        ("", {"llama.expert_gating_func": 2}, "expert_gating_func to 2"),
        ("", {"llama.block_count": 3}, r"lacks blk\.2\."),
        ("blk.1.attn_q", {}, r"lacks blk\.1\.attn_q\.weight"),
    ],
)
def test_experts_that_are_missing_or_miscounted_are_named(
    tmp_path: Path, leave: str, settings: dict[str, Any], match: str
) -> None:
    opened = open_checkpoint(folder(tmp_path, "mixtral"))
    file = write_gguf(tmp_path / "m.gguf", opened.config, opened.tensors, family="mixtral", dtype="float32")
    with pytest.raises((CheckpointError, UnsupportedError), match=match):
        read_config(changed(file, leave, settings))


def test_layers_that_guess_further_tokens_are_left_out(tmp_path: Path) -> None:
    """As published files of GLM 4.5 hold them: counted as blocks, after the others."""
    opened = open_checkpoint(folder(tmp_path, "glm4_moe", num_hidden_layers=3))
    file = write_gguf(tmp_path / "m.gguf", opened.config, opened.tensors, family="glm4_moe", dtype="float32")
    reader = gguf.GGUFReader(file)
    assert reader.fields["glm4moe.block_count"].contents() == 3
    one = changed(file, "blk.2.", {"glm4moe.block_count": 3})
    more = gguf.GGUFReader(one)
    target = tmp_path / "further.gguf"
    writer = gguf.GGUFWriter(target, "glm4moe")
    for name, field in more.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0])
    writer.add_key_value("glm4moe.nextn_predict_layers", 1, gguf.GGUFValueType.UINT32)
    for tensor in more.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.add_tensor("blk.2.nextn.eh_proj.weight", more.tensors[0].data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_config(target).n_layers == 2
