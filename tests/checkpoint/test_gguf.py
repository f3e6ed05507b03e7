"""GGUF: written files against transformers' reader and our own, quantised files against the `gguf` package."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from glassformer.checkpoint import open_checkpoint, raw_blocks, read_config, tensor_shapes, write_gguf
from glassformer.checkpoint.gguf_header import TYPES, read_gguf_header
from glassformer.checkpoint.gguf_tensors import mapped
from glassformer.checkpoint.gguf_writer import gguf_family
from glassformer.checkpoint.keys import native_shapes
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model import Transformer
from glassformer.system import hardware
from glassformer.tokenizer.tokenizer import Tokenizer
from tests.tiny import EVERY, VARIANTS, gap, reference_logits, tiny_directory, tiny_gguf, tiny_hf, tiny_tokens

# Variants that no GGUF can hold, and the field that the refusal names.
REFUSED = {
    ("llama", "gelu"): "feed_forward.activation",
    ("mistral", "window"): "window",
    ("qwen2", "windows"): "window",
    ("qwen2", "windows by layer"): "window",
    ("qwen3", "biases"): "attn.q.bias",
    ("qwen3", "windows"): "window",
    ("gemma2", "plain"): "scale",
    ("gemma2", "no caps"): "scale",
    ("gemma2", "no windows"): "scale",
    ("gemma2", "biases"): "bias",
    ("gemma3_text", "plain"): "scale",
    ("gemma3_text", "linear"): "scale",
    ("gemma3_text", "every sixth"): "scale",
    ("gemma3_text", "untied"): "unembed.weight",
    ("gemma3_text", "cap"): "scale",
    ("gemma3_text", "no windows"): "scale",
    ("gpt2", "relu"): "feed_forward.activation",
    ("gpt2", "unscaled"): "scale",
    ("gpt_neox", "plain"): "feed_forward.activation",
    ("gpt_neox", "sequential"): "feed_forward.activation",
    ("gpt_neox", "no biases"): "bias",
    ("gpt_neox", "all rotated"): "feed_forward.activation",
    ("gpt_neox", "linear"): "feed_forward.activation",
    ("gpt_neox", "tied"): "feed_forward.activation",
}
# What those families' GGUFs do hold.
MORE: list[tuple[str, dict]] = [
    ("gemma2", {"query_pre_attn_scalar": 16}),
    ("gemma2", {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 9.0, "final_logit_softcapping": 8.0}),
    ("gemma3_text", {"query_pre_attn_scalar": 16, "layer_types": None, "num_hidden_layers": 7}),
    ("gemma3_text", {"query_pre_attn_scalar": 16, "layer_types": ["full_attention"] * 4}),
    ("gpt_neox", {"hidden_act": "gelu_new", "use_parallel_residual": False}),
]
HELD = [(family, VARIANTS[family][variant]) for family, variant in EVERY if (family, variant) not in REFUSED] + MORE


def logits(path: Path, tokens: torch.Tensor, cache: Path) -> torch.Tensor:
    checkpoint = open_checkpoint(path, cache=cache)
    with torch.no_grad():
        return Transformer.empty(checkpoint.config).load(checkpoint.tensors)(tokens)


@pytest.mark.parametrize(("family", "settings"), HELD, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_written_and_read_again(tmp_path: Path, family: str, settings: dict) -> None:
    model = tiny_hf(family, **settings)
    model.save_pretrained(tmp_path / "hf")
    checkpoint = open_checkpoint(tmp_path / "hf")
    file = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, family=family, dtype="float32")
    tokens = tiny_tokens()
    assert gap(logits(file, tokens, tmp_path), reference_logits(model, tokens)) <= 1e-5
    again = open_checkpoint(file, cache=tmp_path)
    assert again.format == "gguf"
    assert tensor_shapes(file) == native_shapes(checkpoint.config) == native_shapes(read_config(file))
    for key, tensor in checkpoint.tensors.items():
        assert torch.allclose(again.tensors[key], tensor, atol=1e-6), key  # Gemma's norms pass through 1 + weight


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gpt2", {}),
        MORE[0],
        MORE[2],
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(v),
)
def test_transformers_reads_what_is_written(tmp_path: Path, family: str, settings: dict) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = tiny_directory(tmp_path / "hf", family, **settings)
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    checkpoint = open_checkpoint(path)
    file = tmp_path / "m.gguf"
    write_gguf(
        file, checkpoint.config, checkpoint.tensors, Tokenizer.from_directory(path), family=family, dtype="float32"
    )
    found = load_gguf_checkpoint(file, return_tensors=True, model_to_load=model)
    # Its tensors, all of them; of its settings it leaves some unread, so the model is our own original.
    expected = {name: tensor for name, tensor in model.state_dict().items() if name in found["tensors"]}
    assert set(model.state_dict()) - set(expected) <= ({"lm_head.weight"} if checkpoint.config.tied else set())
    for name, tensor in found["tensors"].items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name
    assert AutoConfig.for_model(**found["config"]).num_hidden_layers == checkpoint.config.n_layers


@pytest.mark.parametrize(("family", "variant"), REFUSED)
def test_what_llama_cpp_would_compute_differently_is_refused(tmp_path: Path, family: str, variant: str) -> None:
    tiny_hf(family, **VARIANTS[family][variant]).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(UnsupportedError, match=REFUSED[family, variant]):
        write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, family=family)
    assert not list(tmp_path.glob("*.gguf*"))


def test_the_tokenizer_comes_back(tmp_path: Path) -> None:
    file, _ = tiny_gguf(tmp_path)
    kind, fields = open_checkpoint(file, cache=tmp_path).tokenizer_source
    assert kind == "gguf"
    original = Tokenizer.from_directory(tmp_path / "llama")
    again = Tokenizer.from_gguf(fields)
    for text in ("The American shrew mole", "One mole of naïve 🦔\n\n  x", ""):
        assert again.encode(text) == original.encode(text)
    assert (again.bos_id, again.eos_id) == (original.bos_id, original.eos_id)


def test_float16_holds_matrices_only(tmp_path: Path) -> None:
    tiny_hf("llama").save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    file = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors)
    kinds = {name: stored.kind for name, stored in read_gguf_header(file).tensors.items()}
    assert kinds["blk.0.attn_q.weight"] == "F16"
    assert kinds["blk.0.attn_norm.weight"] == kinds["output_norm.weight"] == "F32"
    again = open_checkpoint(file, cache=tmp_path)
    for key, tensor in checkpoint.tensors.items():
        kept = tensor if tensor.dim() == 1 else tensor.half().float()
        assert torch.equal(again.tensors[key], kept), key


def test_a_value_beyond_float16_is_refused(tmp_path: Path) -> None:
    tiny_hf("llama").save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    tensors = {**checkpoint.tensors, "embed.weight": checkpoint.tensors["embed.weight"] * 1e6}
    with pytest.raises(UnsupportedError, match="65,504"):
        write_gguf(tmp_path / "m.gguf", checkpoint.config, tensors)


def test_a_family_is_found_for_a_design(tmp_path: Path) -> None:
    for family in ("llama", "qwen3", "gpt2"):
        tiny_hf(family).save_pretrained(tmp_path / family)
        assert gguf_family(read_config(tmp_path / family)).gguf.architecture == family
    odd = dataclasses.replace(read_config(tmp_path / "llama"), logit_softcap=3.0)
    with pytest.raises(UnsupportedError, match="No GGUF architecture"):
        gguf_family(odd)


def test_llama_3_scaling_comes_back_by_its_name(tmp_path: Path) -> None:
    """As a tensor of divisors it could not be exported to the other layout again."""
    parameters = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0}
    parameters |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    tiny_hf("llama", head_dim=64, rope_parameters=parameters).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    file = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, dtype="float32")
    assert read_config(file) == checkpoint.config
    other = {**parameters, "low_freq_factor": 2.0}
    tiny_hf("llama", head_dim=64, rope_parameters=other).save_pretrained(tmp_path / "other")
    checkpoint = open_checkpoint(tmp_path / "other")
    file = write_gguf(tmp_path / "o.gguf", checkpoint.config, checkpoint.tensors, dtype="float32")
    assert read_config(file).attention(0).rotary.scaling.kind == "factors"


# Quantised files


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_quantised_files_are_what_the_gguf_package_makes_of_them(tmp_path: Path, kind: str) -> None:
    settings = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
    file, config = tiny_gguf(tmp_path, **settings)
    quantised, values = requantise(file, tmp_path / "q.gguf", kind)
    checkpoint = open_checkpoint(quantised, cache=tmp_path)
    assert checkpoint.config == read_config(file)
    # The same file in float32, through the path that the tests above check against transformers.
    plain, _ = requantise(file, tmp_path / "p.gguf", "F32", values)
    expected = open_checkpoint(plain, cache=tmp_path).tensors
    blocks = raw_blocks(quantised)
    assert set(blocks) == set(checkpoint.tensors) == set(native_shapes(config))
    for key, tensor in checkpoint.tensors.items():
        assert torch.equal(tensor, expected[key]), key
        raw = blocks[key]
        assert np.array_equal(raw.values(), tensor.numpy()), key
        assert raw.kind == (kind if tensor.dim() == 2 else "F32")
        assert raw.data.dtype == np.uint8
        assert raw.data.shape[0] == (raw.shape[0] if tensor.dim() == 2 else 1)


@pytest.mark.parametrize("kind", sorted(name for name, block, _ in TYPES.values() if block > 1 and name != "Q8_1"))
def test_every_quantisation_is_read_as_the_gguf_package_reads_it(tmp_path: Path, kind: str) -> None:
    settings = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 2, "num_hidden_layers": 1}
    source, _ = tiny_gguf(tmp_path, **settings)
    type_ = gguf.GGMLQuantizationType[kind]
    block, width = gguf.GGML_QUANT_SIZES[type_]
    random = np.random.default_rng(0)

    def bytes_for(values: np.ndarray) -> np.ndarray:  # small bytes are no infinities in any half-precision scale
        return random.integers(0, 60, (*values.shape[:-1], values.shape[-1] // block * width), dtype=np.uint8)

    file, values = requantise(source, tmp_path / "q.gguf", kind, make=bytes_for)
    if not values:
        with pytest.raises(UnsupportedError, match=kind):
            open_checkpoint(file, cache=tmp_path)
        return
    tensors = open_checkpoint(file, cache=tmp_path).tensors
    assert np.array_equal(tensors["embed.weight"].numpy(), values["token_embd.weight"])
    assert np.array_equal(tensors["blocks.0.mlp.down.weight"].numpy(), values["blk.0.ffn_down.weight"])
    queries = values["blk.0.attn_q.weight"].reshape(2, 64, 2, 256).swapaxes(1, 2).reshape(256, 256)
    assert np.array_equal(tensors["blocks.0.attn.q.weight"].numpy(), queries)
    assert np.array_equal(raw_blocks(file)["blocks.0.attn.q.weight"].values(), queries)


def requantise(
    source: Path, target: Path, kind: str, values: dict | None = None, make: Any = None
) -> tuple[Path, dict]:
    """A copy of a GGUF with its matrices in another type, and their values afterwards (none where they are unknown).

    ``values`` are to be stored instead of the file's own; ``make`` gives the stored bytes themselves.
    """
    reader = gguf.GGUFReader(source)
    type_ = gguf.GGMLQuantizationType[kind]
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            sub = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub)
    kept = {}
    for tensor in reader.tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, np.array(tensor.data))
            continue
        whole = np.array(tensor.data) if values is None else values[tensor.name]
        data = gguf.quantize(whole, type_) if make is None else make(whole)
        with contextlib.suppress(NotImplementedError):
            kept[tensor.name] = gguf.dequantize(data, type_)
        writer.add_tensor(tensor.name, data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target, kept


def split(source: Path, target: Path, tensors: int) -> list[Path]:
    """A copy of a GGUF in parts of so many tensors, as the gguf package writes them; the parts."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents(), split_max_tensors=tensors)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            sub = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(target.parent.glob(f"{target.stem}-*.gguf"))


