"""The newcomer's first screen."""

from __future__ import annotations

import pytest

from glassformer.cli import common, demo
from glassformer.cli.app import main


@pytest.mark.smollm2
def test_the_demo_shows_every_sentence_and_what_to_try_next(smollm2, monkeypatch, capsys):
    monkeypatch.setattr(demo, "open_model", lambda source: smollm2)
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as leave:
        main(["demo"])
    assert leave.value.code == 0
    out = capsys.readouterr().out
    for sentence in demo.SENTENCES:
        assert f"\n{sentence} …" in out
    after = out.partition("The capital of France is")[2]
    assert after.splitlines()[1].split()[:2] == ["Paris", "77.2%"]
    assert 'glassformer next "Once upon a"' in out
    assert max(map(len, out.splitlines())) <= 80


def test_what_it_suggests_exists():
    from glassformer.cli.app import VERBS

    assert {line.split()[1] for line in demo.NEXT} <= set(VERBS)


@pytest.mark.parametrize(
    ("share", "upper", "drawn"),
    [(0.0, None, ""), (0.001, None, "▏"), (0.5, None, "████"), (0.55, 1.0, "████▍░░░"), (1.0, 1.0, "████████")],
)
def test_bars(share, upper, drawn):
    assert common.bar(share, 8, upper).plain == drawn
