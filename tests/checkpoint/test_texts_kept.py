"""How a text begins, chat templates and the flags of tokens survive every conversion; transformers is the judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import glassformer as gf
from glassformer.cli.export import export
from glassformer.errors import TokenizerError
from glassformer.tokenizer.tokenizer import Tokenizer
from tests.checkpoint.kept import BOS, EOS, both, folder

# The begin of a text


def _reference(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("bos", [True, False])
def test_transformers_begins_a_text_as_the_source_does(tmp_path: Path, bos: bool) -> None:
    source = folder(tmp_path / "source", bos=bos)
    want = _reference(source)("ab")["input_ids"]
    assert (want[0] == 0) == bos
    there, file, back = both(source, tmp_path)
    assert _reference(there)("ab")["input_ids"] == _reference(back)("ab")["input_ids"] == want
    for path in (source, there, file, back):
        assert gf.load(path).encode("ab") == want


@pytest.mark.parametrize("said", [True, False])
def test_a_configuration_of_a_generic_class_does_not_override_the_post_processor(tmp_path: Path, said: bool) -> None:
    source = folder(tmp_path / "source", bos=not said, add_bos_token=said)
    want = _reference(source)("ab")["input_ids"]
    assert Tokenizer.from_directory(source).encode("ab") == want
    assert (want[0] == 0) != said


def test_an_end_of_text_after_whole_texts_survives_too(tmp_path: Path) -> None:
    from tokenizers import processors

    source = folder(tmp_path / "source")
    backend = Tokenizer.from_directory(source).backend
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, 0), (EOS, 1)]
    )
    backend.save(str(source / "tokenizer.json"))
    there, file, back = both(source, tmp_path)
    for path in (source, there, back):
        assert _reference(path)("ab")["input_ids"][:: len("ab") + 1] == [0, 1]
    assert gf.load(file).encode("ab") == gf.load(back).encode("ab") == [0, *gf.load(file).encode("ab", bos=False)]


# Chat templates

NAMES = "{% for m in messages %}[{{ m.role }}{{ pad_token }}{{ unk_token }}{{ sep_token }}]{{ m.content }}{% endfor %}"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("where", ["tokenizer_config.json", "special_tokens_map.json"])
def test_templates_see_every_special_token_that_is_named(tmp_path: Path, where: str) -> None:
    marked = {"__type": "AddedToken"} if where == "tokenizer_config.json" else {}
    named: dict[str, Any] = {"pad_token": "<pad>", "unk_token": {**marked, "content": "<unk>", "special": True}}
    specials = (BOS, EOS, "<pad>", "<unk>")
    more = {"chat_template.jinja": NAMES}
    if where == "tokenizer_config.json":
        source = folder(tmp_path / "source", specials, more=more, **named)
        want = _reference(source).apply_chat_template(MESSAGES, tokenize=False)
    else:  # where transformers up to version 4 wrote them
        source = folder(tmp_path / "source", specials, more=more | {where: json.dumps(named)})
        want = "[user<pad><unk>]hi"
    assert want == "[user<pad><unk>]hi"
    for path in (source, *both(source, tmp_path)):
        assert gf.load(path).tokenizer.render_chat(MESSAGES) == want
        if path.is_dir() and path != source:
            assert _reference(path).apply_chat_template(MESSAGES, tokenize=False) == want


def test_templates_by_name_survive_in_both_layouts(tmp_path: Path) -> None:
    default, tools = "{{ messages[0].content }}!", "{{ tools[0].name }} {{ messages[0].content }}"
    listed = [{"name": "default", "template": default}, {"name": "tool_use", "template": tools}]
    source = folder(tmp_path / "source", chat_template=listed)
    for path in (source, *both(source, tmp_path)):
        tokenizer = gf.load(path).tokenizer
        assert tokenizer.chat_templates == {"default": default, "tool_use": tools}
        assert tokenizer.render_chat(MESSAGES) == "hi!"
        assert tokenizer.render_chat(MESSAGES, tools=[{"name": "look"}]) == "look hi"
        assert tokenizer.render_chat(MESSAGES, template="default", tools=[{"name": "look"}]) == "hi!"
        with pytest.raises(TokenizerError, match=r"no chat template called 'rag'; it has default, tool_use\. Name one"):
            tokenizer.render_chat(MESSAGES, template="rag")
        if path.is_dir():
            reference = _reference(path)
            assert reference.get_chat_template() == default
            assert reference.get_chat_template("tool_use") == tools


def test_a_template_s_name_is_not_a_path(tmp_path: Path) -> None:
    listed = [{"name": "../../mine", "template": "{{ 1 }}"}]
    source = folder(tmp_path / "source", chat_template=listed)
    with pytest.raises(TokenizerError, match=r"'\.\./\.\./mine' cannot be saved: its name is no file name"):
        export(str(source), "hf", str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


# Flags of added tokens


def _flagged(tmp_path: Path, name: str = "source", **flags: bool) -> Path:
    from tokenizers import AddedToken

    return folder(tmp_path / name, added=[AddedToken("<|sep|>", special=True, normalized=False, **flags)])


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_flags_that_gguf_has_no_word_for_are_refused_by_name(tmp_path: Path, flag: str) -> None:
    source = _flagged(tmp_path, **{flag: True})
    text = "a  <|sep|>  b a<|sep|>b"
    there = tmp_path / "there"
    export(str(source), "hf", str(there))
    want = _reference(source).encode(text, add_special_tokens=False)
    assert gf.load(there).encode(text, bos=False) == _reference(there).encode(text, add_special_tokens=False) == want
    with pytest.raises(TokenizerError, match=rf"flags of the added token '<\|sep\|>' \({flag}\): .* Export with --to"):
        export(str(source), "gguf", str(tmp_path / "file.gguf"))
    assert not (tmp_path / "file.gguf").exists()


def test_flags_survive_where_llama_cpp_has_them_by_the_model_s_name(tmp_path: Path) -> None:
    source, file = _flagged(tmp_path, "Phi-3-tiny", rstrip=True), tmp_path / "file.gguf"
    tokenizer = Tokenizer.from_directory(source)
    with pytest.raises(TokenizerError, match=r"'<bos>' \(none\)"):
        export(str(source), "gguf", str(file))  # by that name its other tokens would swallow spaces as well
    backend = json.loads(tokenizer.serialised)
    for token in backend["added_tokens"]:
        token["rstrip"] = True
    (source / "tokenizer.json").write_text(json.dumps(backend))
    export(str(source), "gguf", str(file))
    text = "a<|sep|>  b"
    assert gf.load(file).encode(text, bos=False) == _reference(source).encode(text, add_special_tokens=False)
