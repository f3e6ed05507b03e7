"""Quantised safetensors, read exactly: packed here by a format's published formula, or read by transformers' code."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import glassformer as gf
from glassformer.checkpoint import open_checkpoint
from glassformer.checkpoint.hf_tensors import StoredTensors
from glassformer.checkpoint.quantised import METHODS, method_for
from glassformer.checkpoint.tensorfile import read_header
from glassformer.checkpoint.unread import UnreadSettingWarning, without
from glassformer.errors import CheckpointError, UnsupportedError
from tests.tiny import gap, reference_logits, tiny_hf, tiny_tokenizer, tiny_tokens

Stored = dict[str, torch.Tensor]
Made = tuple[Stored, np.ndarray]  # what a file holds for one matrix, and the matrix
G = np.random.default_rng(0)


def words(values: np.ndarray, bits: int, per_word: int | None = None) -> torch.Tensor:
    """Rows of unsigned values as rows of int32, lowest bits first: a stream, or so many whole values to a word."""
    out = []
    for row in values.tolist():
        if per_word is None:
            stream = sum(value << (bits * i) for i, value in enumerate(row))
            count = -(-len(row) * bits // 32)
            found = [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(count)]
        else:
            groups = [row[i : i + per_word] for i in range(0, len(row), per_word)]
            found = [sum(value << (bits * i) for i, value in enumerate(group)) for group in groups]
        out.append(found)
    return torch.from_numpy(np.array(out, dtype=np.uint32).view(np.int32))


def half(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(np.float32)


# One function for each method: (output, input) -> what is stored, and the matrix that it stands for.


def fp8(stem: str, rows: int, columns: int, kind: str) -> Made:
    codes = torch.from_numpy(G.normal(size=(rows, columns)).astype(np.float32)).to(torch.float8_e4m3fn)
    shape = {"block": (-(-rows // 24), -(-columns // 40)), "tensor": (), "row": (rows, 1)}[kind]
    scales = torch.from_numpy(np.asarray(G.uniform(0.1, 0.5, shape), dtype=np.float32))
    each = (
        np.broadcast_to(scales.numpy(), (rows, columns)) if kind != "block" else np.empty((rows, columns), np.float32)
    )
    if kind == "block":
        for i in range(rows):
            for j in range(columns):
                each[i, j] = scales[i // 24, j // 40]
    name = {"block": "weight_scale_inv", "tensor": "weight_scale_inv", "row": "weight_scale"}[kind]
    stored = {stem + "weight": codes, stem + name: scales, stem + "input_scale": torch.ones(())}
    return stored, codes.float().numpy() * each


def gptq(stem: str, rows: int, columns: int, bits: int, ordered: bool, v2: bool = False) -> Made:
    most, size = 1 << bits, 16
    q = G.integers(0, most, (columns, rows))
    zeros, scales = G.integers(0, most, (columns // size, rows)), half(G.uniform(0.01, 0.05, (columns // size, rows)))
    group = np.arange(columns) // size
    if ordered:
        group = G.permutation(group)
    stored = {
        stem + "qweight": words(q.T, bits).T.contiguous(),
        stem + "qzeros": words(zeros if v2 else (zeros - 1) % most, bits),
        stem + "scales": torch.from_numpy(scales.astype(np.float16)),
        stem + "g_idx": torch.from_numpy(group.astype(np.int32)),
    }
    return stored, ((q - zeros[group]) * scales[group]).T


def awq(stem: str, rows: int, columns: int) -> Made:
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # which of eight outputs lies at each place of a word
    q, size = G.integers(0, 16, (columns, rows)), 32
    zeros, scales = G.integers(0, 16, (columns // size, rows)), half(G.uniform(0.01, 0.05, (columns // size, rows)))

    def packed(x: np.ndarray) -> torch.Tensor:
        return words(x.reshape(len(x), -1, 8)[:, :, order].reshape(len(x), -1), 4)

    stored = {
        stem + "qweight": packed(q),
        stem + "qzeros": packed(zeros),
        stem + "scales": torch.from_numpy(scales.astype(np.float16)),
    }
    return stored, ((q - zeros.repeat(size, 0)) * scales.repeat(size, 0)).T


def int8(stem: str, rows: int, columns: int) -> Made:
    q, scales = G.integers(-127, 128, (rows, columns)), G.uniform(0.1, 0.5, rows).astype(np.float32)
    stored = {stem + "weight": torch.from_numpy(q.astype(np.int8)), stem + "SCB": torch.from_numpy(scales)}
    stored[stem + "weight_format"] = torch.zeros((), dtype=torch.uint8)
    return stored, q * scales[:, None].astype(np.float64) / 127


def four(stem: str, rows: int, columns: int, kind: str, nested: bool) -> Made:
    count, size, outer = rows * columns, 64, 256
    codes, values = G.integers(0, 16, count), np.sort(G.uniform(-1, 1, 16)).astype(np.float32)
    absmax = G.uniform(0.5, 2, -(-count // size)).astype(np.float32)
    name = stem + "weight"
    said = {"quant_type": kind, "blocksize": size, "dtype": "bfloat16", "shape": [rows, columns]}
    stored = {name: torch.from_numpy((codes[::2] << 4 | codes[1::2]).astype(np.uint8))[:, None]}
    stored[f"{name}.quant_map"] = torch.from_numpy(values)
    if nested:
        inner = G.integers(0, 256, len(absmax))
        table, largest = np.sort(G.uniform(-1, 1, 256)).astype(np.float32), np.array([1.5] * -(-len(absmax) // outer))
        absmax = table[inner] * largest.repeat(outer)[: len(absmax)].astype(np.float32) + np.float32(0.25)
        said |= {"nested_blocksize": outer, "nested_dtype": "float32", "nested_offset": 0.25}
        stored[f"{name}.absmax"] = torch.from_numpy(inner.astype(np.uint8))
        stored[f"{name}.nested_absmax"] = torch.from_numpy(largest.astype(np.float32))
        stored[f"{name}.nested_quant_map"] = torch.from_numpy(table)
    else:
        stored[f"{name}.absmax"] = torch.from_numpy(absmax)
    text = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)
    stored[f"{name}.quant_state.bitsandbytes__{kind}"] = text
    return stored, (values[codes] * absmax.repeat(size)[:count]).reshape(rows, columns)


def packed(
    stem: str, rows: int, columns: int, bits: int, size: int, zero: bool, ordered: bool = False, gaps: bool = True
) -> Made:
    offset, groups = 1 << bits - 1, columns // size
    q, scales = G.integers(-offset, offset, (rows, columns)), half(G.uniform(0.01, 0.05, (rows, groups)))
    zeros = G.integers(-offset, offset, (rows, groups)) if zero else np.zeros((rows, groups), int)
    group = np.arange(columns) // size
    if ordered:
        group = G.permutation(group)
    name, each = stem + "weight", 32 // bits if gaps else None
    stored = {
        f"{name}_packed": words(q + offset, bits, each),
        f"{name}_scale": torch.from_numpy(scales.astype(np.float16)),
        f"{name}_shape": torch.tensor([rows, columns]),
    }
    if zero:
        stored[f"{name}_zero_point"] = words((zeros + offset).T, bits, each).T.contiguous()
    if ordered:
        stored[f"{name}_g_idx"] = torch.from_numpy(group.astype(np.int32))
    return stored, (q - zeros[:, group]) * scales[:, group]


def compressed_bytes(stem: str, rows: int, columns: int, zero: bool) -> Made:
    q, scales = G.integers(-128, 128, (rows, columns)), half(G.uniform(0.01, 0.02, (rows, 1)))
    zeros = G.integers(-128, 128, (rows, 1)) if zero else np.zeros((rows, 1), int)
    name = stem + "weight"
    stored = {name: torch.from_numpy(q.astype(np.int8)), f"{name}_scale": torch.from_numpy(scales.astype(np.float16))}
    if zero:
        stored[f"{name}_zero_point"] = torch.from_numpy(zeros.astype(np.int8))
    return stored, (q - zeros) * scales


def nvfp4(stem: str, rows: int, columns: int) -> Made:
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
    codes = G.integers(0, 16, (rows, columns))
    scales = torch.from_numpy(G.uniform(1, 8, (rows, columns // 16)).astype(np.float32)).to(torch.float8_e4m3fn)
    whole, name = np.float32(37.0), stem + "weight"
    stored = {
        f"{name}_packed": torch.from_numpy((codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)),
        f"{name}_scale": scales,
        f"{name}_global_scale": torch.tensor([float(whole)]),
    }
    signed = np.where(codes < 8, 1, -1) * values[codes % 8]
    return stored, signed * (scales.float().numpy() / whole).repeat(16, 1)


def mxfp4(stem: str, rows: int, columns: int) -> Made:
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
    codes, exponents = G.integers(0, 16, (rows, columns)), G.integers(118, 124, (rows, columns // 32))
    stored = {
        f"{stem}weight_packed": torch.from_numpy((codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)),
        f"{stem}weight_scale": torch.from_numpy(exponents.astype(np.uint8)),
    }
    return stored, np.where(codes < 8, 1, -1) * values[codes % 8] * 2.0 ** (exponents - 127).repeat(32, 1)


def mxfp8(stem: str, rows: int, columns: int) -> Made:
    codes = torch.from_numpy(G.normal(size=(rows, columns)).astype(np.float32)).to(torch.float8_e4m3fn)
    exponents = G.integers(118, 124, (rows, columns // 32))
    stored = {f"{stem}weight": codes, f"{stem}weight_scale": torch.from_numpy(exponents.astype(np.uint8))}
    return stored, codes.float().numpy() * 2.0 ** (exponents - 127).repeat(32, 1)


def _group(**weights: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


COMPRESSED = {"quant_method": "compressed-tensors"}
CASES: dict[str, tuple[dict[str, Any], Callable[[str, int, int], Made]]] = {
    "fp8, blocks": ({"quant_method": "fp8", "weight_block_size": [24, 40]}, lambda *a: fp8(*a, "block")),
    "fp8, tensor": ({"quant_method": "fp8"}, lambda *a: fp8(*a, "tensor")),
    "fbgemm_fp8": ({"quant_method": "fbgemm_fp8"}, lambda *a: fp8(*a, "row")),
    "gptq, 4 bits": ({"quant_method": "gptq", "bits": 4}, lambda *a: gptq(*a, 4, False)),
    "gptq, 3 bits": ({"quant_method": "gptq", "bits": 3}, lambda *a: gptq(*a, 3, True)),
    "gptq, 2 bits": ({"quant_method": "gptq", "bits": 2}, lambda *a: gptq(*a, 2, False)),
    "gptq, 8 bits": ({"quant_method": "gptq", "bits": 8, "desc_act": True}, lambda *a: gptq(*a, 8, True)),
    "gptq_v2": (
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
        lambda *a: gptq(*a, 4, True, True),
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "version": "gemm"}, awq),
    "int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, int8),
    "nf4": ({"load_in_4bit": True}, lambda *a: four(*a, "nf4", False)),
    "nf4, nested": ({"quant_method": "bitsandbytes"}, lambda *a: four(*a, "nf4", True)),
    "fp4": ({"quant_method": "bitsandbytes"}, lambda *a: four(*a, "fp4", False)),
    "compressed, 4 bits": (COMPRESSED | _group(num_bits=4), lambda *a: packed(*a, 4, 16, False)),
    "compressed, 4 bits, zeros": (COMPRESSED | _group(num_bits=4), lambda *a: packed(*a, 4, 32, True)),
    "compressed, 8 bits, order": (COMPRESSED | _group(num_bits=8), lambda *a: packed(*a, 8, 16, False, True)),
    "compressed, 3 bits": (COMPRESSED | _group(num_bits=3), lambda *a: packed(*a, 3, 16, False)),
    "compressed, 3 bits, no gaps": (COMPRESSED | _group(num_bits=3), lambda *a: packed(*a, 3, 16, True, gaps=False)),
    "compressed, 6 bits, no gaps": (COMPRESSED | _group(num_bits=6), lambda *a: packed(*a, 6, 32, True, gaps=False)),
    "compressed, bits not said": (COMPRESSED, lambda *a: packed(*a, 4, 16, False)),
    "compressed, int8": (COMPRESSED, lambda *a: compressed_bytes(*a, False)),
    "compressed, int8, zeros": (COMPRESSED, lambda *a: compressed_bytes(*a, True)),
    "compressed, float8": (COMPRESSED | {"format": "float-quantized"}, lambda *a: fp8(*a, "row")),
    "compressed, mxfp4": (COMPRESSED | {"format": "mxfp4-pack-quantized"}, mxfp4),
    "compressed, mxfp8": (COMPRESSED | {"format": "mxfp8-quantized"}, mxfp8),
    "compressed, nvfp4": (COMPRESSED | {"format": "nvfp4-pack-quantized"}, nvfp4),
}


def quantised(directory: Path, case: str) -> Any:
    """A tiny Llama with quantised matrices in a folder; returns transformers' own with the same numbers as floats."""
    settings, make = CASES[case]
    reference = tiny_hf("llama", hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    reference.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    stored: Stored = {}
    values = dict(reference.state_dict())
    for name, tensor in values.items():
        if "_proj." in name:
            parts, matrix = make(name.removesuffix("weight"), *tensor.shape)
            stored |= parts
            values[name] = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))
        else:
            stored[name] = tensor
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    reference.load_state_dict(values)
    return reference