def test_a_split_file_is_opened_from_any_part_or_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import glassformer as gf
    from glassformer.checkpoint.gguf_copy import identity

    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "cache"))
    whole, _ = tiny_gguf(tmp_path)
    (tmp_path / "parts").mkdir()
    parts = split(whole, tmp_path / "parts" / "m.gguf", 9)
    assert [part.name for part in parts] == [f"m-{i:05d}-of-00004.gguf" for i in (1, 2, 3, 4)]
    want = open_checkpoint(whole).tensors
    for path in (*parts, tmp_path / "parts"):
        model = gf.load(path, device="cpu", dtype="float32")
        assert all(torch.equal(value, want[name]) for name, value in model.transformer.state_dict().items())
        assert model.encode("mole") == gf.load(whole, device="cpu").encode("mole")
    assert gf.load(parts[2], device="cpu").name == "m"
    assert len(list((tmp_path / "cache").rglob("m-*.safetensors"))) == 1, "one copy for all parts"
    blocks = raw_blocks(parts[0])
    assert all(np.array_equal(blocks[name].values(), want[name].numpy()) for name in want)
    copies = {identity(part) for part in parts}
    assert len(copies) == 1
    os.utime(parts[2], (1, 1))
    assert identity(parts[0]) not in copies, "another part, another copy"


