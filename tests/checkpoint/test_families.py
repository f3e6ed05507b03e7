"""Every family against transformers: the same logits from the same files, both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from glassformer.checkpoint import open_checkpoint, read_config, tensor_shapes, write_hf
from glassformer.checkpoint.families import FAMILIES
from glassformer.checkpoint.keys import native_shapes
from glassformer.model import Transformer
from tests.tiny import EVERY, VARIANTS, gap, reference_logits, tiny_hf, tiny_tokens

NORM = 1e-5


def our_logits(path: Path, tokens: torch.Tensor) -> torch.Tensor:
    checkpoint = open_checkpoint(path)
    transformer = Transformer.empty(checkpoint.config).load(checkpoint.tensors)
    with torch.no_grad():
        return transformer(tokens)


@pytest.mark.parametrize(("family", "variant"), EVERY)
def test_the_same_logits_as_transformers(tmp_path: Path, family: str, variant: str) -> None:
    model = tiny_hf(family, **VARIANTS[family][variant])
    model.save_pretrained(tmp_path)
    tokens = tiny_tokens()
    assert gap(our_logits(tmp_path, tokens), reference_logits(model, tokens)) <= NORM


@pytest.mark.parametrize(("family", "variant"), EVERY)
def test_transformers_loads_what_is_written(tmp_path: Path, family: str, variant: str) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_hf(family, **VARIANTS[family][variant])
    model.save_pretrained(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    write_hf(tmp_path / "ours", checkpoint.config, checkpoint.tensors, family=family)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert type(again) is type(model)
    tokens = tiny_tokens()
    assert gap(reference_logits(again, tokens), reference_logits(model, tokens)) <= 1e-6
    assert open_checkpoint(tmp_path / "ours").config == checkpoint.config


def test_every_family_is_tried() -> None:
    from tests.checkpoint.test_alike import SETTINGS, kind

    tried = {kind(name) for name in SETTINGS}
    assert set(VARIANTS) | tried | {"internlm3", "iquestcoder"} == set(FAMILIES)


@pytest.mark.parametrize("family", VARIANTS)
def test_every_parameter_matters(tmp_path: Path, family: str) -> None:
    """A table that drops or swaps a tensor could hide behind a parameter that changes nothing."""
    model = tiny_hf(family)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    tensors = dict(checkpoint.tensors)
    tokens = tiny_tokens(1, 24)
    transformer = Transformer.empty(checkpoint.config).load(tensors)
    with torch.no_grad():
        before = transformer(tokens)
        for key in tensors:
            if key.startswith("blocks.") and not key.startswith("blocks.1."):
                continue
            if key.endswith("attn.k.bias") and checkpoint.config.learned_positions:
                continue  # without rotation it shifts all scores of a query alike, and softmax does not see it
            noise = 0.2 * torch.randn(tensors[key].shape, generator=torch.Generator().manual_seed(2))
            changed = Transformer.empty(checkpoint.config).load({**tensors, key: tensors[key] + noise})
            assert gap(changed(tokens), before) > 1e-4, key


@pytest.mark.parametrize("family", VARIANTS)
def test_headers_alone_tell_config_and_shapes(tmp_path: Path, family: str) -> None:
    tiny_hf(family).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert read_config(tmp_path) == read_config(tmp_path / "config.json") == checkpoint.config
    assert tensor_shapes(tmp_path) == native_shapes(checkpoint.config)
    assert {key: tuple(tensor.shape) for key, tensor in checkpoint.tensors.items()} == native_shapes(checkpoint.config)
