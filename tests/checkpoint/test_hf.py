"""Hugging Face folders: old and new spellings, prefixes, shards, ties, and what is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glassformer.checkpoint import open_checkpoint, read_config, write_hf
from glassformer.checkpoint.families import FAMILIES
from glassformer.errors import CheckpointError, UnsafeFileError, UnsupportedError
from glassformer.model import Config, Transformer
from glassformer.tokenizer.tokenizer import Tokenizer
from tests.tiny import VARIANTS, gap, reference_logits, tiny_directory, tiny_hf, tiny_tokens


def windows(config: Config) -> list[int | None]:
    """Each layer's window."""
    return [config.window(i) for i in range(config.n_layers)]


def edit(directory: Path, drop: tuple[str, ...] = (), **settings: Any) -> None:
    path = directory / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k not in drop}
    path.write_text(json.dumps({**config, **settings}))


def retensor(directory: Path, change: Any) -> None:
    file = directory / "model.safetensors"
    tensors = {name: tensor.clone().contiguous() for name, tensor in change(load_file(file)).items()}
    save_file(tensors, file)


def logits(path: Path) -> torch.Tensor:
    checkpoint = open_checkpoint(path)
    with torch.no_grad():
        return Transformer.empty(checkpoint.config).load(checkpoint.tensors)(tiny_tokens())


# Spellings


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}])
def test_the_older_spelling_of_rotary_settings(tmp_path: Path, scaling: dict | None) -> None:
    new = {"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear" if scaling else "default"}}
    if scaling:
        new["rope_parameters"]["factor"] = 4.0
    tiny_hf("llama", **new).save_pretrained(tmp_path)
    said = read_config(tmp_path)
    edit(tmp_path, drop=("rope_parameters",), rope_theta=500, rope_scaling=scaling)
    assert read_config(tmp_path) == said
    assert said.attention(0).rotary.theta == 500


def test_the_older_spelling_of_gemma_3(tmp_path: Path) -> None:
    wide = {"rope_type": "linear", "factor": 8.0, "rope_theta": 999.0}
    near = {"rope_type": "default", "rope_theta": 77.0}
    parameters = {"full_attention": wide, "sliding_attention": near}
    tiny_hf("gemma3_text", layer_types=None, num_hidden_layers=7, rope_parameters=parameters).save_pretrained(tmp_path)
    said = read_config(tmp_path)
    edit(
        tmp_path,
        drop=("rope_parameters", "layer_types"),
        rope_theta=999.0,
        rope_local_base_freq=77.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window_pattern=6,
    )
    assert read_config(tmp_path) == said
    assert (said.attention(5).rotary.theta, said.attention(0).rotary.theta) == (999.0, 77.0)
    assert windows(said) == [7] * 5 + [None, 7]


def test_the_older_spelling_of_neox(tmp_path: Path) -> None:
    tiny_hf("gpt_neox").save_pretrained(tmp_path)
    said = read_config(tmp_path)
    edit(tmp_path, drop=("rope_parameters",), rotary_pct=0.5, rotary_emb_base=10_000)
    assert read_config(tmp_path) == said
    edit(tmp_path, drop=("rotary_pct", "rotary_emb_base"))
    assert read_config(tmp_path).attention(0).rotary.fraction == 0.25


def test_windows_said_without_layer_types(tmp_path: Path) -> None:
    settings = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
    tiny_hf("qwen2", **settings).save_pretrained(tmp_path)
    said = read_config(tmp_path)
    edit(tmp_path, drop=("layer_types",))
    assert read_config(tmp_path) == said
    assert windows(said) == [None, 7, 7]
    edit(tmp_path, use_sliding_window=False)
    assert windows(read_config(tmp_path)) == [None] * 3


def test_a_mistral_config_says_no_window_by_null_not_by_silence(tmp_path: Path) -> None:
    tiny_hf("mistral").save_pretrained(tmp_path)
    assert windows(read_config(tmp_path)) == [None] * 3
    edit(tmp_path, drop=("sliding_window",))
    assert windows(read_config(tmp_path)) == [4096] * 3


