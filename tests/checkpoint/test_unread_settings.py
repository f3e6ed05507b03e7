"""Every key of a config.json is read, known to be without effect, noted where it says nothing, or refused by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import glassformer as gf
from glassformer.checkpoint import open_checkpoint, read_config
from glassformer.checkpoint.families import FAMILIES
from glassformer.checkpoint.unread import UnreadSettingWarning, ignore_everywhere
from glassformer.errors import UnsupportedError, UsageError
from tests.cli import running
from tests.tiny import EVERY, VARIANTS, gap, reference_logits, tiny_directory, tiny_hf, tiny_tokens


@pytest.fixture(autouse=True)
def _nothing_ignored() -> Iterator[None]:
    yield
    ignore_everywhere(())


def edit(folder: Path, **settings: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


TRIED = [family for family in FAMILIES if family in VARIANTS]


@pytest.mark.parametrize("family", TRIED)
def test_an_unknown_key_with_a_telling_value_is_refused_by_name(tmp_path: Path, family: str) -> None:
    tiny_hf(family).save_pretrained(tmp_path)
    before = read_config(tmp_path)
    edit(tmp_path, residual_multiplier=0.22)
    words = r"sets residual_multiplier to 0\.22, .* may change .*: --ignore-key residual_multiplier$"
    for read in (read_config, open_checkpoint):
        with pytest.raises(UnsupportedError, match=words):
            read(tmp_path)
    with pytest.warns(
        UnreadSettingWarning, match="as if it did not set residual_multiplier; what the model answers may"
    ):
        opened = open_checkpoint(tmp_path, ignore=["residual_multiplier"])
    assert opened.config == before
    assert opened.ignored == ("residual_multiplier",)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_refuses_a_key_that_it_does_not_read(family: str) -> None:
    """On transformers' own default settings of each, all of which are known."""
    from transformers import AutoConfig

    # Two default designs cannot be built: odd rotated dimensions, no number of experts.
    said = {"glm4_moe": {"head_dim": 128}, "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2}}
    own = AutoConfig.for_model(family).to_dict() | said.get(family, {})
    settings = json.loads(json.dumps(own, default=str))
    FAMILIES[family].from_hf(settings, "config.json")
    with pytest.raises(
        UnsupportedError, match=r"sets an_unknown_multiplier to 0\.22, .*--ignore-key an_unknown_multiplier"
    ):
        FAMILIES[family].from_hf({**settings, "an_unknown_multiplier": 0.22}, "config.json")


@pytest.mark.parametrize(("family", "variant"), EVERY)
def test_everything_that_transformers_writes_is_known(family: str, variant: str) -> None:
    """All of a config's settings, defaults among them, and no note of any."""
    settings = tiny_hf(family, **VARIANTS[family][variant]).config.to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FAMILIES[family].from_hf(json.loads(json.dumps(settings)), "config.json")


@pytest.mark.parametrize("nothing", [None, False, "", [], {}])
def test_an_unknown_key_that_says_nothing_is_noted_once(tmp_path: Path, nothing: Any) -> None:
    tiny_hf("llama").save_pretrained(tmp_path)
    edit(tmp_path, use_something=nothing, and_another=nothing)
    with pytest.warns(
        UnreadSettingWarning, match=r"that say nothing \(use_something, and_another\); they are"
    ) as found:
        read_config(tmp_path)
    assert len(found) == 1


@pytest.mark.parametrize("value", [0, 0.0, True, "none", [0], {"a": None}])
def test_a_value_that_may_say_something_is_refused(tmp_path: Path, value: Any) -> None:
    tiny_hf("llama").save_pretrained(tmp_path)
    edit(tmp_path, use_something=value)
    with pytest.raises(UnsupportedError, match="sets use_something to"):
        read_config(tmp_path)


def test_what_exporters_leave_is_let_be(tmp_path: Path) -> None:
    tiny_hf("llama").save_pretrained(tmp_path)
    marks = {"transformers.js_config": {"dtype": "q4"}, "unsloth_version": "2025.1", "is_llama_config": True}
    edit(tmp_path, **marks, _name_or_path="/x", attention_dropout=0.1, max_sequence_length=2048)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_config(tmp_path)


def test_keys_inside_are_looked_at_too(tmp_path: Path) -> None:
    tiny_hf("llama").save_pretrained(tmp_path)
    edit(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 500.0, "mystery": 3})
    with pytest.raises(UnsupportedError, match=r"sets mystery to 3, .*: --ignore-key rope_parameters\.mystery"):
        read_config(tmp_path)
    with pytest.warns(UnreadSettingWarning):
        opened = open_checkpoint(tmp_path, ignore=["rope_parameters.mystery"])
    assert opened.config.attention(0).rotary.theta == 500.0


