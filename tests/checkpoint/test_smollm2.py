"""A real file: SmolLM2's GGUF in, the same model out in the other layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from glassformer.checkpoint import open_checkpoint, raw_blocks, read_config, tensor_shapes, write_gguf, write_hf
from glassformer.checkpoint.families import FAMILIES
from glassformer.checkpoint.keys import native_shapes
from tests.tiny import gap

pytestmark = pytest.mark.smollm2


@pytest.fixture(scope="module")
def checkpoint(smollm2: Any) -> Any:
    return open_checkpoint(smollm2.source)


def test_the_design(checkpoint: Any) -> None:
    config = checkpoint.config
    assert (config.vocab_size, config.d_model, config.n_layers, config.context) == (49_152, 576, 30, 8192)
    a = config.attention(0)
    assert (a.n_heads, a.n_kv_heads, a.d_head) == (9, 3, 64)
    assert (config.feed_forward(0).d_ff, a.rotary.theta, config.norm.eps) == (1536, 100_000.0, 1e-5)
    assert config.tied
    assert read_config(checkpoint.path) == config
    assert tensor_shapes(checkpoint.path) == native_shapes(config)
    assert (checkpoint.family, checkpoint.format) == ("llama", "gguf")
    assert checkpoint.metadata["general.license"] == "apache-2.0"


def test_the_values_are_the_gguf_packages(checkpoint: Any) -> None:
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(checkpoint.path).tensors}
    blocks = raw_blocks(checkpoint.path)

    def values(name: str) -> np.ndarray:
        return gguf.dequantize(stored[name].data, stored[name].tensor_type)

    for layer in (0, 17, 29):
        for ours, theirs, heads in (("attn.q", "attn_q", 9), ("attn.k", "attn_k", 3)):
            # The two rotary halves of a head lie side by side in the file.
            whole = values(f"blk.{layer}.{theirs}.weight").reshape(heads, 32, 2, 576).swapaxes(1, 2).reshape(-1, 576)
            key = f"blocks.{layer}.{ours}.weight"
            assert np.array_equal(checkpoint.tensors[key].numpy(), whole)
            assert np.array_equal(blocks[key].values(), whole)
            assert blocks[key].kind == "Q4_1"
        down = values(f"blk.{layer}.ffn_down.weight")
        assert np.array_equal(checkpoint.tensors[f"blocks.{layer}.mlp.down.weight"].numpy(), down)
    assert np.array_equal(checkpoint.tensors["embed.weight"].numpy(), values("token_embd.weight"))
    assert np.array_equal(blocks["embed.weight"].data, stored["token_embd.weight"].data)
    assert blocks["embed.weight"].kind == "Q8_0"


@pytest.mark.slow
def test_transformers_answers_the_same_from_our_export(checkpoint: Any, smollm2: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_hf(tmp_path, checkpoint.config, checkpoint.tensors, smollm2.tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="sdpa")
    text = "The capital of France is"
    ids = smollm2.encode(text)
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text) == ids
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits
        found = smollm2.transformer(torch.tensor([ids]))
    assert gap(found, expected) <= 1e-5


@pytest.mark.slow
def test_written_as_gguf_it_is_the_same_file_to_read(checkpoint: Any, smollm2: Any, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "again.gguf", checkpoint.config, checkpoint.tensors, smollm2.tokenizer)
    assert read_config(file) == checkpoint.config
    again = raw_blocks(file)
    for key in ("embed.weight", "blocks.3.attn.q.weight", "blocks.3.ln1.weight", "final.weight"):
        expected = checkpoint.tensors[key].numpy()
        if expected.ndim == 2:
            expected = expected.astype(np.float16).astype(np.float32)
        assert np.array_equal(again[key].values(), expected), key
    from glassformer.tokenizer.tokenizer import Tokenizer

    kind, fields = open_checkpoint(file, cache=tmp_path, dtype="float16").tokenizer_source
    assert kind == "gguf"
    assert Tokenizer.from_gguf(fields).encode("One mole of naïve 🦔") == smollm2.encode("One mole of naïve 🦔")


def test_no_other_family_takes_it_for_its_own(checkpoint: Any) -> None:
    """The design fits families that compute what Llama does; the others refuse it."""
    fits = []
    for family in FAMILIES.values():
        try:
            family.to_hf(checkpoint.config)
            fits.append(family.name)
        except Exception as error:
            assert type(error).__name__ == "UnsupportedError"  # noqa: PT017
    assert fits[:2] == ["llama", "mistral"]
    for family in fits:  # each reads its own settings back as the same design
        again = FAMILIES[family].from_hf(FAMILIES[family].to_hf(checkpoint.config), family)
        assert again == checkpoint.config
    assert not {"qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "olmo2", "cohere", "mixtral"} & set(fits)
