"""`glassformer complete` as a person and a program meet it."""

from __future__ import annotations

import json

import pytest

import glassformer
from tests.cli.running import answer, run
from tests.tiny import CONTEXT

TEXT = "The American shrew mole"
NO_END = ("--logit-bias", "0=-100")


def test_the_answer_is_what_generate_says(capsys, model):
    code, out, err = run(capsys, "complete", TEXT, "-m", model, "-n", 12, "--seed", 3, *NO_END)
    pieces = glassformer.load(model).generate(TEXT, max_tokens=12, seed=3, logit_bias={0: -100})
    assert code == 0
    assert out.rstrip("\n") == "".join(p.text for p in pieces).rstrip("\n")
    assert err.startswith("tiny, float32, 12 tokens, first after ")
    assert "tokens/s" in err


def test_every_option_reaches_the_sampler(capsys, model, monkeypatch):
    seen = {}

    def generate(self, text, **options):
        seen.update(options, text=text)
        return iter(())

    monkeypatch.setattr(glassformer.Model, "generate", lambda *a, **k: _Closing(generate(*a, **k)))
    given = "-n 7 -t 0.5 --top-k 4 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.2 --presence-penalty 0.3"
    more = "--frequency-penalty 0.4 --logit-bias 5=1.5 --logit-bias 6=-2 --seed 9 --typical-p 0.8 --min-tokens 3"
    more += " --ignore-eos --stop-token-id 11 --stop-token-id 12 --stop END --stop DONE --show --cache-bits 8"
    code, _, _ = run(capsys, "complete", TEXT, "-m", model, *given.split(), *more.split(), "--precision", "int8")
    assert code == 0
    assert seen == {
        "text": TEXT, "max_tokens": 7, "temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1,
        "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.4, "logit_bias": {5: 1.5, 6: -2.0},
        "seed": 9, "stop": ["END", "DONE"], "alternatives": 6, "precision": "int8", "bos": None, "drafter": None,
        "constraint": None, "progress": seen["progress"], "cache_bits": 8,
        "typical_p": 0.8, "min_tokens": 3, "ignore_eos": True, "stop_token_ids": [11, 12],
    }  # fmt: skip


class _Closing:
    def __init__(self, inner):
        self.inner = inner

    def __iter__(self):
        return self.inner

    def close(self):
        pass


def test_json_is_the_public_format(capsys, model):
    code, out, _ = run(capsys, "complete", TEXT, "-m", model, "-n", 5, "-t", 0, "--json", *NO_END)
    told = json.loads(out)
    assert code == 0
    assert list(told) == ["model", "precision", "text", "ids", "answer", "finish", "pieces"]
    assert (told["precision"], told["finish"], len(told["pieces"])) == ("float32", "length", 5)
    assert told["answer"] == "".join(piece["text"] for piece in told["pieces"])
    assert [len(piece["alternatives"]) for piece in told["pieces"]] == [6] * 5


def test_show_tells_each_token_and_what_was_rejected(capsys, model):
    code, out, _ = run(capsys, "complete", TEXT, "-m", model, "-n", 4, "-t", 0, "--show", *NO_END)
    pieces = list(
        glassformer.load(model).generate(TEXT, max_tokens=4, temperature=0, logit_bias={0: -100}, alternatives=6)
    )
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 4
    for line, piece in zip(lines, pieces, strict=True):
        assert f"{piece.probability:.2%}" in line
        assert line.count("%") == 1 + 5


def test_standard_input_and_guesses(capsys, model, monkeypatch):
    import io
    import sys

    plain = run(capsys, "complete", TEXT, "-m", model, "-n", 9, "-t", 0, *NO_END)[1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode() + b"\n")))
    assert run(capsys, "complete", "-", "-m", model, "-n", 9, "-t", 0, *NO_END)[1] == plain
    assert run(capsys, "complete", TEXT, "-m", model, "-n", 9, "-t", 0, "--lookup", *NO_END)[1] == plain
    assert run(capsys, "complete", TEXT, "-m", model, "-n", 9, "-t", 0, "--draft", model, *NO_END)[1] == plain


def test_ctrl_c_ends_the_answer_and_says_so(capsys, model, monkeypatch):
    from glassformer.cli import answers

    real, count = answers.Printer.write, []

    def write(self, token):
        real(self, token)
        count.append(token)
        if len(count) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(answers.Printer, "write", write)
    code, out, err = run(capsys, "complete", TEXT, "-m", model, "-n", 40, "--json", *NO_END)
    told = json.loads(out)
    assert (code, told["finish"], len(told["pieces"])) == (130, "cancelled", 3)
    assert "3 tokens" in err