@pytest.mark.parametrize("case", CASES)
def test_a_quantised_model_answers_as_its_numbers_do(tmp_path: Path, case: str) -> None:
    reference = quantised(tmp_path, case)
    tensors = open_checkpoint(tmp_path).tensors
    want = dict(reference.state_dict())
    for ours, theirs in (("mlp.down", "mlp.down_proj"), ("attn.q", "self_attn.q_proj")):
        got = tensors[f"blocks.1.{ours}.weight"].float()
        torch.testing.assert_close(got, want[f"model.layers.1.{theirs}.weight"], rtol=3e-7, atol=0)
    model = gf.load(tmp_path, device="cpu", dtype="float32")
    tokens = tiny_tokens()
    with torch.inference_mode():
        assert gap(model.transformer(tokens), reference_logits(reference, tokens)) < 1e-5


def test_a_quantised_model_is_exported_as_floats(tmp_path: Path) -> None:
    from glassformer.cli.export import export

    reference = quantised(tmp_path / "source", "awq")
    export(str(tmp_path / "source"), "hf", str(tmp_path / "there"))
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "there")
    assert gap(reference_logits(again, tiny_tokens()), reference_logits(reference, tiny_tokens())) < 1e-5


def read(directory: Path, settings: dict[str, Any], tensors: Stored) -> StoredTensors:
    """What a method makes of a file with these tensors."""
    save_file(tensors, directory / "model.safetensors")
    header = read_header(directory / "model.safetensors")
    method = method_for({"quantization_config": settings}, "config.json")
    return StoredTensors(dict.fromkeys(header.tensors, header), method, "the folder")


