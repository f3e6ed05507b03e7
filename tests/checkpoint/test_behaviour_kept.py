"""What decides how a model is spoken to and when it stops survives every conversion; transformers is the judge."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import glassformer as gf
from glassformer.cli.export import export
from glassformer.errors import TokenizerError
from glassformer.tokenizer.tokenizer import Tokenizer
from tests.checkpoint.kept import BOS, EOS, both, folder, ours, theirs

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