def test_without_a_compiler_it_says_once_what_is_slower_and_states_what_computed(capsys, model, monkeypatch):
    from glassformer.kernels import infer_abi

    plain = run(capsys, "complete", TEXT, "-m", model, "-n", 5, "-t", 0, *NO_END)[1]
    monkeypatch.setattr(infer_abi.LIBRARY, "_loaded", {})
    monkeypatch.setattr(infer_abi.LIBRARY, "_failed", {})
    monkeypatch.setenv("CXX", "/nowhere/c++")
    for precision in ("exact", "fast"):
        code, out, err = run(capsys, "complete", TEXT, "-m", model, "-n", 5, "-t", 0, "--precision", precision, *NO_END)
        assert (code, out) == (0, plain)
        [said, summary] = err.splitlines()
        assert said.startswith("glassformer: note: The fast engine is not available because CXX names '/nowhere/c++'")
        assert "text is generated through torch in float32 instead, several times slower" in said
        assert summary.startswith("tiny, float32, 5 tokens")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("-t", -1), 2, "temperature must be at least 0; got -1.0."),
        (("--logit-bias", "x"), 2, "--logit-bias is a token's id and a number, such as 42=-100; 'x' is not."),
        (("--logit-bias", "999999=1"), 2, "logit_bias names token 999999; this vocabulary has 320."),
        (("--precision", "best"), 2, "Precision 'best' is unknown; choose exact, fast"),
        (("--lookup", "--draft", "smollm2"), 2, "--lookup and --draft both guess ahead; give one of them."),
    ],
)
def test_options_that_cannot_be_meant(capsys, model, args, code, message):
    got, out, err = run(capsys, "complete", TEXT, "-m", model, *args)
    assert (got, out) == (code, "")
    assert message in err


def test_a_text_that_is_too_long_says_both_numbers(capsys, model):
    code, _, err = run(capsys, "complete", "mole " * CONTEXT, "-m", model)
    assert code == 1
    assert f"tokens long and tiny reads at most {CONTEXT}; shorten it." in err
    assert run(capsys, "complete", "", "-m", model)[0] == 1


def test_a_form_of_the_answer_and_what_it_took(capsys, model, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}')
    schema.write_text(schema.read_text().replace('"required"', '"additionalProperties": false, "required"'))
    code, out, _ = run(capsys, "complete", TEXT, "-m", model, "-n", 40, "--seed", 1, "--schema", schema)
    assert code == 0
    assert json.loads(out)["a"] in (True, False)
    grammar = tmp_path / "form.gbnf"
    grammar.write_text('root ::= "red" | "green"\n')
    assert run(capsys, "complete", TEXT, "-m", model, "--grammar", grammar)[1] in ("red\n", "green\n")
    assert run(capsys, "complete", TEXT, "-m", model, "--choice", "yes,no", "--lookup")[1] in ("yes\n", "no\n")
    code, out, _ = run(capsys, "complete", TEXT, "-m", model, "--regex", "[0-9]{3}", "--show")
    assert code == 0
    assert all("[the form took " in line for line in out.splitlines())
    told = json.loads(run(capsys, "complete", TEXT, "-m", model, "--regex", "[0-9]{3}", "--json")[1])
    assert told["answer"].isdecimal()
    assert all(0 <= piece["removed"] <= 1 for piece in told["pieces"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--regex", "a", "--choice", "b"), "An answer has one form; give one of --regex and --choice."),
        (("--schema", "nowhere.json"), "nowhere.json cannot be read: No such file or directory."),
        (("--regex", "[a"), "An answer cannot be held to this regular expression: "),
        (("--choice", "a,,b"), "A choice is between at least one text, and none of them is empty."),
    ],
)
def test_a_form_that_cannot_be_is_said_at_once(capsys, model, args, message):
    code, out, err = run(capsys, "complete", TEXT, "-m", model, *args)
    assert (code, out) == (2, "")
    assert message in err


def test_a_direction_is_found_saved_and_steered_by(capsys, model, tmp_path):
    (tmp_path / "with.txt").write_text("The mole\n\nOne mole of\na small mole\n", "utf-8")
    (tmp_path / "without.txt").write_text("The American\na biopsy\nis small\nshrew\n", "utf-8")
    files = ("--positive", tmp_path / "with.txt", "--negative", tmp_path / "without.txt", "--layer", -2)
    found = answer(capsys, "direction", "mole", *files, "-m", model, "-o", tmp_path / "mole=", "--strength", 2)
    opened = glassformer.load(model)
    mine = opened.direction("mole", ["The mole", "One mole of", "a small mole"],
                            ["The American", "a biopsy", "is small", "shrew"], -2)  # fmt: skip
    steered = opened.edited(glassformer.steer(mine, strength=2.0))
    assert {k: found[k] for k in mine.to_dict()} == mine.to_dict()
    assert found["moved"] == json.loads(json.dumps(steered.moved().to_dict()))
    options = ("-m", model, "-n", 9, "--temperature", 0, *NO_END)
    for given, strength in ((f"{tmp_path / 'mole='}=2", 2.0), (f"{tmp_path / 'mole='}.json", 1.0)):
        code, out, _ = run(capsys, "complete", TEXT, *options, "--steer", given)
        expected = opened.edited(glassformer.steer(mine, strength=strength))
        pieces = expected.generate(TEXT, max_tokens=9, temperature=0, logit_bias={0: -100})
        assert code == 0
        assert out.rstrip("\n") == "".join(p.text for p in pieces).rstrip("\n")
    code, out, err = run(capsys, "direction", "mole", *files, "-m", model, "--method", "probe", "--shuffles", 2)
    assert code == 0, err
    assert "Held-out accuracy" in out
    assert "with shuffled labels" in out
    code, _, err = run(capsys, "direction", "mole", *files, "-m", model, "--method", "das")
    assert code == 2
    assert "takes texts in pairs; there are 3 positive and 4 negative" in err
    code, _, err = run(capsys, "complete", TEXT, *options, "--steer", tmp_path / "no")
    assert code == 1
    assert "is no readable direction" in err
    (tmp_path / "with.txt").write_text("\n", "utf-8")
    code, _, err = run(capsys, "direction", "mole", *files, "-m", model)
    assert code == 2
    assert "holds no text" in err
