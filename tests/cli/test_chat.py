"""`glassformer chat`: a conversation, its commands, and a pipe instead of a person."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import glassformer
from glassformer.cli import answers
from glassformer.cli import chat as chat_module
from glassformer.cli.app import main
from glassformer.cli.chat import COMMANDS, Chat
from glassformer.errors import TextError, UsageError
from glassformer.generate.constraints import Grammars
from glassformer.generate.tokens import GeneratedToken
from glassformer.interp.circuit_edit import RunCircuit
from glassformer.interp.direction import Direction
from glassformer.interp.fingerprint import design, fingerprint
from tests.tiny import CONTEXT, tiny_directory

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }} {% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
OPTIONS = {"max_tokens": 4, "temperature": 1.0, "seed": 1, "logit_bias": {0: -100.0}, "precision": "exact"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tiny_directory(tmp_path_factory.mktemp("chat") / "tiny")
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture(scope="module")
def model(source: Path) -> glassformer.Model:
    return glassformer.load(source)


@pytest.fixture
def chat(model) -> Chat:
    return Chat(model, dict(OPTIONS))


def roles(chat: Chat) -> str:
    return "".join(message["role"][0] for message in chat.messages)


def test_a_conversation_grows_and_follows_the_template(chat, model, capsys):
    chat.take("mole")
    chat.take("Paris")
    assert roles(chat) == "uaua"
    first, second = chat.messages[1]["content"], chat.messages[3]["content"]
    assert first == "".join(p.text for p in model.chat(chat.messages[:1], **OPTIONS))
    assert second == "".join(p.text for p in model.chat(chat.messages[:3], **OPTIONS))
    out, err = capsys.readouterr()
    assert out == f"{first}\n{second}\n"
    assert "tiny, float32, 4 tokens" in err


def test_undo_retry_edit_and_reset(chat):
    chat.take("mole")
    answer = chat.messages[1]["content"]
    chat.take("/retry")
    assert chat.messages[0]["content"] == "mole"
    assert chat.messages[1]["content"] != answer  # another seed
    chat.take("/edit Paris")
    assert [m["content"] for m in chat.messages[:1]] == ["Paris"]
    chat.take("/edit")
    assert (roles(chat), chat.draft) == ("", "Paris")
    chat.take("one")
    chat.take("two")
    chat.take("/undo")
    assert (roles(chat), chat.messages[0]["content"]) == ("ua", "one")
    chat.take("/reset")
    assert roles(chat) == ""
    for nothing in ("/undo", "/retry", "/edit"):
        with pytest.raises(UsageError, match="Nothing was said yet"):
            chat.take(nothing)


def test_the_system_message_stays_first(model):
    chat = Chat(model, dict(OPTIONS), system="Be kind.")
    chat.take("mole")
    chat.take("/system Be brief.")
    assert [m["content"] for m in chat.messages if m["role"] == "system"] == ["Be brief."]
    assert roles(chat) == "sua"
    chat.take("/reset")
    assert roles(chat) == "s"
    chat.take("/system")
    assert roles(chat) == ""


def test_show_and_help_and_unknown_commands(chat, capsys):
    chat.take("/show")
    chat.take("mole")
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 4
    assert all(line.count("%") == 6 for line in out.splitlines())
    chat.take("/help")
    told = capsys.readouterr().err
    assert all(name in told for name in COMMANDS)
    with pytest.raises(UsageError, match="There is no command /unod; /help lists them. Did you mean /undo"):
        chat.take("/unod")
    assert chat.take("/quit") is False


def test_saving(chat, tmp_path):
    chat.take("mole")
    chat.take(f"/save {tmp_path / 'talk.json'}")
    told = json.loads((tmp_path / "talk.json").read_text("utf-8"))
    assert told == {"model": "tiny", "messages": chat.messages}
    with pytest.raises(UsageError, match="needs a file's name"):
        chat.take("/save")


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(chat, monkeypatch, capsys):
    real = answers.Printer.write

    def write(self, token):
        real(self, token)
        if token.index == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(answers.Printer, "write", write)
    chat.take("mole")
    assert roles(chat) == "ua"
    assert "(stopped)" in capsys.readouterr().err
    monkeypatch.undo()
    pieces = list(chat.model.chat(chat.messages[:1], **OPTIONS))
    assert chat.messages[1]["content"] == "".join(piece.text for piece in pieces[:2])


def test_old_turns_are_left_out_when_the_context_is_full(chat, capsys):
    for _ in range(6):
        chat.take("the mole is small")
    assert roles(chat) == "ua" * 6
    assert f"the context of {CONTEXT} tokens is full" in capsys.readouterr().err
    with pytest.raises(TextError, match=f"tokens long and tiny reads at most {CONTEXT}"):
        chat.take("mole " * CONTEXT)
    assert roles(chat) == "ua" * 6  # what could not be answered is not kept


def test_a_pipe(source, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("mole\n\n/retry\n"))
    with pytest.raises(SystemExit) as leave:
        main(["chat", "-m", str(source), "-n", "3", "--precision", "exact", "--logit-bias", "0=-100"])
    assert leave.value.code in (0, None)
    err = capsys.readouterr().err
    assert err.count("tiny, float32, 3 tokens") == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO("/nope\n"))
    with pytest.raises(SystemExit) as leave:
        main(["chat", "-m", str(source)])
    assert leave.value.code == 2  # nobody is there to mend it


def test_a_conversation_is_steered_and_runs_a_circuit(source, model, tmp_path, monkeypatch, capsys):
    width = model.config.d_model
    weights, plan = fingerprint(model.transformer), design(model.config)
    way = Direction("way", 1, torch.linspace(-3, 3, width), "mean", "last", model.name, weights, plan, {})
    way.save(tmp_path / "way")
    alone = RunCircuit(model.transformer, (("embed", "m0"), ("m0", "logits")), tuple(model.encode("One mole of")))
    alone.save(tmp_path / "c.json")
    given = {
        ("--steer", f"{tmp_path / 'way'}=2"): model.edited(glassformer.steer(way, strength=2.0)),
        ("--circuit", str(tmp_path / "c.json")): model.edited(alone),
    }
    options = ("-n", "4", "-t", "0", "--precision", "exact", "--logit-bias", "0=-100")
    for extra, edited in given.items():
        monkeypatch.setattr(sys, "stdin", io.StringIO("mole\n"))
        with pytest.raises(SystemExit) as leave:
            main(["chat", "-m", str(source), *options, *extra])
        assert leave.value.code in (0, None)
        asked = [{"role": "user", "content": "mole"}]
        pieces = edited.chat(asked, max_tokens=4, temperature=0, logit_bias={0: -100.0})
        assert capsys.readouterr().out.strip() == "".join(p.text for p in pieces).strip()


def test_bytes_that_are_no_text_are_refused(source, monkeypatch, capsys):
    for encoding in ("utf-8", "ascii"):
        typed = io.TextIOWrapper(io.BytesIO("é\n".encode() + b"mole\xff\n"), encoding)
        monkeypatch.setattr(sys, "stdin", typed)
        with pytest.raises(SystemExit) as leave:
            main(["chat", "-m", str(source), "-n", "3", "--precision", "exact", "--logit-bias", "0=-100"])
        assert leave.value.code == 1
        err = capsys.readouterr().err
        assert err.count("tiny, float32, 3 tokens") == 1  # the é was understood
        assert "The text is not valid UTF-8 (its character 4 is not a character); give it in UTF-8." in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("-t", "-1"), "temperature must be at least 0; got -1.0."),
        (("--precision", "best"), "Precision 'best' is unknown"),
        (("--stop", ""), "A stop string must have 1 to 500 characters; one has 0."),
        (("--logit-bias", "999999=1"), "logit_bias names token 999999; this vocabulary has 320."),
        (("-n", "-4"), "max_tokens must be at least 1; got -4."),
    ],
)
def test_options_that_cannot_be_meant_are_said_before_anything_is_typed(source, monkeypatch, capsys, args, message):
    monkeypatch.setattr(chat_module, "asker", lambda note: pytest.fail("it asked for words first"))
    with pytest.raises(SystemExit) as leave:
        main(["chat", "-m", str(source), *args])
    assert leave.value.code == 2
    assert message in capsys.readouterr().err


def test_a_person_at_a_terminal(source, monkeypatch, capsys):
    lines = iter(["/nope", KeyboardInterrupt, "mole", "/edit", "changed", EOFError])
    drafts = []

    def ask(prompt: str, draft: str) -> str:
        drafts.append(draft)
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(chat_module, "asker", lambda note: (ask, True))
    with pytest.raises(SystemExit) as leave:
        main(["chat", "-m", str(source), "-n", "2", "--precision", "exact", "--logit-bias", "0=-100"])
    assert leave.value.code in (0, None)
    err = capsys.readouterr().err
    assert "/help lists the commands; Ctrl-D leaves." in err
    assert "There is no command /nope" in err
    assert drafts == ["", "", "", "", "mole", ""]


def test_ctrl_c_stops_a_command_and_not_the_conversation(source, monkeypatch, capsys):
    lines = iter(["mole", "/why", "/system Be brief.", "/system", EOFError])

    def ask(prompt: str, draft: str) -> str:
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    def why(self: Chat, rest: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_module, "asker", lambda note: (ask, True))
    monkeypatch.setattr(Chat, "_why", why)
    with pytest.raises(SystemExit) as leave:
        main(["chat", "-m", str(source), "-n", "2", "--precision", "exact", "--logit-bias", "0=-100"])
    assert leave.value.code in (0, None)
    err = capsys.readouterr().err
    assert (
        err.index("(stopped)") < err.index("(the assistant is told so") < err.index("(the assistant is told nothing)")
    )


def test_a_model_without_a_template_is_refused(tmp_path, capsys):
    plain = tiny_directory(tmp_path / "plain")
    with pytest.raises(SystemExit) as leave:
        main(["chat", "-m", str(plain)])
    assert leave.value.code == 1
    assert "plain has no chat template: it was not trained on conversations." in capsys.readouterr().err


def test_an_image_is_refused_in_a_sentence(chat, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"x")
    (tmp_path / "a cat.png").write_bytes(b"x")
    cat, spaced = tmp_path / "cat.png", tmp_path / "a cat.png"
    for words in (
        f"what is this? '{cat}'",
        str(cat),
        "see https://a.example/b.JPG",
        f"what is this?![a cat]({cat})",
        f'![]({spaced} "A cat") what is it?',
        "![a](data:image/png;base64,AAAA)",
        f"what's this '{spaced}'",
        str(spaced).replace(" ", "\\ "),
        f"look at '{spaced}', please",
    ):
        with pytest.raises(TextError, match="tiny reads text only; .* is an image, so nothing was sent."):
            chat.take(words)
    assert roles(chat) == ""
    chat.take("what is nowhere.png, and ![what](nowhere.png)?")  # words about a file that is not there are words
    assert roles(chat) == "ua"


def test_a_schema_for_the_answers(model, tmp_path):
    chat = Chat(model, {**OPTIONS, "max_tokens": 40})
    file = tmp_path / "schema.json"
    file.write_text('{"enum": ["yes", "no"]}')
    chat.take(f"/schema {file}")
    chat.take("mole")
    assert chat.messages[-1]["content"] in ('"yes"', '"no"')
    file.write_text('{"not": {}}')
    with pytest.raises(UsageError, match="cannot be held to"):
        chat.take(f"/schema {file}")
    chat.take("/schema")
    assert "constraint" not in chat.options


def test_reasons_of_the_last_answer(chat, capsys):
    with pytest.raises(UsageError, match="Nothing was answered yet"):
        chat.take("/why")
    chat.take("mole")
    capsys.readouterr()
    chat.take("/why 2")
    out, err = capsys.readouterr()
    said = chat.model.tokenizer.token_text(chat._last[1][1])
    assert f"(the reasons of {said!r}, token 2 of 4)" in err
    parts, _, words = out.partition("; residual")
    assert "percentile" in parts
    assert "Replaced: 8 drawn" in words
    trace = chat.model.trace([*chat._last[0], *chat._last[1][:1]])
    best = max((w for w in trace.why(chat._last[1][1], alternatives=8).words), key=lambda w: abs(w.knocked_out or 0.0))
    assert f"{best.knocked_out:+.2f}" in words
    with pytest.raises(UsageError, match="/why takes a token of the last answer, 1 to 4; '9' is none."):
        chat.take("/why 9")


def test_reasons_that_are_stopped_have_shown_their_parts(chat, monkeypatch, capsys):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    chat.take("mole")
    capsys.readouterr()
    monkeypatch.setattr("glassformer.interp.why.replaced", stopped)
    with pytest.raises(KeyboardInterrupt):
        chat.take("/why")
    out, err = capsys.readouterr()
    assert "residual" in out
    assert "(the reasons of " in err


def test_another_model_goes_on(source, monkeypatch, capsys):
    lines = iter(["mole", "/model", f"/model {source}", "/model nowhere/at-all", "Paris", EOFError])

    def ask(prompt: str, draft: str) -> str:
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(chat_module, "asker", lambda note: (ask, True))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as leave:
        main(["chat", "-m", str(source), "-n", "2", "--logit-bias", "0=-100"])
    assert leave.value.code in (0, None)
    err = capsys.readouterr().err
    assert "(tiny)" in err
    assert "(tiny goes on with the conversation)" in err
    assert "glassformer: " in err  # what cannot be opened is said, and the conversation goes on
    assert err.count(", 2 tokens,") == 2


TOOLS = """
def add(a: int, b: int = 2) -> int:
    \"\"\"The sum of two numbers.\"\"\"
    return a + b

