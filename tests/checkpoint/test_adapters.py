"""Adapters of every kind that is read, made by the peft package: its logits are the reference, switched and merged."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import glassformer as gf
from glassformer.cli.export import export
from glassformer.errors import CheckpointError, SourceError, UnsafeFileError, UnsupportedError, UsageError
from tests.tiny import gap, reference_logits, tiny_directory, tiny_tokens

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "LoRA": ("llama", {}, {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"]}),
    "every matrix": ("llama", {}, {"r": 3, "lora_alpha": 5, "target_modules": LINEAR}),
    "rsLoRA": ("llama", {}, {"r": 4, "lora_alpha": 2, "use_rslora": True, "target_modules": LINEAR}),
    "DoRA": ("llama", {}, {"r": 4, "lora_alpha": 12, "use_dora": True, "target_modules": LINEAR}),
    "ranks and scales by pattern": (
        "llama",
        {},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "k_proj", "down_proj"],
            "rank_pattern": {"down_proj": 2},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 32, "k_proj": 3},
        },
    ),
    "whole modules": (
        "llama",
        {},
        {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]},
    ),
    "biases": ("qwen2", {}, {"r": 4, "target_modules": ["q_proj"], "bias": "all"}),
    "embedding": ("llama", {}, {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}),
    "tied, embedding adapted": (
        "llama",
        {"tie_word_embeddings": True},
        {"r": 4, "target_modules": ["embed_tokens", "q_proj"]},
    ),
    "tied, output whole": (
        "llama",
        {"tie_word_embeddings": True},
        {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ),
    "joined and transposed": (
        "gpt2",
        {},
        {"r": 4, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    ),
    "joined and transposed, DoRA": (
        "gpt2",
        {},
        {"r": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "joined head by head": ("gpt_neox", {}, {"r": 4, "target_modules": ["query_key_value", "dense_4h_to_h"]}),
}


def adapter(base: Path, place: Path, seed: int = 0, **settings: Any) -> Any:
    """Saves a random adapter for a model; returns peft's model with it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tied layers are adapted, which is what is tried
        made = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.5 if "magnitude" in name else 0.2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save_pretrained(place)
    return made


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.transformer(tiny_tokens())
    return found


