"""Causes in the design of every family that opens, with weights drawn here: sums that must close, in float64."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch

from glassformer.checkpoint.families import FAMILIES
from glassformer.interp.edges import edges
from glassformer.interp.prediction_graph import prediction_graph
from glassformer.interp.trace import Trace
from glassformer.model.choices import softmax_of
from glassformer.model.config import Config
from tests.checkpoint.test_alike import SETTINGS, kind
from tests.model.test_stacks import drawn
from tests.tiny import VARIANTS, tiny_settings

NAMES = [*sorted(SETTINGS), *(f"{family}: {next(iter(variants))}" for family, variants in VARIANTS.items())]
LENGTH = 5


def design(name: str) -> Config:
    """What a family's table makes of the settings that its tests try."""
    from transformers import AutoConfig

    family = kind(name)
    own: dict[str, Any] = SETTINGS[name] if name in SETTINGS else tiny_settings(family, name.partition(": ")[2])
    told = json.loads(json.dumps(AutoConfig.for_model(family, **own).to_dict(), default=str))
    return FAMILIES[family].from_hf(told, "config.json")


@functools.cache
def traced(name: str) -> Trace:
    config = design(name)
    ids = torch.randint(3, config.vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(2)).tolist()
    return Trace(drawn(config), ids)


def test_every_family_is_here() -> None:
    aliases = {"internlm3", "iquestcoder"}  # Llama under other names of type
    assert set(FAMILIES) - aliases <= {kind(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_graph_of_a_prediction_adds_up(name: str) -> None:
    """All nodes shown: their direct effects are the score, and each effect is what earlier nodes and biases gave."""
    run = traced(name)
    found = prediction_graph(run, 1, 2, most=100_000, coverage=1.0, measure=False)
    logits = run.transformer(torch.tensor([run.ids]))[0, -1]
    if run.config.logit_softcap is None:
        assert found.value == pytest.approx(float(logits[1] - logits[2]), abs=1e-9)
    scale = max(1.0, abs(found.value), sum(abs(node["direct"]) for node in found.nodes))
    assert found.direct + found.constant == pytest.approx(found.value, abs=1e-9 * scale)
    assert sum(node["direct"] for node in found.nodes) == pytest.approx(found.direct, abs=1e-9 * scale)
    largest = max(1.0, *(abs(node["effect"]) for node in found.nodes))
    assert max(map(abs, found.others)) <= 1e-8 * largest
    begins = sum(node["effect"] if node["kind"] == "embed" else node["bias"] for node in found.nodes)
    assert begins + found.constant == pytest.approx(found.value, abs=1e-8 * largest * len(found.nodes))


@pytest.mark.parametrize("name", ["openai-gpt", "gemma3n_text", "minimax"])
def test_where_the_stream_is_made_anew_nodes_are_taken_away(name: str) -> None:
    run = traced(name)
    found = prediction_graph(run, 1, 2, most=25)
    assert len({node["kind"] for node in found.nodes}) > 1
    for node in found.nodes:
        tap = node["node"].scaled(0.0).bind(run.config)
        normed = run.transformer.hidden(torch.tensor([run.ids]), tap=tap)[:, -1]
        after = float(normed[0].double() @ found.way.vector + found.way.offset)
        scale = max(1.0, abs(found.value), abs(after))
        assert node["measured"] == pytest.approx(found.value - after, abs=1e-8 * scale), node["name"]


def test_edges_of_a_design_with_a_layer_before_its_final_norm() -> None:
    """Gradients averaged in many steps add up, and every edge alone is measured."""
    [name] = [name for name in NAMES if kind(name) == "modernbert-decoder"]
    clean = traced(name)
    other = Trace(clean.transformer, [*clean.ids[:2], (clean.ids[2] + 1) % clean.config.vocab_size, *clean.ids[3:]])
    found = edges([(clean, other)], answer=1, wrong=2, steps=960, exact="all")
    assert found.adds_up == pytest.approx(1, abs=0.02)
    logits = clean.transformer(torch.tensor([clean.ids, other.ids]))[:, -1]
    assert found.clean - found.corrupted == pytest.approx(
        float((logits[0] - logits[1])[1] - (logits[0] - logits[1])[2]), abs=1e-9
    )
    assert float(found.exact.abs().max()) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_pairs_sum_to_the_score_of_a_cell(name: str) -> None:
    run = traced(name)
    layers = [i for i, layer in enumerate(run.config.layers) if softmax_of(layer.mixer) is not None]
    for layer in layers:
        head = run.config.attention(layer).n_heads - 1
        found = run.reasons(layer, head, LENGTH - 1, 1)
        size = 1 + float(found.pairs.abs().sum())
        assert abs(found.sum - found.steps[0].product) <= 1e-12 * size
        assert abs(float(found.by_word.sum()) - found.sum) <= 1e-12 * size