def test_mxfp4_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.from_numpy(G.integers(0, 256, (3, 10, 2, 16)).astype(np.uint8))
    scales = torch.from_numpy(G.integers(100, 140, (3, 10, 2)).astype(np.uint8))
    found = read(
        tmp_path, {"quant_method": "mxfp4"}, {"e.gate_up_proj_blocks": blocks, "e.gate_up_proj_scales": scales}
    )
    want = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert dict(found) == {"e.gate_up_proj": tuple(want.shape)} == {"e.gate_up_proj": (3, 64, 10)}
    assert torch.equal(found.fetch("e.gate_up_proj"), want)


@pytest.mark.parametrize("stored", ["float32", "exponents"])
def test_fp8_blocks_are_what_transformers_makes_of_them(tmp_path: Path, stored: str) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    codes = torch.from_numpy(G.normal(size=(256, 384)).astype(np.float32)).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 3) if stored == "float32" else torch.randint(120, 130, (2, 3), dtype=torch.uint8)
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    found = read(tmp_path, settings, {"a.weight": codes, "a.weight_scale_inv": scales})
    want = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32)
    assert torch.equal(found.fetch("a.weight"), want)


def test_every_method_is_tried() -> None:
    tried = {settings.get("quant_method", "bitsandbytes") for settings, _ in CASES.values()} | {"mxfp4"}
    assert tried == set(METHODS)