def load(source: Path | str, **options: Any) -> Any:
    return gf.load(source, device="cpu", dtype="float32", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapted_model_answers_as_peft_s(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM

    family, settings, config = KINDS[kind]
    base = tiny_directory(tmp_path / "base", family, **settings)
    reference = adapter(base, tmp_path / "tuned", **config)
    want = reference_logits(reference, tiny_tokens())
    plain = reference_logits(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tiny_tokens())
    assert gap(want, plain) > 1e-3, "the adapter changes something"
    model = load(base, adapter=tmp_path / "tuned")
    assert gap(logits(model), want) < 1e-5
    assert (model.name, model.adapters) == ("base+tuned", ("tuned",))
    without = model.adapted(False)
    assert gap(logits(without), plain) < 1e-5
    assert (without.name, without.adapters) == ("base", ())
    assert torch.equal(logits(without.adapted()), logits(model))


def test_the_spelling_of_a_source_with_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_directory(tmp_path / "base")
    (tmp_path / "a+b").mkdir()
    one = adapter(base, tmp_path / "one", r=2, target_modules=["q_proj"])
    adapter(base, tmp_path / "a+b" / "two", seed=1, r=2, target_modules=["v_proj"])
    want = reference_logits(one, tiny_tokens())
    monkeypatch.chdir(tmp_path)
    for spelled in ("base+one", "base + one", "one"):  # the last names its model itself
        model = load(spelled)
        assert model.name == "base+one"
        assert gap(logits(model), want) < 1e-5
    both = load("base+one", adapter="a+b/two")
    assert both.name == "base+one+two"
    one.load_adapter(str(tmp_path / "a+b" / "two"), "two")
    one.base_model.set_adapter(["default", "two"])
    assert gap(logits(both), reference_logits(one, tiny_tokens())) < 1e-5
    with pytest.raises(SourceError, match=r"base is no adapter: it holds no adapter_config\.json"):
        load("base+base")
    with pytest.raises(UsageError, match="base was opened without an adapter"):
        load("base").adapted(False)


def test_unchanged_weights_are_shared(tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base")
    adapter(base, tmp_path / "tuned", r=2, target_modules=["q_proj"])
    model = load(base, adapter=tmp_path / "tuned")
    mine, other = (dict(m.transformer.named_parameters()) for m in (model, model.adapted(False)))
    shared = {name for name in mine if mine[name].data_ptr() == other[name].data_ptr()}
    assert set(mine) - shared == {f"blocks.{i}.attn.q.weight" for i in range(3)}


def test_answers_and_traces_are_the_adapted_model_s(tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base")
    adapter(base, tmp_path / "tuned", r=8, lora_alpha=64, target_modules=LINEAR)
    model = load(base, adapter=tmp_path / "tuned")
    tokens = [5, 6, 7]
    best = int(logits_of(model, tokens).argmax())
    assert best != int(logits_of(model.adapted(False), tokens).argmax())
    for one in (model, model.adapted(False)):
        best = int(logits_of(one, tokens).argmax())
        assert next(iter(one.generate(tokens, max_tokens=1, temperature=0))).id == best
        assert one.trace(tokens).model == one.name


def logits_of(model: Any, tokens: list[int]) -> torch.Tensor:
    found: torch.Tensor = model.logits(tokens)[-1]
    return found


@pytest.mark.parametrize("to", ["hf", "gguf"])
@pytest.mark.parametrize("kind", ["DoRA", "tied, embedding adapted"])
def test_an_export_is_merged(tmp_path: Path, to: str, kind: str) -> None:
    from transformers import AutoModelForCausalLM

    family, settings, config = KINDS[kind]
    base = tiny_directory(tmp_path / "base", family, **settings)
    want = reference_logits(adapter(base, tmp_path / "tuned", **config), tiny_tokens())
    out = tmp_path / ("there" if to == "hf" else "there.gguf")
    export(f"{base}+{tmp_path / 'tuned'}", to, str(out), "f32")
    assert gap(logits(load(out)), want) < 1e-5
    if to == "hf":
        assert gap(reference_logits(AutoModelForCausalLM.from_pretrained(out), tiny_tokens()), want) < 1e-5


def test_a_gguf_or_a_run_takes_an_adapter_too(tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base")
    want = reference_logits(adapter(base, tmp_path / "tuned", r=4, target_modules=LINEAR), tiny_tokens())
    export(str(base), "gguf", str(tmp_path / "base.gguf"), "f32")
    from glassformer.checkpoint import open_checkpoint, tokenizer_of, write_native

    opened = open_checkpoint(base)
    write_native(tmp_path / "native", opened.config, opened.tensors, tokenizer=tokenizer_of(opened))
    for name in ("base.gguf", "native"):
        assert gap(logits(load(tmp_path / name, adapter=tmp_path / "tuned")), want) < 1e-5


def test_the_tokenizer_that_comes_with_an_adapter_is_used(tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base")
    (base / "generation_config.json").write_text('{"eos_token_id": [0, 7], "temperature": 0.5}')
    adapter(base, tmp_path / "tuned", r=4, target_modules=LINEAR)
    assert load(base, adapter=tmp_path / "tuned").tokenizer.chat_template is None
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    model = load(base, adapter=tmp_path / "tuned")
    assert model.tokenizer.chat_template == "{{ messages[0].content }}"
    assert model.tokenizer.stop_ids == {0, 7}
    assert model.generation.sampling == {"temperature": 0.5}
    assert model.adapted(False).tokenizer.chat_template is None


# What is refused


def edit(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "is an adapter of type 'IA3'; Glassformer reads LORA, with DoRA and rsLoRA"),
        ({"init_lora_weights": "pissa"}, "sets init_lora_weights to 'pissa', which changes the model's own weights"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "sets layer_replication to .* which Glassformer does not apply"),
        ({"lora_bias": True}, "sets lora_bias to True"),
        ({"an_unknown_setting": 3}, "sets an_unknown_setting to 3, which Glassformer does not apply"),
        ({"bias": "some"}, "sets bias to 'some'; it is none, all or lora_only"),
    ],
)
def test_what_an_adapter_cannot_be_is_refused_by_name(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    base = tiny_directory(tmp_path / "base")
    adapter(base, tmp_path / "tuned", r=2, target_modules=["q_proj"])
    edit(tmp_path / "tuned", **settings)
    with pytest.raises(UnsupportedError, match=words):
        load(base, adapter=tmp_path / "tuned")


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base")
    tuned = tmp_path / "tuned"
    adapter(tiny_directory(tmp_path / "other", hidden_size=64), tuned, r=2, target_modules=["q_proj"])
    with pytest.raises(CheckpointError, match=r"q_proj\.weight of shape \(64, 64\); this model's has \(32, 32\)"):
        load(base, adapter=tuned)
    adapter(tiny_directory(tmp_path / "deep", num_hidden_layers=5), tuned, r=2, target_modules=["q_proj"])
    with pytest.raises(CheckpointError, match=r"is for model\.layers\.3\.self_attn\.q_proj\.weight, .* another one"):
        load(base, adapter=tuned)


def test_a_broken_adapter_is_a_sentence(tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base")
    tuned = tmp_path / "tuned"
    adapter(base, tuned, r=2, target_modules=["q_proj"])
    file = tuned / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({name: tensor for name, tensor in whole.items() if "layers.1.self_attn.q_proj.lora_B" not in name}, file)
    with pytest.raises(CheckpointError, match=r"lacks lora_B of model\.layers\.1\.self_attn\.q_proj"):
        load(base, adapter=tuned)
    save_file(whole | {"base_model.model.model.layers.0.self_attn.q_proj.hada_w1": torch.ones(1)}, file)
    with pytest.raises(UnsupportedError, match="hada_w1, which no part of LoRA is called"):
        load(base, adapter=tuned)
    file.rename(tuned / "adapter_model.bin")
    with pytest.raises(UnsafeFileError, match="is a pickled file"):
        load(base, adapter=tuned)
    (tuned / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match="has no adapter_model.safetensors"):
        load(base, adapter=tuned)
    edit(tuned, base_model_name_or_path="gone/away/model")
    with pytest.raises(SourceError, match=r"is an adapter for gone/away/model: .* Or name its model: MODEL\+"):
        load(tuned)
