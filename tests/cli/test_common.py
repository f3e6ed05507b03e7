"""Reading text and writing JSON."""

from __future__ import annotations

import io
import json
import sys

import pytest

from glassformer.cli import common
from glassformer.errors import TextError, UsageError


def typed(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"The capital of France is\n", "The capital of France is"),
        (b"two\r\nlines\r\n", "two\r\nlines"),
        (b"kept \n\n", "kept \n"),
        (b"no end ", "no end "),
        ("\ufeffmarked é 🦫".encode(), "marked é 🦫"),
        (b"", ""),
    ],
)
def test_standard_input_less_one_line_break(monkeypatch, data, text):
    typed(monkeypatch, data)
    assert common.read_text("-") == text


def test_input_that_is_not_utf8_is_one_sentence(monkeypatch):
    typed(monkeypatch, b"caf\xe9")
    with pytest.raises(TextError, match=r"^Standard input is not UTF-8 text \(its byte 3 cannot be decoded\)"):
        common.read_text("-")


def test_an_argument_that_is_not_utf8_is_one_sentence():
    with pytest.raises(TextError, match=r"^The text is not valid UTF-8 \(its character 3 is not a character\)"):
        common.read_text(b"caf\xe9".decode("utf-8", "surrogateescape"))


def test_an_argument_is_itself():
    assert common.read_text("a  b\n") == "a  b\n"


def test_json_refuses_what_json_has_not(capsys):
    common.print_json({"word": "naïve 🦫", "p": 0.5})
    assert json.loads(capsys.readouterr().out) == {"word": "naïve 🦫", "p": 0.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        common.print_json({"p": float("nan")})


def test_the_model_asked_for(monkeypatch):
    monkeypatch.delenv("GLASSFORMER_MODEL", raising=False)
    assert common.model_source(None) == "smollm2"
    monkeypatch.setenv("GLASSFORMER_MODEL", "gpt2")
    assert common.model_source(None) == "gpt2"
    assert common.model_source("mine") == "mine"


def test_a_missing_extra_names_the_command():
    common.need("json", verb="serve", extra="serve")
    with pytest.raises(UsageError, match=r"glassformer serve needs the package nowhere_at_all; install it with: pip"):
        common.need("nowhere_at_all", verb="serve", extra="serve")
