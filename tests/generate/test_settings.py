"""One declaration, many faces: what the settings accept, and that a new one reaches the command line, HTTP and docs."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path

import pytest

from glassformer.errors import UsageError
from glassformer.generate import settings as settings_module
from glassformer.generate.settings import Sampling, Setting, by_name, settings

MAKE_DOCS = Path(__file__).parents[2] / "scripts" / "make_docs.py"


def test_values_that_switch_a_setting_off_become_its_neutral_one():
    said = Sampling(top_k=-1, typical_p=0, min_tokens=-1, temperature=None, logit_bias=None)
    assert said == Sampling()
    assert said.unfiltered
    assert said.plain


def test_further_names_mean_the_same_and_may_not_differ():
    assert Sampling.of({"repeat_penalty": 1.5, "typ_p": 0.5, "top_k": None}) == Sampling(
        repetition_penalty=1.5, typical_p=0.5
    )
    assert by_name({"repeat_penalty": 1.5, "repetition_penalty": 1.5}) == {"repetition_penalty": 1.5}
    with pytest.raises(UsageError, match="repetition_penalty and repeat_penalty are one setting, and differ here."):
        Sampling.of({"repeat_penalty": 1.5, "repetition_penalty": 1.2})
    with pytest.raises(UsageError, match="There is no setting 'temprature' of an answer. Did you mean temperature?"):
        Sampling.of({"temprature": 1})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"top_k": 2.5}, "top_k must be a whole number of at least 0; got 2.5."),
        ({"top_k": True}, "top_k must be a whole number of at least 0; got True."),
        ({"typical_p": 1.5}, "typical_p must be between 0 and 1; got 1.5."),
        ({"min_tokens": -2}, "min_tokens must be a whole number of at least 0; got -2."),
        ({"ignore_eos": 1}, "ignore_eos must be true or false; got 1."),
        ({"stop_token_ids": [-1]}, "stop_token_ids names token -1; ids begin at 0."),
        ({"stop_token_ids": ["a"]}, "stop_token_ids names tokens by their ids; 'a' is none."),
        ({"seed": 2**64}, f"seed must be a whole number between -9.22337e+18 and 9.22337e+18; got {2**64}."),
        ({"logit_bias": dict.fromkeys(range(2000), 1.0)}, "logit_bias takes at most 1024 tokens; got 2000."),
    ],
)
def test_values_out_of_range_are_refused_by_name(said, message):
    with pytest.raises(UsageError) as caught:
        Sampling(**said)
    assert str(caught.value) == message


@pytest.fixture
def novelty(monkeypatch) -> Setting:
    """A setting that is declared and nothing else."""
    one = Setting("novelty", "Only tokens that are new.", 0.0, low=0, high=3, flags=("--novelty",), aliases=("new",))
    monkeypatch.setitem(settings_module._KNOWN, "novelty", one)
    return one


def test_a_declared_setting_is_an_option_of_the_command_line(novelty):
    from glassformer.cli.answers import answering

    @answering()
    def verb(how) -> None:
        seen.append(how.given["novelty"])

    seen: list[float] = []
    assert "novelty" in inspect.signature(verb).parameters
    verb(max_tokens=1, stop=None, precision="exact", cache_bits=None, show=False, novelty=2.0)
    assert seen == [2.0]


def test_a_declared_setting_is_a_field_of_http_requests(novelty):
    from pydantic import ValidationError, create_model

    from glassformer.serve.fields import Ask, sampling_fields

    model = create_model("Model", __base__=Ask, **sampling_fields())
    assert (model(novelty=2.0).novelty, model(new=1).new) == (2.0, 1)
    shown = model.model_json_schema()["properties"]["novelty"]
    assert shown["description"] == "Only tokens that are new."
    with pytest.raises(ValidationError, match="less than or equal to 3"):
        model(novelty=4)


def test_a_declared_setting_is_in_the_documentation(novelty):
    page = runpy.run_path(str(MAKE_DOCS))["sampling"]()
    assert "| `novelty` | `new` | `--novelty` | between 0 and 3 | `0.0` | Only tokens that are new. |" in page


def test_every_setting_has_a_sentence_and_a_neutral_value_that_it_takes():
    for name, one in settings().items():
        assert one.name == name
        assert one.help.endswith(".")
        assert one.checked(one.neutral) == one.neutral
