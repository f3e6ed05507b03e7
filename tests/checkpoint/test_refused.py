"""Refusals say what stands in the way, of a type and of a setting, and suggest nothing that would answer wrongly."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from glassformer.checkpoint import open_checkpoint, read_config
from glassformer.checkpoint.families import FAMILIES, NOT_READ
from glassformer.checkpoint.unread import UnreadSettingWarning
from glassformer.errors import UnsupportedError
from glassformer.model import Transformer
from tests.tiny import gap, tiny_hf


def edit(directory: Path, **settings: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def excluded() -> frozenset[str]:
    """The types of the table that are no decoder-only language models, as the census has them."""
    path = Path(__file__).parents[2] / "benchmarks" / "census_settings.py"
    spec = importlib.util.spec_from_file_location("census_settings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: frozenset[str] = module.EXCLUDED
    return found


def test_every_type_of_transformers_is_read_or_refused_with_its_reason(tmp_path: Path) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    inside = {name for family in FAMILIES.values() for name in family.inside}
    types = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - excluded() - {"gpt-sw3"}  # which is saved as gpt2
    assert types - set(FAMILIES) - inside <= set(NOT_READ)
    assert not set(NOT_READ) & (set(FAMILIES) | inside)
    for name, reason in NOT_READ.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
        with pytest.raises(UnsupportedError) as refusal:
            read_config(tmp_path)
        said = str(refusal.value)
        assert said.endswith(f"model of type '{name}', which is not read: {reason} (docs/models.md).")
        assert "ignore-key" not in said


@pytest.mark.parametrize(
    ("name", "changes", "words", "key"),
    [
        ("llama", {"partial_rotary_factor": 0.5}, "rotates whole heads", "partial_rotary_factor"),
        (
            "llama",
            {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}},
            "rotates whole heads",
            "rope_parameters.partial_rotary_factor",
        ),
        (
            "mistral",
            {"rope_parameters": {"rope_theta": 500.0, "full_attention": {"rope_theta": 100.0}}},
            "all rotate alike",
            "rope_parameters.full_attention",
        ),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "transformers does not use", "attn_logit_softcapping"),
    ],
)
def test_a_refusal_names_a_reason_and_the_key_that_opens_it_as_transformers_does(
    tmp_path: Path, name: str, changes: dict[str, Any], words: str, key: str
) -> None:
    from transformers import AutoModelForCausalLM

    tiny_hf(name).save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(UnsupportedError, match=f"{words}.*--ignore-key {key}$"):
        read_config(tmp_path)
    with pytest.warns(UnreadSettingWarning):
        opened = open_checkpoint(tmp_path, ignore=[key])
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        ours = Transformer.empty(opened.config).load(opened.tensors, dtype=torch.float32)(ids)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")(ids)
    assert gap(ours, theirs.logits) <= 1e-5


@pytest.mark.parametrize("changes", [{"use_bidirectional_attention": True}, {"is_causal": False}])
def test_a_model_that_attends_to_later_tokens_is_not_opened_another_way(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    tiny_hf("gemma2").save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(UnsupportedError, match="predicts no next token.$"):
        read_config(tmp_path)
