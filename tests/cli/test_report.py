"""`glassformer report` and `glassformer open`: files, and refusals in one line."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from glassformer.cli.app import main
from glassformer.cli.report import GALLERY
from tests.tiny import tiny_directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_directory(tmp_path_factory.mktemp("tiny") / "tiny"))


def run(args: list[str]) -> int:
    with pytest.raises(SystemExit) as leave:
        main(args)
    return int(leave.value.code or 0)


def test_a_report_is_one_file(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "mole.html"
    assert run(["report", "The American shrew mole", "--model", model, "-o", str(out)]) == 0
    assert out.read_text("utf-8").startswith("<!doctype html>")
    said = capsys.readouterr()
    assert said.out == ""
    assert "mole.html" in said.err


def test_the_gallery(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import glassformer.cli.report as verb

    short = tuple((name, "The mole", about) for name, _, about in GALLERY)  # the tiny model reads 64 tokens
    monkeypatch.setattr(verb, "GALLERY", short)
    assert run(["report", "--gallery", str(tmp_path / "g"), "--model", model]) == 0
    assert {p.name for p in (tmp_path / "g").iterdir()} == {"index.html", *(f"{name}.html" for name, *_ in GALLERY)}
    index = (tmp_path / "g" / "index.html").read_text("utf-8")
    assert all(f'href="{name}.html"' in index for name, *_ in GALLERY)


@pytest.mark.parametrize("args", [[], ["text", "--gallery", "folder"]])
def test_a_text_or_the_gallery(args: list[str], capsys: pytest.CaptureFixture[str]):
    assert run(["report", *args]) == 2
    assert "one of the two" in capsys.readouterr().err


def test_a_text_too_long_for_a_report(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["report", "mole " * 300, "--model", model, "-o", str(tmp_path / "x.html")]) != 0
    assert "reads at most 64" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_a_port_that_is_taken(model: str, capsys: pytest.CaptureFixture[str]):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run(["open", model, "--no-browser", "--port", str(taken.getsockname()[1])]) != 0
    assert "choose another with --port" in capsys.readouterr().err