# What is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "hqq"}, r"weights quantised by 'hqq'; Glassformer reads fp8, .* a \.gguf of it"),
        ({"bits": 4}, "weights quantised by a method that it does not name"),
        ({"quant_method": "gptq", "bits": 5}, "sets bits to 5; Glassformer reads 2, 3, 4, 8"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "sets checkpoint_format to 'marlin'"),
        ({"quant_method": "awq", "version": "gemv"}, "sets version to 'gemv'"),
        (COMPRESSED | {"format": "marlin-24"}, "sets format to 'marlin-24'"),
        (COMPRESSED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sets format to 'sparse-24-bitmask'"),
    ],
)
def test_a_method_that_is_not_read_is_refused_by_name(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    quantised(tmp_path, "awq")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    with pytest.raises(UnsupportedError, match=words):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("case", [*CASES, "mxfp4"])
def test_settings_of_a_method_that_are_not_read_are_refused_by_name(case: str) -> None:
    """At every depth; and what is printed opens it."""
    settings = CASES[case][0] if case in CASES else {"quant_method": "mxfp4"}
    deeper = {"format": "dense"}, {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "observer": "minmax"}}}
    held = copy.deepcopy(settings)
    if held.get("quant_method") == "compressed-tensors":
        held |= {"sparsity_config": deeper[0], "config_groups": deeper[1], "kv_cache_scheme": {"num_bits": 8}}
    for path in ("", *(["sparsity_config", "config_groups.g", "config_groups.g.weights"] if len(held) > 4 else [])):
        changed = copy.deepcopy({"text_config": {"quantization_config": held}})
        inner = changed["text_config"]["quantization_config"]
        for name in path.split(".") if path else ():
            inner = inner[name]
        inner["rotation"] = "hadamard"
        with pytest.raises(UnsupportedError, match="sets rotation to 'hadamard'") as refused:
            method_for(changed, "config.json")
        with pytest.warns(UnreadSettingWarning):
            opened, _ = without(changed, [str(refused.value).rpartition("--ignore-key ")[2]], "config.json")
        assert method_for(opened, "config.json") is not None


