"""A person's terminal: words are not broken, keys wait, and a new line has a key."""

from __future__ import annotations

import os
import sys
import time

import pytest

from glassformer.cli import terminal
from glassformer.cli.common import note
from glassformer.cli.terminal import ReadingProgress, Wrapper, hanging, quiet_keys


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_text_breaks_between_words_however_it_comes(size):
    text = "The mole is small and lives below.\n\n  It digs, and digs; 日本語 too. " + "x" * 25 + " end\n"
    wrapper, out = Wrapper(12), ""
    for at in range(0, len(text), size):
        out += wrapper.push(text[at : at + size])
    out += wrapper.finish()
    assert out == (
        "The mole is\nsmall and\nlives below.\n\n  It digs,\nand digs;\n日本語 too.\n"
        "xxxxxxxxxxxx\nxxxxxxxxxxxx\nx end\n"
    )
    assert out.split() == text.replace("x" * 25, "x" * 12 + " " + "x" * 12 + " x").split()


def test_a_long_line_hangs_below_its_beginning():
    assert hanging("abc   one two", 80, 6) == "abc   one two"
    assert hanging("abc   " + "word " * 12, 30, 6).split("\n") == [
        "abc   word word word word word",
        "      word word word word word",
        "      word word",
    ]


def test_progress_shows_for_long_texts_and_goes(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    told = ReadingProgress()
    told(256, 500)
    assert capsys.readouterr().err == ""
    told(256, 5459)
    told(5459, 5459)
    assert capsys.readouterr().err == "\rreading 5,459 tokens: 5% \r\x1b[K"
    told.close()
    told(512, 5459)  # of a reading that was stopped
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no terminals of this kind here")
def test_keys_typed_during_an_answer_are_not_echoed_and_wait(monkeypatch):
    import termios

    outer, inner = os.openpty()
    with os.fdopen(inner, "r+b", buffering=0) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        before = termios.tcgetattr(stream)
        with quiet_keys():
            os.write(outer, b"typed early\n")
            time.sleep(0.05)
            os.set_blocking(outer, False)
            with pytest.raises(BlockingIOError):
                os.read(outer, 100)
        assert termios.tcgetattr(stream)[3] == before[3]
        assert stream.readline() == b"typed early\n"
    os.close(outer)


def test_quiet_keys_do_nothing_without_a_terminal(monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("x"))
    with quiet_keys():
        pass


def test_alt_enter_begins_a_line_and_enter_sends():
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit import PromptSession
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with create_pipe_input() as keys:
        keys.send_text("one\x1b\rtwo\r")
        session: PromptSession[str] = PromptSession(input=keys, output=DummyOutput(), key_bindings=terminal._keys())
        assert session.prompt("> ") == "one\ntwo"


@pytest.mark.parametrize("person", [True, False])
def test_notes_break_between_words_at_a_terminal_alone(monkeypatch, capsys, person):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: person)
    monkeypatch.setenv("COLUMNS", "24")
    path = "/" + "x" * 30  # stays whole, to be copied
    note(f"there.json cannot be read: No such file.\n  /help  a list\nWrote {path}.")
    said = capsys.readouterr().err
    if person:
        assert said == f"there.json cannot be\nread: No such file.\n  /help  a list\nWrote\n{path}.\n"
    else:
        assert said == f"there.json cannot be read: No such file.\n  /help  a list\nWrote {path}.\n"
