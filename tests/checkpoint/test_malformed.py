"""Broken files: one sentence of the right class, never a traceback and never a wrong answer."""

from __future__ import annotations

import functools
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from glassformer.checkpoint import open_checkpoint, read_config, tensor_shapes, write_gguf, write_native
from glassformer.checkpoint.gguf_header import read_gguf_header
from glassformer.errors import CheckpointError, GlassformerError, UnsupportedError
from tests.tiny import tiny_hf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_hf("llama").save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def file(folder: Path) -> Path:
    checkpoint = open_checkpoint(folder)
    return write_gguf(folder.parent / "m.gguf", checkpoint.config, checkpoint.tensors, dtype="float32")


def refused(path: Path, words: str, kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind, match=words) as refusal:
        open_checkpoint(path, cache=path.parent / "cache")
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


# Safetensors


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def reheader(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    header, data = header_of(path)
    text = json.dumps(change(header) or header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


KEY = "model.layers.1.self_attn.q_proj.weight"


def test_a_truncated_safetensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for size in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        refused(folder, "whole safetensors|truncated")


def test_trailing_bytes(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as f:
        f.write(b"more")
    refused(folder, "bytes where its header describes")


def test_a_header_that_is_not_json(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 16) + b"not json at all!" + path.read_bytes())
    refused(folder, "header is not a JSON object")


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"shape": [32, 33]}, "lying header"),
        ({"dtype": "F64"}, "lying header"),
        ({"dtype": "Q7"}, "as 'Q7'"),
        ({"dtype": None}, "broken header"),
        ({"shape": [-1, 4]}, "broken header"),
        ({"shape": "wide"}, "broken header"),
        ({"data_offsets": [0]}, "broken header"),
        ({"data_offsets": [0, 4096]}, "does not begin where"),
        ({"data_offsets": [1 << 40, (1 << 40) + 4096]}, "truncated"),
    ],
)
def test_a_header_that_lies(folder: Path, item: dict[str, Any], words: str) -> None:
    reheader(folder / "model.safetensors", lambda header: header[KEY].update(item))
    refused(folder, words)


def test_missing_extra_and_misshapen_tensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if k != KEY}, path)
    assert KEY in refused(folder, "lacks")
    save_file({**tensors, "model.layers.1.self_attn.q_proj.bias": torch.ones(32)}, path)
    assert "q_proj.bias" in refused(folder, "no place for")
    save_file({**tensors, KEY: torch.ones(32, 31)}, path)
    assert refused(folder, "shape").startswith(
        f"{folder} holds {KEY} with shape (32, 31); its config calls for (32, 32)"
    )
    save_file({**tensors, KEY: torch.ones(32, 32, dtype=torch.int8)}, path)
    refused(folder, "stores .* as I8", UnsupportedError)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "neither model.safetensors nor")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("[]", "JSON object"),
        ("{}", "no weight_map"),
        ('{"weight_map": {"a": 3}}', "no weight_map"),
        ('{"weight_map": {"a": "../../secret.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"a": "absent.safetensors"}}', "cannot be read"),
        ('{"weight_map": {"a": "part.safetensors"}}', "and it is not"),
        ('{"weight_map": {"model.norm.weight": "part.safetensors"}}', "lacks"),
    ],
)
def test_a_broken_index(folder: Path, index: str, words: str) -> None:
    norm = load_file(folder / "model.safetensors")["model.norm.weight"]
    (folder / "model.safetensors").unlink()
    save_file({"model.norm.weight": norm}, folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    refused(folder, words)


def test_one_tensor_in_two_shards(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "a.safetensors")
    save_file({KEY: tensors[KEY]}, folder / "b.safetensors")
    places = {name: "a.safetensors" for name in tensors if name != KEY} | {KEY: "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    refused(folder, "in both")


# config.json


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "holds list"),
        ("{}", "no model_type"),
        ('{"model_type": 3}', "no model_type"),
        ('{"model_type": "llama"}', "lacks 'num_attention_heads'"),
    ],
)
def test_a_broken_config(folder: Path, text: str, words: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, words)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"hidden_size": "wide"}, "hidden_size to 'wide'; it must be a whole number"),
        ({"hidden_size": True}, "whole number"),
        ({"hidden_size": 10**30}, "whole number"),
        ({"hidden_size": 0}, "multiple|at least 1"),
        ({"hidden_size": 64}, "with shape"),
        ({"num_hidden_layers": 10**9}, "from 1 to 10,000"),
        ({"num_hidden_layers": 4}, "lacks model.layers.3"),
        ({"num_hidden_layers": 2}, "no place for"),
        ({"num_attention_heads": 3}, "multiple|share"),
        ({"rms_norm_eps": 0}, "eps"),
        ({"rms_norm_eps": "small"}, "must be a number"),
        ({"rope_parameters": 3}, "must be an object"),
        ({"rope_parameters": {"rope_type": "linear"}}, "lacks 'factor'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": -2.0}}, "lacks|cannot be built"),
        ({"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 0}}, "cannot express"),
        ({"tie_word_embeddings": "no"}, "true or false"),
    ],
)
def test_a_config_that_makes_no_sense(folder: Path, setting: dict[str, Any], words: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "head_dim": None, **setting}))
    refused(folder, words)


# GGUF


