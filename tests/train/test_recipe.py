"""Recipes: what is asked is checked by name before anything is built."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.count import count
from glassformer.errors import ConfigError, UsageError
from glassformer.train import memory, peak, schedule
from glassformer.train import recipe as recipes
from glassformer.train.recipe import Recipe, load, names


def test_every_named_recipe_is_sound_and_states_what_it_gives() -> None:
    assert "cpu-minutes" in names()
    for name in names():
        recipe = load(name)
        assert recipe.name == name
        assert recipe.about.endswith(".")
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        config = recipe.config(1000)
        assert config.vocab_size == 1000
        assert recipe.expect.machine
        for stated in (recipe.expect.loss, recipe.expect.time, recipe.expect.memory):
            assert "measured" in stated or "computed" in stated, (name, stated)


@pytest.mark.parametrize("name", ["gpt2-124m", "gpt2-350m"])
def test_what_the_gpu_recipes_state_is_what_the_formulas_give(name: str) -> None:
    recipe = load(name)
    config = recipe.config(50257)
    counted, tokens = count(config), schedule.total_tokens(recipe)
    flops = counted.training_flops * tokens
    h100, _ = next((flops, word) for word, flops in peak._GPU_PEAKS if word == "H100")
    assert f"{flops / (0.4 * h100) / 3600:.1f} hours (computed: {flops:.2e}".replace("e+", "e") in recipe.expect.time
    need = memory.estimate(recipe, config, torch.bfloat16)
    assert recipe.expect.memory.startswith(
        f"{need.total(1) / 1e9:.1f} GB with one row at once and {need.row / 1e9:.2f} GB"
    )
    law = 1.69 + 406.4 / counted.parameters**0.34 + 410.7 / tokens**0.28
    assert recipe.expect.loss.startswith(f"about {law:.2f} nats")


def test_the_default_recipe_exports_to_both() -> None:
    recipe = load()
    assert recipe.name == "cpu-minutes"
    assert recipe.model.design == "qwen3"
    assert recipe.exports == ("hf", "gguf")
    assert load().with_settings(["design=relu2"]).exports == ()


def test_shakespeare_recipes_keep_within_nanogpts_sizes() -> None:
    assert count(load("shakespeare-char").config(65)).parameters <= 800_000
    assert count(load("shakespeare-char-large").config(65)).parameters <= 10_650_000
    assert count(load("gpt2-124m").config(50257)).parameters == 124_439_808


def test_settings_find_their_section() -> None:
    recipe = Recipe().with_settings(["steps=1_000", "optimizer.muon_lr=1e-2", "tied=yes", "data=a.txt,b.txt"])
    assert recipe.schedule.steps == 1000
    assert Recipe().with_settings(["seed=9007199254740993"]).loop.seed == 9007199254740993
    assert recipe.optimizer.muon_lr == 0.01
    assert recipe.model.tied is True
    assert recipe.data.data == ("a.txt", "b.txt")
    staged = Recipe().with_settings(["length_stages=[[0.5, 64]]"])
    assert staged.schedule.length_stages == ((0.5, 64),)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("stepz=3", "No recipe setting is called 'stepz'. Did you mean steps"),
        ("model.steps=3", "No recipe setting is called 'model.steps'"),
        ("steps", "A setting is written key=value, as in steps=200; got 'steps'."),
        ("steps=many", "steps is a whole number; got 'many'."),
        ("steps=2.5", "steps is a whole number; got '2.5'."),
        ("muon_lr=nan", "muon_lr is a number; got 'nan'."),
        ("tied=perhaps", "tied is true or false; got 'perhaps'."),
        ("steps=0", "steps must be at least 1; got 0."),
        ("design=bert", "design is one of qwen3, llama, gpt2, relu2, olmoe-tiny, "),
        ("on_nan=ignore", "on_nan is one of stop, skip; got 'ignore'."),
        ("heads=3", "width 128 does not divide into 3 heads"),
        ("momentum=1", "momentum must be at least 0 and below 1; got 1"),
        ("decay=2", "decay is a share between 0 and 1; got 2"),
        ("warmup=5000", "warmup of 5000 steps is longer than the run of 1000."),
        ("length_stages=[[0.5, 4096]]", "length_stages asks for 4096 tokens a row; context is 256."),
        ("length_stages=[[0.5, 64], [0.2, 128]]", "length_stages needs rising shares up to 1"),
        ("batch_stages=[3]", "batch_stages is a list such as"),
        ("batch_stages={", "batch_stages is a list such as"),
        ("seed=9223372036854775808", "seed must be at most 9223372036854775807; got 9223372036854775808."),
        ("threads=100000", "threads must be at most 1024; got 100000."),
        ("layers=1e18", "layers must be at most 100000; got 1000000000000000000."),
        ("eps=0", "eps must be above 0; got 0.0."),
        ("eps=-1", "eps must be above 0; got -1.0."),
    ],
)
def test_what_cannot_be_meant_is_refused(setting: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe().with_settings([setting])
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[model]\nlayer = 3", "[model] in {path} has no key 'layer'. Did you mean layers?"),
        ("[model]\nsteps = 3", "[model] in {path} has no key 'steps'. steps belongs under [schedule]."),
        ("[modle]\nlayers = 3", "{path} has no key 'modle'. Did you mean model"),
        ("steps = 3", "{path} sets steps at the top; it belongs under [schedule]."),
        ("model = 3", "[model] in {path} must be a table of settings, not 3."),
        ("[model", "{path} is not sound TOML: "),
        ("[data]\ndata = 3", "data is a list; got 3."),
        ('[data]\ndata = "a.txt"', ""),
    ],
)
def test_a_file_with_a_mistake_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    if not says:
        assert load(path).data.data == ("a.txt",)
        return
    with pytest.raises(UsageError) as caught:
        load(path)
    assert str(caught.value).startswith(says.format(path=path))


def test_absent_recipes_are_named() -> None:
    with pytest.raises(UsageError, match=r"There is no recipe file absent.toml."):
        load("absent.toml")
    with pytest.raises(UsageError, match=r"No recipe is called 'cpu-minute'; there are .* Did you mean cpu-minutes"):
        load("cpu-minute")


def test_every_setting_has_a_name_of_its_own_and_a_word_about_it() -> None:
    seen: set[str] = set()
    for section, cls in recipes._SECTIONS.items():
        if section == "expect":
            continue
        for field in dataclasses.fields(cls):
            assert field.name not in seen, field.name
            assert field.metadata["setting"].help.endswith("."), f"{field.name} is not explained"
            seen.add(field.name)


def test_designs_contradicting_themselves_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot share"):
        Recipe().with_settings(["kv_heads=3"])


def test_the_rate_rises_stays_and_falls() -> None:
    spec = Recipe().with_settings(["steps=100", "warmup=10", "decay=0.5", "final=0.1"]).schedule
    rates = [schedule.rate(step, spec) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [1.0] * 42
    assert all(a > b for a, b in itertools.pairwise(rates[50:]))
    assert rates[99] == pytest.approx(0.1 + 0.9 / 50)
    assert schedule.rate(5, Recipe().with_settings(["decay=0"]).schedule) == 1.0


def test_momentum_batches_lengths_and_tokens() -> None:
    recipe = Recipe().with_settings(
        ["steps=100", "batch=8", "context=64", "batch_stages=[[0.1, 2]]", "length_stages=[[0.5, 16]]"]
    )
    assert schedule.momentum(0, recipe.optimizer) == 0.85
    assert schedule.momentum(50, recipe.optimizer) == pytest.approx(0.9)
    assert schedule.momentum(100, recipe.optimizer) == 0.95
    assert [schedule.batch(step, recipe) for step in (0, 9, 10)] == [2, 2, 8]
    assert [schedule.length(step, recipe) for step in (0, 49, 50)] == [16, 16, 64]
    assert schedule.total_tokens(recipe) == 10 * 2 * 16 + 40 * 8 * 16 + 50 * 8 * 64
    assert not math.isnan(schedule.rate(99, recipe.schedule))


@settings(deadline=None)
@given(
    st.integers(1, 300),
    *[st.lists(st.tuples(st.floats(0.001, 1), st.integers(1, 64)), max_size=3, unique_by=lambda x: x[0])] * 2,
)
def test_tokens_are_counted_as_they_are_taken(
    steps: int, batches: list[tuple[float, int]], lengths: list[tuple[float, int]]
) -> None:
    recipe = Recipe().with_settings(
        {"steps": steps, "context": 64, "batch_stages": sorted(batches), "length_stages": sorted(lengths)}
    )
    taken = sum(schedule.batch(step, recipe) * schedule.length(step, recipe) for step in range(steps))
    assert schedule.total_tokens(recipe) == taken
