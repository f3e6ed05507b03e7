"""`glassformer report` and `glassformer open`: files, and refusals in one line."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from glassformer.cli.app import main
from glassformer.cli.report import GALLERY
from tests.cli.running import held, kept
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
    *progress, last = said.err.strip().splitlines()
    assert "mole.html" in last
    assert all(line.endswith(" …") for line in progress)
    assert len(set(progress)) == len(progress)
    assert {"stage …", "why …", "lens …"} <= set(progress)


def test_the_gallery(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import glassformer.cli.report as verb

    # The tiny model reads 64 tokens.
    short = tuple(replace(one, text="The mole", other=one.other and "The shrew") for one in GALLERY)
    monkeypatch.setattr(verb, "GALLERY", short)
    assert run(["report", "--gallery", str(tmp_path / "g"), "--model", model]) == 0
    assert {p.name for p in (tmp_path / "g").iterdir()} == {"index.html", *(f"{one.name}.html" for one in GALLERY)}
    index = (tmp_path / "g" / "index.html").read_text("utf-8")
    assert all(f'href="{one.name}.html"' in index for one in GALLERY)
    assert {"compare", "meaning", "learning"} <= set(held(tmp_path / "g" / "bank.html")["rooms"])


def test_what_stands_beside_the_text(model: str, tmp_path: Path):
    out = tmp_path / "beside.html"
    beside = ["--other", "The American carbon mole", "--word", "mole", "--context", "The mole", "--context", "One mole"]
    assert run(["report", "The American shrew mole", "--model", model, "-o", str(out), *beside]) == 0
    data = held(out)
    assert data["rooms"] == ["stage", "attention", "depth", "why", "facts", "compare", "meaning", "learning", "size"]
    assert kept(data, "compare", what="next")["kl"] > 0
    assert kept(data, "patch", what="heads")["restored"]
    assert len(kept(data, "meaning")["texts"]) == 2
    assert kept(data, "run_step")["loss_after"] < kept(data, "run_step")["loss"]
    assert kept(data, "runs") == {"runs": []}


def test_a_report_of_a_run_holds_its_journal(tmp_path: Path):
    import glassformer

    text = tmp_path / "little.txt"
    text.write_text("the cat sat on the mat and the dog ran to the sea.\n" * 200, "utf-8")
    settings = {
        "layers": 1, "width": 16, "heads": 2, "d_ff": 24, "context": 32, "steps": 4, "batch": 2, "save_every": 2,
        "eval_every": 2, "sample_every": 2, "log_every": 1, "eval_tokens": 64, "sample_tokens": 4, "threads": 1,
    }  # fmt: skip
    run_at = tmp_path / "runs" / "little"
    glassformer.train("shakespeare-char", data=str(text), out=str(run_at), quiet=True, settings=settings)
    out = tmp_path / "run.html"
    assert run(["report", "the cat", "--model", str(run_at), "-o", str(out)]) == 0
    data = held(out)
    assert kept(data, "run")["curves"]["loss"]["steps"] == [1, 2, 3, 4]
    assert kept(data, "run")["samples"]
    assert [one["name"] for one in kept(data, "runs")["runs"]] == ["little"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "one of the two"),
        (["text", "--gallery", "folder"], "one of the two"),
        (["--gallery", "folder", "--other", "a"], "The gallery has its own texts"),
        (["text", "--word", "mole"], "give --word and at least two times --context"),
        (["text", "--word", "mole", "--context", "a mole"], "give --word and at least two times --context"),
        (["text", "--context", "a", "--context", "b"], "give --word and at least two times --context"),
    ],
)
def test_what_does_not_go_together(args: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert run(["report", *args]) == 2
    assert message in capsys.readouterr().err


def test_a_text_too_long_for_a_report(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["report", "mole " * 300, "--model", model, "-o", str(tmp_path / "x.html")]) != 0
    assert "reads at most 64" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_a_port_that_is_taken(model: str, capsys: pytest.CaptureFixture[str]):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run(["open", model, "--no-browser", "--port", str(taken.getsockname()[1])]) != 0
    assert "choose another --host or --port" in capsys.readouterr().err