def test_a_setting_refused_for_its_value_is_opened_by_the_same_option(tmp_path: Path) -> None:
    tiny_hf("gpt2").save_pretrained(tmp_path)
    edit(tmp_path, add_cross_attention=True)
    with pytest.raises(UnsupportedError, match="--ignore-key add_cross_attention"):
        read_config(tmp_path)
    with pytest.warns(UnreadSettingWarning):
        open_checkpoint(tmp_path, ignore=["add_cross_attention"])


def test_a_model_so_opened_says_so_wherever_its_numbers_are_shown(tmp_path: Path, capsys: Any) -> None:
    base = edit(tiny_directory(tmp_path / "base"), residual_multiplier=0.22)
    code, out, err = running.run(capsys, "next", "The mole", "--model", base, "--json")
    assert (code, out) == (1, "")
    assert err.endswith("To open it as if that were not there: --ignore-key residual_multiplier\n")
    code, out, err = running.run(
        capsys, "next", "The mole", "--model", base, "--ignore-key", "residual_multiplier", "--json"
    )
    assert code == 0
    assert json.loads(out)["model"] == "base without residual_multiplier"
    assert "glassformer: note:" in err
    assert "as if it did not set residual_multiplier; what the model answers may be wrong" in err
    assert running.run(capsys, "next", "The mole", "--model", base, "--ignore-key", "other")[0] == 1
    ignore_everywhere(())
    with pytest.warns(UnreadSettingWarning):
        model = gf.load(base, device="cpu", ignore_keys=["residual_multiplier"])
    assert (model.name, model.ignored) == ("base without residual_multiplier", ("residual_multiplier",))
    with pytest.raises(
        UsageError, match=r"has no key residual_multiplyer to ignore\. Did you mean residual_multiplier"
    ):
        gf.load(base, device="cpu", ignore_keys=["residual_multiplyer"])


@pytest.mark.parametrize(
    "settings", [{"rope_theta": 500.0}, {"rotary_emb_base": 500}, {"rope_theta": 5.0, "rotary_emb_base": 50}]
)
def test_neox_turns_by_what_transformers_turns_by(tmp_path: Path, settings: dict[str, float]) -> None:
    from transformers import AutoModelForCausalLM

    tiny_hf("gpt_neox").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "rotary_pct": 0.5, **settings}))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    from glassformer.model import Transformer

    opened = open_checkpoint(tmp_path)
    transformer = Transformer.empty(opened.config).load(opened.tensors)
    with torch.inference_mode():
        assert gap(transformer(tiny_tokens()), reference_logits(reference, tiny_tokens())) < 1e-5


@pytest.mark.parametrize("name", ["xlm", "gpt_neoxx", "qwen9"])
def test_an_unknown_type_is_compared_with_no_other(tmp_path: Path, name: str) -> None:
    edit(Path(tiny_directory(tmp_path)), model_type=name)
    with pytest.raises(UnsupportedError) as raised:
        read_config(tmp_path)
    assert "Did you mean" not in str(raised.value)