def test_what_a_config_leaves_out_is_what_transformers_would_take(tmp_path: Path) -> None:
    """Every setting of our families that transformers has a default for, dropped one at a time."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    for family in VARIANTS:
        directory = tmp_path / family
        model = tiny_hf(family)
        model.config.save_pretrained(directory)
        whole = json.loads((directory / "config.json").read_text())
        for name in whole:
            if name in ("model_type", "architectures", "transformers_version", "vocab_size"):
                continue
            less = {k: v for k, v in whole.items() if k != name}
            try:
                filled = AutoConfig.for_model(family, **{k: v for k, v in less.items() if k != "model_type"}).to_dict()
                expected = FAMILIES[family].from_hf({**less, **filled, "model_type": family}, "full")
            except (CheckpointError, StrictDataclassError):
                continue  # what transformers fills in contradicts what is left
            try:
                found = FAMILIES[family].from_hf(less, "less")
            except CheckpointError as error:  # sizes have no sensible default: said, not guessed
                assert f"lacks '{name}'" in str(error)  # noqa: PT017
            else:
                assert found == expected, (family, name)


# Names


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_files_of_the_model_without_its_head_have_no_prefix(tmp_path: Path, family: str) -> None:
    model = tiny_hf(family, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    before = logits(tmp_path)
    prefix = FAMILIES[family].prefixes[0]
    retensor(tmp_path, lambda tensors: {name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    edit(tmp_path, architectures=[FAMILIES[family].base])
    assert torch.equal(logits(tmp_path), before)


@pytest.mark.parametrize(
    ("family", "buffers"),
    [
        ("gpt2", ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"]),
        ("llama", ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
        ("gpt_neox", ["gpt_neox.layers.0.attention.bias", "gpt_neox.layers.1.attention.rotary_emb.inv_freq"]),
    ],
)
def test_stored_buffers_are_no_parameters(tmp_path: Path, family: str, buffers: list[str]) -> None:
    tiny_hf(family).save_pretrained(tmp_path)
    before = logits(tmp_path)
    retensor(tmp_path, lambda tensors: tensors | {name: torch.ones(1, 1, 4, 4) for name in buffers})
    assert torch.equal(logits(tmp_path), before)


def test_the_text_model_inside_a_gemma_3_that_sees(tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = tiny_hf("gemma3_text")
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = Gemma3Config(
        text_config=text.config.to_dict(), vision_config={**vision, "image_size": 28, "patch_size": 14}
    )
    seeing = Gemma3ForConditionalGeneration(config).eval()
    seeing.model.language_model.load_state_dict(text.model.state_dict())
    seeing.tie_weights()
    seeing.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.family == "gemma3_text"
    assert gap(logits(tmp_path), reference_logits(text, tiny_tokens())) <= 1e-5


# Ties


def test_a_tied_config_beside_another_output_matrix_is_untied_as_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tiny_hf("llama", tie_word_embeddings=False).save_pretrained(tmp_path)
    edit(tmp_path, tie_word_embeddings=True)
    assert not read_config(tmp_path).tied
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert gap(logits(tmp_path), reference_logits(theirs, tiny_tokens())) <= 1e-5


def test_the_design_is_read_beside_weights_that_are_not_all_there(tmp_path: Path) -> None:
    tiny_hf("gpt2").save_pretrained(tmp_path)
    said = read_config(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as f:
        f.truncate(1000)
    assert read_config(tmp_path) == said


def test_a_tied_config_beside_a_copy_of_the_embedding_is_tied(tmp_path: Path) -> None:
    tiny_hf("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    before = logits(tmp_path)
    retensor(tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    assert read_config(tmp_path).tied
    assert torch.equal(logits(tmp_path), before)


# Files


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_shards_written_by_transformers_are_read(tmp_path: Path, family: str) -> None:
    model = tiny_hf(family)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert gap(logits(tmp_path), reference_logits(model, tiny_tokens())) <= 1e-5


def test_shards_are_written_for_transformers_to_read(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_hf("gpt_neox")
    model.save_pretrained(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    write_hf(tmp_path / "ours", checkpoint.config, checkpoint.tensors, shard=30_000)
    sizes = [file.stat().st_size for file in (tmp_path / "ours").glob("*.safetensors")]
    assert len(sizes) > 2
    assert max(sizes) < 45_000
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert torch.equal(reference_logits(again, tiny_tokens()), reference_logits(model, tiny_tokens()))
    assert torch.equal(logits(tmp_path / "ours"), logits(tmp_path / "theirs"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_type_asked_for_is_written_and_said(tmp_path: Path, dtype: str) -> None:
    from transformers import AutoModelForCausalLM

    tiny_hf("llama").save_pretrained(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    write_hf(tmp_path / "ours", checkpoint.config, checkpoint.tensors, dtype=dtype)
    wanted = getattr(torch, dtype)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").dtype is wanted
    again = open_checkpoint(tmp_path / "ours").tensors
    for key, tensor in checkpoint.tensors.items():
        assert torch.equal(again[key], tensor.to(wanted)), key
    write_hf(tmp_path / "kept", checkpoint.config, again)
    assert open_checkpoint(tmp_path / "kept").tensors["embed.weight"].dtype is wanted


def test_the_tokenizer_goes_with_the_weights(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = tiny_directory(tmp_path / "theirs")
    checkpoint = open_checkpoint(path)
    kind, where = checkpoint.tokenizer_source
    assert (kind, where) == ("directory", path)
    tokenizer = Tokenizer.from_directory(path)
    write_hf(
        tmp_path / "ours", checkpoint.config, checkpoint.tensors, tokenizer, generation={"do_sample": True, "top_k": 9}
    )
    text = "One mole of carbon dioxide"
    assert AutoTokenizer.from_pretrained(tmp_path / "ours").encode(text) == tokenizer.encode(text)
    settings = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert settings["eos_token_id"] == tokenizer.eos_id == 0
    assert json.loads((tmp_path / "ours" / "generation_config.json").read_text())["top_k"] == 9


# Refusals


def test_reading_a_config_does_not_import_torch(tmp_path: Path) -> None:
    tiny_hf("llama").save_pretrained(tmp_path)
    code = (
        "import sys; from glassformer.checkpoint import read_config, tensor_shapes\n"
        "read_config(sys.argv[1]); tensor_shapes(sys.argv[1])\n"
        "assert not {'torch', 'safetensors', 'numpy', 'gguf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"rope_scaling": {"rope_type": "mystery", "factor": 2.0}}, "rope_type to 'mystery'"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "short_factor": [1.0]}}, "short_factor"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor to 0.5"),
    ("llama", {"hidden_act": "mish"}, "hidden_act to 'mish'"),
    ("mistral", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types to"),
    ("llama", {"layer_types": ["sliding_attention"] * 3}, "layer_types to"),
    ("llama", {"is_causal": False}, "is_causal to False"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ("qwen2", {"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "'linear_attention'"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention to True"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention to True"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping to 50.0"),
    ("gemma3_text", {"rope_parameters": {"rope_type": "default", "rope_theta": 1.0}}, "rope_parameters to"),
]


@pytest.mark.parametrize(("family", "settings", "words"), REFUSED)
def test_a_setting_we_cannot_express_is_refused_by_name(
    tmp_path: Path, family: str, settings: dict[str, Any], words: str
) -> None:
    tiny_hf(family).save_pretrained(tmp_path)
    edit(tmp_path, **settings)
    with pytest.raises(UnsupportedError, match=words):
        open_checkpoint(tmp_path)
    with pytest.raises(UnsupportedError, match=words):
        read_config(tmp_path)


def test_settings_that_change_nothing_are_let_be(tmp_path: Path) -> None:
    tiny_hf("llama").save_pretrained(tmp_path)
    said = read_config(tmp_path)
    edit(tmp_path, attention_dropout=0.1, pretraining_tp=2, initializer_range=0.5, is_causal=True, unsloth_fixed=True)
    assert read_config(tmp_path) == said


def test_an_unknown_family_is_named_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "lama"}))
    with pytest.raises(UnsupportedError) as refusal:
        open_checkpoint(tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path / 'config.json'} is a model of type 'lama', none of the {len(FAMILIES)} that are read "
        "(docs/models.md)."
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path: Path, name: str) -> None:
    tiny_hf("llama").config.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"\x80\x04 never looked at")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UnsafeFileError, match=r"save_pretrained\(new_folder, safe_serialization=True\)"):
            open_checkpoint(path)
    assert read_config(tmp_path).n_layers == 3  # the design alone needs no weights


def test_an_index_that_names_pickled_files_is_refused(tmp_path: Path) -> None:
    tiny_hf("llama").config.save_pretrained(tmp_path)
    index = {"weight_map": {"model.norm.weight": "pytorch_model-00001.bin"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsafeFileError):
        open_checkpoint(tmp_path)


def test_a_design_no_family_expresses_is_not_written(tmp_path: Path) -> None:
    import dataclasses

    tiny_hf("llama").save_pretrained(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    odd = dataclasses.replace(checkpoint.config, logit_softcap=5.0)
    with pytest.raises(UnsupportedError, match=r"llama cannot express logit_softcap 5\.0"):
        write_hf(tmp_path / "ours", odd, checkpoint.tensors, family="llama")
    with pytest.raises(UnsupportedError, match="No family"):
        write_hf(tmp_path / "ours", odd, checkpoint.tensors)
    with pytest.raises(UnsupportedError, match="Did you mean qwen3, qwen2"):
        write_hf(tmp_path / "ours", checkpoint.config, checkpoint.tensors, family="qwen")
    assert not (tmp_path / "ours").exists()
