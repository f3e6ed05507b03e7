"""Every key of a config.json is read, known to be without effect, noted where it says nothing, or refused by name."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import glassformer as gf
from glassformer.checkpoint import open_checkpoint, read_config
from glassformer.checkpoint.families import FAMILIES
from glassformer.checkpoint.unread import UnreadSettingWarning, ignore_everywhere, without
from glassformer.errors import UnsupportedError, UsageError
from tests.checkpoint.test_alike import SETTINGS
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


# Two default designs cannot be built: odd rotated dimensions, no number of experts.
SAID = {"glm4_moe": {"head_dim": 128}, "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2}}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_refuses_a_key_that_it_does_not_read(family: str) -> None:
    """On transformers' own default settings of each, all of which are known."""
    own = AutoConfig.for_model(family).to_dict() | SAID.get(family, {})
    settings = json.loads(json.dumps(own, default=str))
    FAMILIES[family].from_hf(settings, "config.json")
    with pytest.raises(
        UnsupportedError, match=r"sets an_unknown_multiplier to 0\.22, .*--ignore-key an_unknown_multiplier"
    ):
        FAMILIES[family].from_hf({**settings, "an_unknown_multiplier": 0.22}, "config.json")


def places(settings: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Names of all objects inside settings."""
    for name, value in settings.items():
        if isinstance(value, dict) and name not in ("id2label", "label2id"):
            yield (*path, name)
            yield from places(value, (*path, name))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_refuses_a_key_that_it_does_not_read_in_the_objects_inside(family: str) -> None:
    """In every object of transformers' own default settings, and beside them where they are a text part's."""
    own = AutoConfig.for_model(family).to_dict() | SAID.get(family, {})
    settings = json.loads(json.dumps(own, default=str))
    tried = [settings]
    for kind, name in FAMILIES[family].inside.items():
        whole = AutoConfig.for_model(kind).to_dict() | {name: settings, "dtype": None}
        tried.append(json.loads(json.dumps(whole, default=str)))
        FAMILIES[family].from_hf(tried[-1], "config.json")
        with pytest.raises(UnsupportedError, match=r"sets a_multiplier to 0\.22, .*--ignore-key a_multiplier$"):
            FAMILIES[family].from_hf(tried[-1] | {"a_multiplier": 0.22}, "config.json")
    for whole in tried:
        before = FAMILIES[family].from_hf(whole, "config.json")
        for path in places(whole):
            if path[0] in ("vision_config", "audio_config") or path[-1] == "per_layer_config":
                continue  # of parts that are not read, and of objects by number
            changed = copy.deepcopy(whole)
            inner = changed
            for name in path:
                inner = inner[name]
            inner["a_multiplier"] = 0.22
            with pytest.raises(UnsupportedError, match=r"sets a_multiplier to 0\.22") as refused:
                FAMILIES[family].from_hf(changed, "config.json")
            option = str(refused.value).rpartition("--ignore-key ")[2]
            with pytest.warns(UnreadSettingWarning):
                ignored, _ = without(changed, [option], "config.json")
            assert FAMILIES[family].from_hf(ignored, "config.json") == before


def test_the_option_that_is_printed_names_the_object_as_the_file_does(tmp_path: Path) -> None:
    tiny_hf("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    for scaling in ({"rope_type": "linear", "factor": 2.0, "mystery": 3}, {"rope_type": "mystery"}):
        (tmp_path / "config.json").write_text(json.dumps({**config, "rope_theta": 500.0, "rope_scaling": scaling}))
        with pytest.raises(UnsupportedError, match=r"--ignore-key rope_scaling\.") as refused:
            read_config(tmp_path)
        with pytest.warns(UnreadSettingWarning):
            open_checkpoint(tmp_path, ignore=[str(refused.value).rpartition("--ignore-key ")[2]])


@pytest.mark.parametrize("family", ["gemma4_text", "dots3_note_text"])
def test_layers_of_their_own_sizes_are_read_in_models_of_ten_layers_and_more(tmp_path: Path, family: str) -> None:
    """transformers writes the numbers of layers with zeros before them: "02" of twelve."""
    settings = {**SETTINGS[family], "num_hidden_layers": 12, "num_kv_shared_layers": 0}
    kinds = settings["layer_types"]
    settings["layer_types"] = [kinds[i % len(kinds)] for i in range(11)] + ["full_attention"]
    if family == "dots3_note_text":
        settings["layer_types"][-1] = "indexed_attention"
        del settings["num_kv_shared_layers"]
    theirs = AutoConfig.for_model(family, **settings)
    theirs.save_pretrained(tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())["per_layer_config"]
    assert "01" in held
    config = read_config(tmp_path)
    for layer in range(12):
        own, mixer = theirs.per_layer_config[layer], config.layers[layer].mixer
        if family == "gemma4_text":
            assert (mixer.d_head, mixer.n_kv_heads) == (own.head_dim, own.num_key_value_heads)
        else:
            assert (mixer.n_heads, mixer.kv_rank) == (own.num_attention_heads, own.kv_lora_rank)


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