def test_parts_that_do_not_make_a_whole_are_named(tmp_path: Path) -> None:
    whole, _ = tiny_gguf(tmp_path)
    parts = split(whole, tmp_path / "m.gguf", 9)
    third = parts[2].read_bytes()
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(CheckpointError, match=r"m-00003-of-00004\.gguf is not part 3 of 4, as its name says"):
        read_config(parts[0])
    parts[2].unlink()
    words = (
        r"m-00003-of-00004\.gguf cannot be read \(No such file.*\)\. The model is split into 4 files; fetch them all"
    )
    with pytest.raises(CheckpointError, match=words):
        read_config(parts[3])
    parts[2].write_bytes(third)
    parts[0].rename(tmp_path / "one.gguf")
    with pytest.raises(CheckpointError, match=r"one\.gguf is one of 4 parts, and its name does not say so"):
        read_config(tmp_path / "one.gguf")


def test_every_type_has_the_size_the_gguf_package_gives_it() -> None:
    assert {kind.value for kind in gguf.GGMLQuantizationType} == set(TYPES)
    for number, (name, block, width) in TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, width))


def test_the_header_is_what_the_gguf_package_reads(tmp_path: Path) -> None:
    file, _ = tiny_gguf(tmp_path, "gemma2", query_pre_attn_scalar=16)
    ours, theirs = read_gguf_header(file), gguf.GGUFReader(file)
    fields = {name: f.contents() for name, f in theirs.fields.items() if not name.startswith("GGUF.")}
    assert set(ours.settings) == set(fields)
    for name, value in fields.items():
        if isinstance(value, float):
            assert np.float32(ours.settings[name]) == np.float32(value)
        else:
            assert ours.settings[name] == value, name
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        stored = ours.tensors[tensor.name]
        assert stored.shape == tuple(reversed(tensor.shape.tolist()))
        assert (stored.start, stored.end) == (tensor.data_offset, tensor.data_offset + tensor.n_bytes)


