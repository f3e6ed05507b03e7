"""`glassformer race` as a table, as JSON and as a plot."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from glassformer.cli.race import _apart
from tests.cli import running

TEXT = "The American shrew mole is a small mole. One mole of carbon dioxide."


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    return running.run(capsys, "race", *args)


def test_for_people(model: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run(capsys, TEXT, "-m", model, "--repeats", 1)
    assert code == 0
    assert "at once" in out
    assert "random weights" in " ".join(out.split())
    assert "gave the same answer, " in out
    assert "8 tokens, at once …" in err


def test_json_fields(model: Path, capsys) -> None:
    code, out, err = run(capsys, TEXT, "-m", model, "--repeats", 1, "-n", 4, "-n", 8, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert set(found) == {
        "model", "laps", "parameters", "layers", "width", "recurrent_parameters", "recurrent_layers", "dtype",
        "device", "threads",
    }  # fmt: skip
    assert [lap["tokens"] for lap in found["laps"]] == [4, 8]
    assert set(found["laps"][0]) == {
        "tokens", "at_once", "word_by_word", "recurrent", "gap", "at_once_tokens_per_second",
        "word_by_word_tokens_per_second", "recurrent_tokens_per_second",
    }  # fmt: skip


@pytest.mark.parametrize("lengths", [[4, 8, 16], [5]])
def test_the_plot(model: Path, capsys, tmp_path: Path, lengths: list[int]) -> None:
    options = [part for n in lengths for part in ("-n", n)]
    assert run(capsys, TEXT + TEXT, "-m", model, "--repeats", 1, *options, "--plot", tmp_path / "race.svg")[0] == 0
    root = ElementTree.parse(tmp_path / "race.svg").getroot()
    name = "{http://www.w3.org/2000/svg}"
    lines = root.findall(f"{name}polyline")
    assert len(lines) == 3
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert len(points) == len(lengths)
        assert all(0 <= x <= 720 and 0 <= y <= 420 for x, y in points)
    labels = [text.text for text in root.findall(f"{name}text")]
    assert {"at once", "word by word", "recurrent", "tokens", str(lengths[0])} <= set(labels)
    assert run(capsys, TEXT + TEXT, "-m", model, "--repeats", 1, *options, "--plot", tmp_path / "race.png")[0] == 0
    assert (tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")


def test_labels_do_not_overlap() -> None:
    assert _apart([100.0, 103.0, 50.0], 16) == [100.0, 116.0, 50.0]
    assert _apart([103.0, 100.0, 101.0], 16) == [132.0, 100.0, 116.0]


def test_what_cannot_be_meant(model: Path, capsys, monkeypatch) -> None:
    assert run(capsys, TEXT, "-m", model, "--plot", "race.gif") == (
        2,
        "",
        "glassformer: A plot is drawn as .svg, .png or .pdf; race.gif is none of them.\n",
    )
    said = "glassformer: The plot cannot be written: there is no folder nowhere.\n"
    assert run(capsys, TEXT, "-m", model, "--plot", "nowhere/race.svg") == (2, "", said)
    code, _, err = run(capsys, TEXT * 5, "-m", model)
    assert code == 1
    assert "reads at most 64; shorten it." in err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run(capsys, TEXT, "-m", model, "--plot", "race.png")
    assert code == 2
    assert "pip install 'glassformer[plot]'" in err
