"""Adapters of experts and routers, made by the peft package (`target_parameters`): its logits are the reference."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glassformer.checkpoint import open_checkpoint, write_hf
from glassformer.checkpoint.adapter import adapted
from glassformer.checkpoint.adapter_experts import HeadsHome, experts_homes, in_transformers, routers
from glassformer.checkpoint.adapter_writer import places
from glassformer.checkpoint.families import named
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model import Transformer
from glassformer.train.adapter import KINDS, targets
from glassformer.train.recipe import AdapterSpec
from tests.checkpoint.sparse_settings import SPARSE
from tests.checkpoint.test_alike import SETTINGS, VOCAB, reference
from tests.tiny import gap

IDS = torch.randint(3, VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))

# Experts whose matrices are read outside their module; no experts.
WITHOUT = {"dbrx", "minicpm3", "youtu"}

# Others whose modules transformers calls otherwise than their files do.
RENAMED = dict.fromkeys(("kimi_linear", "minimax", "lfm3", "bailing_hybrid", "nemotron_h", "granitemoehybrid"))


def logits(checkpoint: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = Transformer.empty(checkpoint.config).load(checkpoint.tensors, dtype=torch.float32)(IDS)
    return found


def parameters(model: Any) -> list[str]:
    """Stacked experts and routers of a model, by the names that peft takes."""
    found = set()
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        if parameter.ndim == 3 and module.endswith(("experts", "put_linear")):
            found.add(name)
        if parameter.ndim == 2 and module.endswith((".gate", ".router")) and leaf == "weight" and "mlp" in module:
            found.add(name)
    return sorted(found)


def made(theirs: Any, at: Path, names: list[str], **settings: Any) -> Any:
    """peft's model with a random adapter, which is saved."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=6, target_modules=[], target_parameters=names, **settings
    )
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(theirs, config).eval()
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        tuned.save_pretrained(at)
    return tuned


# As files have experts: one tensor each, all in one with gate and up in turn and turned over, under another name than
# transformers has, without a gate; of a model whose matrices peft takes the wrong way round; and stacks, attention's
# among them, that are modules of their own.
@pytest.mark.parametrize("name", ["olmoe", "gpt_oss", "mixtral", "nemotron_h", "llama4_text", "jetmoe"])
def test_adapted_experts_answer_as_peft_s(tmp_path: Path, name: str) -> None:
    theirs = reference(name)
    theirs.save_pretrained(tmp_path / "base")
    base = open_checkpoint(tmp_path / "base")
    chosen = parameters(theirs)
    tuned = made(theirs, tmp_path / "tuned", chosen, alpha_pattern={"down_proj": 3, "experts.up_proj": 9})
    with torch.no_grad():
        want = tuned(IDS).logits
    opened = adapted(base, [tmp_path / "tuned"])
    assert gap(want, logits(base)) > 1e-3, "the adapter changes something"
    assert gap(logits(opened), want) < 1e-5
    assert {key.split(".", 2)[2] for key in opened.changed} >= {"mlp.experts.up.weight", "mlp.experts.down.weight"}
    write_hf(tmp_path / "merged", opened.config, dict(opened.tensors), family=name)
    assert gap(logits(open_checkpoint(tmp_path / "merged")), want) < 1e-5


def test_one_parameter_alone_and_sizes_of_another_model(tmp_path: Path) -> None:
    theirs = reference("olmoe")
    theirs.save_pretrained(tmp_path / "base")
    base, tuned = open_checkpoint(tmp_path / "base"), tmp_path / "tuned"
    alone = made(theirs, tuned, ["mlp.experts.down_proj"], use_rslora=True)
    with torch.no_grad():
        assert gap(logits(adapted(base, [tuned])), alone(IDS).logits) < 1e-5
    file = tuned / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({key: x[:, :-1].contiguous() if "lora_A" in key else x for key, x in whole.items()}, file)
    with pytest.raises(
        CheckpointError, match=r"experts from 23 to 32 numbers, .* 4 experts go from 32 to 48 and 24 to 32"
    ):
        adapted(base, [tuned])


def test_where_peft_s_model_fails_nothing_is_read(tmp_path: Path) -> None:
    """DBRX's experts, whose matrices are read from outside the module that peft wraps."""
    theirs = reference("dbrx")
    theirs.save_pretrained(tmp_path / "base")
    base = open_checkpoint(tmp_path / "base")
    with pytest.raises(AttributeError, match="'ParamWrapper' object has no attribute"):
        made(theirs, tmp_path / "tuned", ["experts.mlp.w1"])(IDS)
    with pytest.raises(UnsupportedError, match=r"adapts transformer.blocks.0.ffn.experts.mlp, whose matrices tr"):
        adapted(base, [tmp_path / "tuned"])
    with pytest.raises(UnsupportedError, match=r"targets names mlp.experts.down of a part of this dbrx whose matrices"):
        targets(base.config, named("dbrx"), AdapterSpec(adapter="lora", targets=("mlp.experts.*",)))


def test_experts_adapted_one_by_one(tmp_path: Path) -> None:
    """As adapters of models whose experts are modules have them: a pair of matrices an expert, here of one alone."""
    theirs = reference("olmoe")
    theirs.save_pretrained(tmp_path / "base")
    base, tuned = open_checkpoint(tmp_path / "base"), tmp_path / "tuned"
    tuned.mkdir()
    module = "base_model.model.model.layers.1.mlp.experts.2.up_proj"
    a, b = torch.randn(2, 32), torch.randn(24, 2)
    save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, tuned / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["up_proj"]}
    (tuned / "adapter_config.json").write_text(json.dumps(settings))
    found, key = adapted(base, [tuned]).tensors, "blocks.1.mlp.experts.up.weight"
    want = base.tensors[key].clone()
    want[2] += b @ a * 1.5
    torch.testing.assert_close(found[key], want)


@pytest.mark.parametrize("name", sorted(name for name in {**SPARSE, **RENAMED} if ":" not in name))
def test_what_transformers_calls_what_an_adapter_names(name: str) -> None:
    """Every module and parameter that an adapter may name is one of transformers' model, with the sizes of ours."""
    from transformers import AutoConfig, AutoModelForCausalLM

    theirs = AutoConfig.for_model(name, **SETTINGS[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    there = {key: tuple(p.shape) for key, p in model.named_parameters()}
    family = named(name)
    config = family.from_hf(json.loads(theirs.to_json_string()), "config.json")
    homes, routed, shapes = experts_homes(config, family), routers(config, family), config.components()
    assert homes or name in WITHOUT or name in RENAMED
    for key, home in homes.items():
        stored = there[f"{home.module}.{home.parameter}"]
        if isinstance(home, HeadsHome):
            assert stored == home.place.shape
            continue
        _, given, read = shapes[key].shape
        size = (given * len(home.rows), read)
        assert stored[1:] in (size, size[::-1])
    for key, module in routed.items():
        assert there[f"{module}.weight"] == shapes[key].shape
    for key, place in places(config, family).items():
        if key.startswith("blocks.") and shapes[key].counted in KINDS:
            assert there[in_transformers(place.theirs, family)] in (place.shape, place.shape[::-1])
