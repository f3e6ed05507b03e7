"""Counting against closed forms, published totals, and the tensors that the transformer really holds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.count import DESIGNS, PER_LAYER, count
from glassformer.errors import ConfigError, UsageError
from glassformer.model.config import Attention, Config, FeedForward, uniform
from tests.strategies import configs
from tests.tiny import EVERY, VARIANTS, tiny_hf

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "smollm2": 134_515_008,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "qwen3-0.6b": 596_049_920,
}


# A parameter's name -> its component.
def component(name: str) -> str:
    part, _, kind = name.removeprefix("blocks.").rpartition(".")
    part = part.lstrip("0123456789.")
    if part.startswith(("ln", "final", "attn.q_norm", "attn.k_norm", "attn.out_norm", "mlp.out_norm")):
        return "norms"
    if kind == "bias":
        return "biases"
    return {
        "embed": "embedding",
        "pos_embed": "positions",
        "unembed": "unembedding",
        "attn.q": "query",
        "attn.k": "key",
        "attn.v": "value",
        "attn.o": "output",
        "mlp.gate": "gate",
        "mlp.up": "up",
        "mlp.down": "down",
    }[part]


def held(config: Config) -> dict[str, int]:
    from glassformer.model import Transformer

    found: dict[str, int] = {}
    for name, parameter in Transformer.empty(config).named_parameters():
        found[component(name)] = found.get(component(name), 0) + parameter.numel()
    return found


@settings(max_examples=150, deadline=None)
@given(configs())
def test_every_component_equals_the_tensors_of_the_transformer(config):
    found = count(config)
    assert {name: size for name, size in found.built.whole.items() if size} == held(config)
    assert found.parameters == sum(held(config).values())


@pytest.mark.parametrize("name", DESIGNS)
def test_named_designs_equal_the_tensors_of_the_transformer(name):
    config = DESIGNS[name]()
    assert {part: size for part, size in count(name).built.whole.items() if size} == held(config)


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_published_totals(name, parameters):
    assert count(name).parameters == parameters


def test_every_design_but_gpt3_has_a_published_total():
    assert set(DESIGNS) - set(PUBLISHED) == {"gpt3"}


def test_gpt3_in_the_explainers_convention():
    tally = count("gpt3").tallies[0]
    assert tally.label == "matrices only, untied"
    assert tally.head["query"] == 1_572_864
    assert sum(tally.head.values()) == 6_291_456
    data = tally.to_dict()
    assert data["attention"] == 57_982_058_496
    assert data["feed_forward"] == 115_964_116_992
    assert tally.whole["embedding"] == tally.whole["unembedding"] == 617_558_016
    assert tally.total == data["total"] == 175_181_291_520


def test_gpt3_as_built():
    found = count("gpt3")
    assert len(found.tallies) == 2
    assert found.built.label == "as built"
    d, layers = 12288, 96
    extras = 2048 * d + layers * (4 * d + 4 * d + d) + (2 * layers + 1) * 2 * d
    assert found.parameters == found.tallies[0].total - 617_558_016 + extras == 174_604_259_328


def test_flops_in_closed_form():
    """One layer, one head: 2 FLOPs a weight, 4 a head dimension and key seen, three forwards to train."""
    config = uniform(10, 8, 1, 5, Attention(1, 1, 4), FeedForward(16), tied=True)
    matrices = 4 * 4 * 8 + 3 * 16 * 8 + 10 * 8
    found = count(config)
    assert found.inference_flops == 2 * matrices + 4 * 4 * 5
    assert found.training_flops == 3 * (2 * matrices + 4 * 4 * (1 + 2 + 3 + 4 + 5) / 5)


@settings(max_examples=100, deadline=None)
@given(configs(), st.integers(1, 64))
def test_flops_equal_a_sum_over_every_query_and_key(config, context):
    context = min(context, config.context)
    found = count(config, context)
    matrices = found.built.of(PER_LAYER) + config.vocab_size * config.d_model
    width = config.attention(0).n_heads * config.attention(0).d_head
    seen = [
        sum(1 for key in range(query + 1) if query - key < (config.window(layer) or context))
        for layer in range(config.n_layers)
        for query in range(context)
    ]
    assert found.training_flops == pytest.approx(3 * (2 * matrices + 4 * width * sum(seen) / context))
    assert found.inference_flops == 2 * matrices + 4 * width * sum(seen[context - 1 :: context])


def test_memory_in_closed_form():
    found = count("smollm2")
    n, matrices = 134_515_008, 30 * 3_538_944
    assert found.weight_bytes == {
        "float32": 4 * n,
        "bfloat16": 2 * n,
        "8-bit blocks": int(n * 34 / 32),
        "4-bit blocks": int(n * 18 / 32),
    }
    assert found.cache_bytes_per_token == {"float32": 2 * 30 * 3 * 64 * 4, "bfloat16": 2 * 30 * 3 * 64 * 2}
    assert found.optimizer_bytes == {"adamw": 8 * n, "muon": 4 * matrices + 8 * (n - matrices)}


def test_the_cache_costs_what_is_counted():
    import torch

    from glassformer.model import Cache

    config = uniform(10, 8, 3, 16, Attention(4, 2, 6), FeedForward(16))
    cache = Cache(config, 1, 16, torch.float32, torch.device("cpu"))
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(vars(cache).values())}
    assert sum(held.values()) == 16 * count(config).cache_bytes_per_token["float32"]


def _tensors(values):
    import torch

    for value in values:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def test_it_survives_json():
    data = count("gpt3", context=1024).to_dict()
    assert json.loads(json.dumps(data)) == json.loads(json.dumps(data, allow_nan=False))
    assert Config.from_dict(json.loads(json.dumps(data["config"]))) == DESIGNS["gpt3"]()


def test_a_model_is_counted_by_its_config():
    class Loaded:
        name, config = "mine", DESIGNS["gpt2"]()

    found = count(Loaded())
    assert (found.name, found.parameters) == ("mine", 124_439_808)


def test_other_names_go_to_the_reader():
    assert count("some/where", read=lambda source: DESIGNS["gpt2"]()).parameters == 124_439_808


def test_names_are_forgiving_about_case():
    assert count("GPT2").parameters == 124_439_808


def test_an_unknown_name_is_refused_with_near_matches():
    with pytest.raises(ConfigError, match=r"No design is called 'gtp2'; known are gpt2, .* Did you mean gpt2") as error:
        count("gtp2")
    assert "\n" not in str(error.value)


def test_what_is_no_design_is_refused():
    with pytest.raises(ConfigError, match=r"takes the name of a design, a Config, or a model"):
        count(3)


def test_contexts_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="at least 1 token; 0 was asked for"):
        count("gpt3", 0)
    with pytest.raises(UsageError, match=r"gpt2 has 1,024 trained positions.*ask for at most 1,024"):
        count("gpt2", 1025)


def test_rotary_designs_reach_further():
    assert count("llama-7b", 100_000).context == 100_000


@pytest.mark.parametrize(("family", "variant"), EVERY)
def test_every_family_holds_what_is_counted(tmp_path, family, variant):
    from glassformer.checkpoint import read_config

    reference = tiny_hf(family, **VARIANTS[family][variant])
    reference.config.save_pretrained(tmp_path)
    assert count(read_config(tmp_path)).parameters == reference.num_parameters()