def test_not_a_gguf(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(b"GGML" + data[4:])
    refused(file, "not a GGUF")
    file.write_bytes(data[:4] + struct.pack("<I", 1) + data[8:])
    refused(file, "version 1", UnsupportedError)
    file.write_bytes(data[:4] + struct.pack(">I", 3) + data[8:])
    refused(file, "big-endian", UnsupportedError)
    file.write_bytes(b"")
    refused(file, "not a GGUF")


def test_a_truncated_gguf(file: Path) -> None:
    data = file.read_bytes()
    start = min(stored.start for stored in read_gguf_header(file).tensors.values())
    for size in [*range(8, start, 37), start, (start + len(data)) // 2]:
        file.write_bytes(data[:size])
        refused(file, "truncated|lacks|no general.architecture")


def test_counts_that_lie(file: Path) -> None:
    data = file.read_bytes()
    for at in (8, 16):
        for count in (1 << 62, 1 << 20):
            file.write_bytes(data[:at] + struct.pack("<Q", count) + data[at + 8 :])
            refused(file, "truncated|unknown type|broken|twice")


def patched(file: Path, name: bytes, value: bytes, skip: int = 4) -> None:
    """Overwrites the value of a setting, past its type."""
    data = file.read_bytes()
    at = data.index(name) + len(name) + skip
    file.write_bytes(data[:at] + value + data[at + len(value) :])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (b"llama.block_count", struct.pack("<I", 4), "lacks blk.3"),
        (b"llama.block_count", struct.pack("<I", 2), "no place for"),
        (b"llama.block_count", struct.pack("<I", 1 << 31), "from 1 to 10,000"),
        (b"llama.embedding_length", struct.pack("<I", 64), "with shape"),
        (b"llama.attention.head_count", struct.pack("<I", 0), "cannot be built|multiple"),
        (b"llama.attention.head_count_kv", struct.pack("<I", 3), "cannot share|cannot be built"),
        (b"llama.rope.freq_base", struct.pack("<f", float("nan")), "must be a number"),
        (b"llama.rope.dimension_count", struct.pack("<I", 0), "cannot be built"),
        (b"llama.attention.layer_norm_rms_epsilon", struct.pack("<f", -1.0), "eps"),
    ],
)
def test_settings_that_do_not_fit_the_tensors(file: Path, name: bytes, value: bytes, words: str) -> None:
    patched(file, name, value)
    refused(file, words)


def test_another_architecture(file: Path) -> None:
    patched(file, b"general.architecture", b"clama", skip=12)
    said = refused(file, "architecture 'clama'", UnsupportedError)
    assert "none of the" in said
    assert "docs/models.md" in said
    assert "Did you mean" not in said  # a header is no slip of the pen


def test_an_unknown_tensor_type(file: Path) -> None:
    data = file.read_bytes()
    name = b"blk.0.attn_k.weight"
    at = data.index(name) + len(name) + 4 + 16
    file.write_bytes(data[:at] + struct.pack("<I", 99) + data[at + 4 :])
    refused(file, "ggml type 99", UnsupportedError)


# Native


def test_a_broken_native_folder(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder)
    native = write_native(tmp_path / "native", checkpoint.config, checkpoint.tensors)
    note = json.loads((native / "glassformer.json").read_text())

    def say(**settings: Any) -> None:
        (native / "glassformer.json").write_text(json.dumps({**note, **settings}))

    def layers(count: int) -> list[Any]:
        return [{**note["config"]["layers"][0], "count": count}]

    for settings_, words in (
        ({"format": 3}, "Install a newer"),
        ({"format": None}, "no format version"),
        ({"config": None}, "must be an object"),
        ({"config": {**note["config"], "n_layer": 3}}, "no field 'n_layer'"),
        ({"config": {**note["config"], "layers": layers(4)}}, "lacks blocks.3"),
        ({"config": {**note["config"], "layers": layers(2)}}, "no place for|holds blocks.2"),
        ({"config": {**note["config"], "d_model": 31}}, "with shape"),
    ):
        say(**settings_)
        refused(native, words)
    say()
    (native / "model.safetensors").unlink()
    refused(native, "cannot be read")


def test_no_model_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "does not exist")
    refused(tmp_path, "neither config.json nor glassformer.json")
    (tmp_path / "m.gguf").write_bytes(b"")
    refused(tmp_path, r"name that file instead")
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", "no model Glassformer knows")
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused(tmp_path / "model.safetensors", "weights without a config")


# Any damage at all


@functools.cache
def whole(kind: str) -> bytes:
    with TemporaryDirectory() as place:
        tiny_hf(
            "gemma3_text" if kind == "gguf" else "llama", query_pre_attn_scalar=16, layer_types=None
        ).save_pretrained(place)
        if kind == "config":
            return (Path(place) / "config.json").read_bytes()
        if kind == "safetensors":
            return (Path(place) / "model.safetensors").read_bytes()
        checkpoint = open_checkpoint(place)
        return write_gguf(Path(place) / "m.gguf", checkpoint.config, checkpoint.tensors).read_bytes()


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("intact")
    tiny_hf("llama", query_pre_attn_scalar=16, layer_types=None).save_pretrained(directory)
    return directory


@pytest.mark.parametrize(("kind", "reach"), [("gguf", 6000), ("safetensors", 4000), ("config", 2000)])
@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_any_damage_to_a_header_is_one_of_our_errors(intact: Path, kind: str, reach: int, data: st.DataObject) -> None:
    content = bytearray(whole(kind))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(reach, len(content)) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    with TemporaryDirectory() as place:
        if kind == "gguf":
            path = Path(place) / "m.gguf"
            path.write_bytes(content)
        else:
            path = Path(place)
            shutil.copytree(intact, path, dirs_exist_ok=True)
            (path / {"config": "config.json", "safetensors": "model.safetensors"}[kind]).write_bytes(content)
        try:
            assert tensor_shapes(path)
            assert read_config(path)
        except GlassformerError as error:
            assert str(error).count("\n") == 0  # noqa: PT017
