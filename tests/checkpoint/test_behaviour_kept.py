"""What decides how a model is spoken to and when it stops survives every conversion; transformers is the judge."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import glassformer as gf
from glassformer.cli.export import export
from glassformer.errors import TokenizerError
from glassformer.tokenizer.tokenizer import Tokenizer

BOS, EOS, PLACE = "<bos>", "<eos>", 80  # the last: the place in the text after which the favoured token comes


def folder(
    directory: Path,
    specials: Sequence[str] = (BOS, EOS),
    added: Sequence[Any] = (),
    *,
    bos: bool = False,
    favour: str | None = None,
    generation: Mapping[str, Any] | None = None,
    more: Mapping[str, str] | None = None,
    **config: Any,
) -> Path:
    """A tiny random Llama with a byte-level tokenizer, as transformers and the tokenizers library save them."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({c: i for i, c in enumerate([*specials, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(specials))
    backend.add_tokens(list(added))
    if bos:
        backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "max_position_embeddings": 64}
    settings |= {"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=backend.get_vocab_size(), **settings)).eval()
    if favour is not None:
        with torch.no_grad():
            last = model.model(torch.tensor([[0, PLACE]])).last_hidden_state[0, -1]
            model.lm_head.weight.zero_()
            model.lm_head.weight[backend.token_to_id(favour)] = last
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink()
    backend.save(str(directory / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": specials[0], "eos_token": specials[1], **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    for name, text in (more or {}).items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return directory


def theirs(directory: Path) -> list[int]:
    """What transformers answers greedily, up to five tokens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    found = model.generate(torch.tensor([[0, PLACE]]), max_new_tokens=5, do_sample=False, pad_token_id=0)
    return list(found[0, 2:].tolist())


def ours(path: Path) -> list[int]:
    model = gf.load(path, device="cpu", dtype="float32")
    return [piece.id for piece in model.generate([0, PLACE], max_tokens=5, temperature=0)]


def both(source: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """The source exported to a folder, to a GGUF, and from there to a folder again."""
    there, file, back = tmp_path / "there", tmp_path / "file.gguf", tmp_path / "back"
    export(str(source), "hf", str(there))
    export(str(source), "gguf", str(file), "f32")
    export(str(file), "hf", str(back))
    return there, file, back


# Which ids end an answer


def test_an_ordinary_token_spelled_like_an_end_does_not_end_an_answer(tmp_path: Path) -> None:
    from tokenizers import AddedToken

    strike = AddedToken("</s>", special=False, normalized=False)
    source = folder(tmp_path / "source", added=[strike], favour="</s>", generation={"eos_token_id": [1]})
    assert Tokenizer.from_directory(source).stop_ids == {1}
    assert theirs(source) == ours(source) == [258, 0, 0, 0, 0]
    there, file, back = both(source, tmp_path)
    assert ours(there) == ours(file) == ours(back) == theirs(there) == theirs(back) == [258, 0, 0, 0, 0]


def test_names_are_guessed_only_where_nothing_is_said_and_only_among_special_tokens(tmp_path: Path) -> None:
    from tokenizers import AddedToken

    added = [AddedToken("</s>", special=False), AddedToken("<|im_end|>", special=True)]
    silent = folder(tmp_path / "silent", added=added, eos_token=None)
    for file in ("config.json", "tokenizer_config.json"):
        settings = json.loads((silent / file).read_text())
        (silent / file).write_text(json.dumps({k: v for k, v in settings.items() if not k.startswith("eos")}))
    tokenizer = Tokenizer.from_directory(silent)
    assert [tokenizer.token_text(id) for id in sorted(tokenizer.stop_ids)] == ["<eos>", "<|im_end|>"]
    said = folder(tmp_path / "said", added=added)
    assert Tokenizer.from_directory(said).stop_ids == {1}


@pytest.mark.parametrize("say", ["generation_config.json", "config.json"])
def test_every_end_id_survives_in_both_layouts(tmp_path: Path, say: str) -> None:
    from gguf import GGUFReader
    from transformers import AutoConfig, GenerationConfig

    ends = [1, 2]
    said = {"eos_token_id": ends, "bos_token_id": 0, "pad_token_id": 0} if say.startswith("generation") else None
    source = folder(tmp_path / "source", (BOS, EOS, "<turn_over>"), favour="<turn_over>", generation=said)
    if said is None:
        settings = json.loads((source / say).read_text())
        (source / say).write_text(json.dumps({**settings, "eos_token_id": ends}))
    there, file, back = both(source, tmp_path)
    assert theirs(source) == theirs(there) == theirs(back) == [2]
    assert ours(source) == ours(there) == ours(file) == ours(back) == [2]
    for path in (there, back):
        assert GenerationConfig.from_pretrained(path).eos_token_id == ends
        assert AutoConfig.from_pretrained(path).eos_token_id == ends
    fields = GGUFReader(file).fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 1
    assert fields["tokenizer.ggml.eot_token_id"].contents() == 2, "where llama.cpp looks for the end of a turn"
    assert fields["tokenizer.ggml.eos_token_ids"].contents() == ends


def test_more_ends_than_gguf_has_room_for_are_refused_by_name(tmp_path: Path) -> None:
    many = (BOS, EOS, "<a>", "<b>", "<c>", "<|im_end|>")
    source = folder(tmp_path / "source", many, generation={"eos_token_id": [1, 2, 3, 4, 5]})
    with pytest.raises(TokenizerError, match=r"besides '<eos>' this model names '<a>' \(2\), '<b>' \(3\), '<c>' \(4\)"):
        export(str(source), "gguf", str(tmp_path / "file.gguf"))
    few = folder(tmp_path / "few", many, generation={"eos_token_id": [1, 2, 3, 5]})
    export(str(few), "gguf", str(tmp_path / "few.gguf"))
    assert gf.load(tmp_path / "few.gguf").tokenizer.stop_ids == {1, 2, 3, 5}


# Defaults of drawing

ASKED = {"do_sample": True, "temperature": 0.625, "top_k": 20, "top_p": 0.75, "repetition_penalty": 1.125}


def test_sampling_defaults_survive_in_both_layouts(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from transformers import GenerationConfig

    kept = {**ASKED, "max_new_tokens": 77, "num_beams": 3, "stop_strings": ["<over>"]}
    source = folder(tmp_path / "source", generation={**kept, "eos_token_id": 1})
    there, file, back = both(source, tmp_path)
    found = GenerationConfig.from_pretrained(there)
    assert {name: getattr(found, name) for name in kept} == kept
    found = GenerationConfig.from_pretrained(back)
    assert {name: getattr(found, name) for name in ASKED} == ASKED, "a GGUF file holds those of the sampler"
    for path in (source, there, file, back):
        generation = gf.load(path).generation
        assert generation.sampling == {name: value for name, value in ASKED.items() if name != "do_sample"}
        if path in (source, there):
            assert generation.max_tokens == 77
            assert generation.stop == ("<over>",)
            assert generation.unused == ("num_beams",)
    fields = GGUFReader(file).fields
    names = {"temp": 0.625, "top_k": 20, "top_p": 0.75, "penalty_repeat": 1.125}
    assert {name: fields[f"general.sampling.{name}"].contents() for name in names} == names


def test_greedy_survives_in_both_layouts(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from transformers import GenerationConfig

    source = folder(tmp_path / "source", generation={"do_sample": False, "eos_token_id": 1})
    there, file, back = both(source, tmp_path)
    assert GGUFReader(file).fields["general.sampling.temp"].contents() == 0
    for path in (there, back):
        assert GenerationConfig.from_pretrained(path).do_sample is False
    for path in (there, file, back):
        assert gf.load(path).generation.sampling == {"temperature": 0.0}


@pytest.mark.parametrize(
    ("said", "sampling"),
    [
        ({}, {}),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
        ({"temperature": 0.6}, {"temperature": 0.6}),
        ({"top_k": -1, "top_p": 0}, {"top_k": 0, "top_p": 1.0}),
        ({"temperature": None, "min_p": 0.05}, {"min_p": 0.05}),
    ],
)
def test_what_a_file_says_is_what_is_drawn_with(
    tmp_path: Path, said: dict[str, Any], sampling: dict[str, float]
) -> None:
    assert Tokenizer.from_directory(folder(tmp_path / "m", generation=said)).generation.sampling == sampling


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"temperature": "hot"}, "sets temperature to 'hot'; it must be at least 0"),
        ({"temperature": -1}, "sets temperature to -1; it must be at least 0"),
        ({"top_p": 1.5}, r"sets top_p to 1\.5; it must be between 0 and 1"),
        ({"top_k": 2.5}, r"sets top_k to 2\.5; it must be a whole number"),
        ({"max_new_tokens": True}, "sets max_new_tokens to True; it must be a whole number of at least 1"),
        ({"stop_strings": ["a", 3]}, r"sets stop_strings to \['a', 3\]; it must be a text or a list of them"),
    ],
)
def test_a_default_that_cannot_be_meant_is_refused(tmp_path: Path, said: dict[str, Any], words: str) -> None:
    source = folder(tmp_path / "m", generation=said)
    with pytest.raises(TokenizerError, match=rf"generation_config\.json {words}"):
        Tokenizer.from_directory(source)


def test_length_and_stops_of_the_file_hold_where_the_user_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What transformers answers with the same generation_config.json is the reference."""
    from transformers import AutoModelForCausalLM

    from tests.cli.running import run
    from tests.serve.running import running

    said = {"max_new_tokens": 4, "do_sample": False}
    source = folder(tmp_path / "source", generation=said)
    tokenizer = Tokenizer.from_directory(source)
    ids = tokenizer.encode("the")
    judge = AutoModelForCausalLM.from_pretrained(source).eval()
    want = judge.generate(torch.tensor([ids]), pad_token_id=0)[0, len(ids) :].tolist()
    assert len(want) == 4

    def answered(where: Path, *more: str) -> dict[str, Any]:
        code, out, _ = run(capsys, "complete", "the", "-m", where, "--json", *more)
        assert code == 0
        found: dict[str, Any] = json.loads(out)
        return found

    found = answered(source)
    assert ([piece["id"] for piece in found["pieces"]], found["finish"]) == (want, "length")
    assert len(answered(source, "--max-tokens", "9")["pieces"]) == 9
    stop = found["answer"][2]
    stops = folder(tmp_path / "stops", generation={**said, "stop_strings": [stop]})
    cut = found["answer"][: found["answer"].index(stop)]
    assert (answered(stops)["answer"], answered(stops)["finish"]) == (cut, "stop")
    assert answered(stops, "--stop", "no such text")["answer"] == found["answer"]
    with running(gf.load(stops)) as server, server.client() as client:
        asked: dict[str, Any] = {"model": "tiny", "prompt": "the"}
        assert client.completions.create(**asked).choices[0].text == cut
        whole = client.completions.create(**asked, stop="no such text", max_tokens=-1).choices[0]
        assert whole.finish_reason == "length"
        assert whole.text.startswith(found["answer"])


def test_every_verb_and_route_draws_as_the_file_says_where_the_user_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that asks for no sampling: everywhere transformers' own greedy answer."""
    import httpx
    from transformers import AutoModelForCausalLM

    from tests.cli.running import run
    from tests.serve.running import running

    more = {"chat_template.jinja": "{{ messages[-1].content }}"}
    source = folder(tmp_path / "m", generation={"do_sample": False, "max_new_tokens": 4}, more=more)
    tokenizer = Tokenizer.from_directory(source)
    ids = tokenizer.encode("the")
    judge = AutoModelForCausalLM.from_pretrained(source).eval()
    want = tokenizer.decode(judge.generate(torch.tensor([ids]), pad_token_id=0)[0, len(ids) :].tolist())
    found = {"complete": json.loads(run(capsys, "complete", "the", "-m", source, "--json")[1])["answer"]}
    monkeypatch.setattr(sys, "stdin", io.StringIO("the\n"))
    found["chat"] = run(capsys, "chat", "-m", source)[1].removesuffix("\n")
    said = {"messages": [{"role": "user", "content": "the"}]}
    asks: dict[str, tuple[dict[str, Any], Callable[[Any], str]]] = {
        "/v1/completions": ({"prompt": "the"}, lambda a: a["choices"][0]["text"]),
        "/v1/chat/completions": (said, lambda a: a["choices"][0]["message"]["content"]),
        "/v1/responses": ({"input": "the"}, lambda a: a["output"][0]["content"][0]["text"]),
        "/v1/messages": ({**said, "max_tokens": 4}, lambda a: a["content"][0]["text"]),
        "/api/generate": ({"prompt": "the", "stream": False}, lambda a: a["response"]),
        "/api/chat": ({**said, "stream": False}, lambda a: a["message"]["content"]),
    }
    with running(gf.load(source)) as server:
        for path, (ask, text) in asks.items():
            told = httpx.post(f"{server.url}{path}", json={"model": "tiny", **ask}, timeout=60)
            assert told.status_code == 200, told.text
            found[path] = text(told.json())
    assert found == dict.fromkeys(found, want)


def test_a_fine_tuned_run_stops_and_draws_as_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from glassformer.train import train
    from glassformer.train.recipe import Recipe

    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "cache"))
    said = {**ASKED, "eos_token_id": [1, 2]}
    templates = {"additional_chat_templates/brief.jinja": "{{ messages[0].content }}"}
    source = folder(tmp_path / "source", (BOS, EOS, "<turn_over>"), generation=said, bos=True, more=templates)
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 200)
    settings = {"start": str(source), "data": (str(text),), "steps": 1, "context": 16, "batch": 2, "threads": 1}
    recipe = Recipe(name="tiny").with_settings({**settings, "precision": "fp32", "eval_every": 0, "save_every": 0})
    run = train(recipe, out=tmp_path / "run", quiet=True).path
    export(str(run), "hf", str(tmp_path / "tuned"))
    before = gf.load(source).tokenizer
    for path in (run, tmp_path / "tuned"):
        after = gf.load(path).tokenizer
        assert after.stop_ids == before.stop_ids == {1, 2}
        assert after.generation.sampling == before.generation.sampling != {}
        assert after.chat_templates == before.chat_templates != {}
        assert after.encode("ab") == before.encode("ab")


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