def test_what_transformers_says_of_its_own_methods_is_known() -> None:
    from transformers.utils import quantization_config as theirs

    for kind in ("GPTQConfig", "AwqConfig", "FineGrainedFP8Config", "FbgemmFp8Config", "Mxfp4Config"):
        made = getattr(theirs, kind)(**({"bits": 4} if kind == "GPTQConfig" else {})).to_dict()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            method_for({"quantization_config": json.loads(json.dumps(made))}, "config.json")
    made = theirs.BitsAndBytesConfig(load_in_4bit=True).to_dict()
    assert method_for({"quantization_config": json.loads(json.dumps(made))}, "config.json") is not None


@pytest.mark.parametrize(
    ("case", "part"),
    [
        ("fp8, blocks", "weight_scale_inv"),
        ("gptq, 4 bits", "scales"),
        ("awq", "qzeros"),
        ("int8", "SCB"),
        ("nf4, nested", "weight.nested_absmax"),
        ("nf4", "weight.quant_state.bitsandbytes__nf4"),
        ("compressed, 4 bits", "weight_scale"),
        ("compressed, 4 bits", "weight_shape"),
    ],
)
@pytest.mark.parametrize("harm", ["missing", "misshapen"])
def test_a_part_that_is_missing_or_misshapen_is_named(tmp_path: Path, case: str, part: str, harm: str) -> None:
    from safetensors.torch import load_file

    quantised(tmp_path, case)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = f"model.layers.1.mlp.down_proj.{part}"
    if harm == "missing":
        del tensors[name]
    elif part.endswith("nf4"):
        tensors[name] = tensors[name][:-3].clone()
    else:
        tensors[name] = tensors[name].flatten()[:-1].clone()
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(tmp_path)
    assert "down_proj" in str(raised.value) or part in str(raised.value) or "quant_state" in str(raised.value)


def test_packed_weights_of_a_config_that_says_nothing_are_refused(tmp_path: Path) -> None:
    quantised(tmp_path, "compressed, int8")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="_scale"):
        open_checkpoint(tmp_path)