def fail():
    \"\"\"Always fails.\"\"\"
    raise RuntimeError("no")

def _hidden():
    \"\"\"Not a tool.\"\"\"

def untold():
    return 1
"""


def test_functions_of_a_file_are_tools(source, tmp_path, monkeypatch, capsys):
    from glassformer.cli.chat_tools import Tools

    shutil.copytree(source, tmp_path / "longer")
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "longer" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    model = glassformer.load(tmp_path / "longer")

    file = tmp_path / "tools.py"
    file.write_text(TOOLS)
    tools = Tools(file)
    assert tools.names == ["add", "fail"]
    assert tools._box.tools[0].parameters == {
        "type": "object",
        "additionalProperties": False,
        "properties": {"a": {"title": "A", "type": "integer"}, "b": {"default": 2, "title": "B", "type": "integer"}},
        "required": ["a"],
    }
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 40}}\n</tool_call>'
    answers_ = iter([call, "It is 42."])

    held = []

    def generate(self, ids, **options):
        held.append(options["constraint"].kind)

        def tokens():
            for id in self.tokenizer.encode(next(answers_), bos=False):
                yield GeneratedToken(0, id, "", self.tokenizer.decode([id]), 1.0, 0.0)

        return tokens()

    grammars = Grammars(model.tokenizer, model.config.vocab_size)
    matcher = grammars.matcher(tools.constraint(model.tokenizer))
    wrong = model.tokenizer.encode(call.replace('"a": 40', '"b": "x"'), bos=False)
    assert matcher.possible(model.tokenizer.encode(call, bos=False)) == len(model.tokenizer.encode(call, bos=False))
    assert matcher.possible(wrong) < len(wrong)  # a call that lacks what it needs cannot be written
    monkeypatch.setattr(glassformer.Model, "generate", generate)
    chat = Chat(model, dict(OPTIONS), tools=tools)
    chat.take("what is 40 and 2?")
    assert roles(chat) == "uata"
    assert (chat.messages[2]["content"], chat.messages[3]["content"]) == ("42", "It is 42.")
    assert '(add {"a": 40} gave 42)' in capsys.readouterr().err
    assert held == ["calls", "calls"]
    failed = tools.call({"function": {"name": "fail", "arguments": "{}"}})
    assert json.loads(failed) == {"error": "RuntimeError: no"}
    for text, message in (("def f(:", "cannot be run as Python"), ("x = 1", "has no tool")):
        file.write_text(text)
        with pytest.raises(UsageError, match=message):
            Tools(file)
    with pytest.raises(UsageError, match="There is no file"):
        Tools(tmp_path / "nowhere.py")