# Blocks that we write


@pytest.mark.parametrize(
    ("kind", "error"),
    [("F16", 5e-4), ("BF16", 4e-3), ("Q8_0", 8e-3), ("Q6_K", 2.5e-2), ("Q4_K", 8e-2), ("Q4_0", 0.1), ("Q5_0", 5e-2)],
)
def test_packed_numbers_come_back(kind: str, error: float) -> None:
    from glassformer.checkpoint.gguf_blocks import packed

    values = np.random.default_rng(0).standard_normal((6, 512)).astype(np.float32)
    values[1], values[2, :256], values[3] = 0, 1.5, np.abs(values[3])
    blocks = packed(values, kind)
    if kind == "F16":
        back = blocks.astype(np.float32)
    else:
        assert blocks.dtype == np.uint8
        back = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    assert back.shape == values.shape
    assert np.abs(back[1]).max() == 0
    assert np.linalg.norm(back - values) <= error * np.linalg.norm(values)


@pytest.mark.parametrize("dtype", ["bfloat16", "q8_0", "q6_k", "q4_k", "q4_0"])
def test_written_in_blocks(tmp_path: Path, dtype: str) -> None:
    tiny_hf("llama", hidden_size=256, intermediate_size=96, num_hidden_layers=1).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    file = write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, dtype=dtype)
    kinds = {name: stored.kind for name, stored in read_gguf_header(file).tensors.items()}
    usual = {"bfloat16": "BF16"}.get(dtype, dtype.upper())
    assert kinds["blk.0.attn_q.weight"] == usual
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    # Rows of 96 numbers hold no blocks of 256.
    assert kinds["blk.0.ffn_down.weight"] == {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}.get(usual, usual)
    assert kinds["token_embd.weight"] == ("Q6_K" if dtype in ("q4_k", "q4_0") else usual)
    again = open_checkpoint(file, cache=tmp_path / "cache")
    for key, tensor in checkpoint.tensors.items():
        assert float((again.tensors[key] - tensor).norm()) <= 0.1 * float(tensor.norm()), key


def test_an_unknown_kind_of_blocks_is_named(tmp_path: Path) -> None:
    tiny_hf("llama").save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(UnsupportedError, match=r"written in float32, .*; not in 'q4_m'\. Did you mean"):
        write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors, dtype="q4_m")


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="large pages are Linux's")
@pytest.mark.parametrize("fits", [True, False])
def test_a_file_is_mapped_in_large_pages_where_it_fits_in_memory(tmp_path, monkeypatch, fits):
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this system has no large pages")
    file, _ = tiny_gguf(tmp_path)
    monkeypatch.setattr(hardware, "available_memory", lambda: file.stat().st_size - (not fits))
    data = mapped(file)
    assert data.tobytes() == file.read_bytes()
    areas = Path("/proc/self/smaps").read_text().split(str(file))[1:]  # of this mapping, what the system says of it
    flags = next(line.split()[1:] for line in areas[-1].splitlines() if line.startswith("VmFlags:"))
    assert ("hg" in flags) == fits
