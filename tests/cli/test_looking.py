"""`glassformer attention`, `lens` and `why` as a person and a program meet them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import pytest
import typer

import glassformer
from glassformer.cli import app
from glassformer.cli.looking import Look, Seen, looking
from tests.cli.running import answer, held, kept, run

TEXT = "The American shrew mole"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def test_a_head_s_grid(capsys, model):
    found = answer(capsys, "attention", TEXT, "-m", model, "--layer", 1, "--head", 2)
    trace = glassformer.load(model).trace(TEXT)
    assert found["rows"] == pytest.approx(trace.pattern(1, 2).double().numpy(), abs=1e-6)
    assert found["keys"] == found["queries"] == trace.tokens
    assert found["row_sum_error"] < 1e-6
    row = answer(capsys, "attention", TEXT, "-m", model, "--layer", -1, "--head", 2, "--query", -1, "--words")
    assert row["keys"] == ["The", "American", "shrew", "mole"]
    assert sum(row["rows"][0]) == pytest.approx(1, abs=1e-6)
    assert row["layer"] == 2
    code, out, _ = run(capsys, "attention", TEXT, "-m", model, "--layer", 1, "--head", 2)
    assert code == 0
    assert "Layer 1, head 2: weight by token" in out
    assert "Rows sum to 1 within" in out
    code, out, _ = run(capsys, "attention", TEXT, "-m", model, "--layer", 1, "--head", 2, "--query", 2, "--weighted")
    assert "value-weighted" in out


def test_where_every_head_looks(capsys, model):
    found = answer(capsys, "attention", TEXT, "-m", model)
    assert [row["layer"] for row in found["layers"]] == [0, 1, 2]
    assert len(found["layers"][0]["heads"]) == 4
    code, out, _ = run(capsys, "attention", TEXT, "-m", model)
    assert code == 0
    assert "Where every head looks from position" in out
    code, _, err = run(capsys, "attention", TEXT, "-m", model, "--head", 1)
    assert (code, err) == (
        2,
        "glassformer: Name a layer with --layer; without one only the overview of all heads is shown.\n",
    )


def test_the_lens(capsys, model):
    found = answer(capsys, "lens", TEXT, "-m", model, "--all", "-k", 3)
    assert len(found["positions"]) == len(found["tokens"])
    assert [row["place"] for row in found["rows"]][:3] == ["embed", "blocks.0.resid_mid", "blocks.0.resid_post"]
    best = glassformer.load(model).next(TEXT).top(3)
    last = found["rows"][-1]["cells"][-1]["top"]
    assert [t["id"] for t in last] == [t.id for t in best]
    assert [t["probability"] for t in last] == pytest.approx([t.probability for t in best], rel=1e-4)
    whole = answer(capsys, "lens", TEXT, "-m", model, "--words")
    assert whole["positions"] == [word.positions[-1] for word in glassformer.load(model).trace(TEXT).words]
    code, out, _ = run(capsys, "lens", TEXT, "-m", model, "--follow", " mole", "--no-halves")
    assert code == 0
    assert "layer 2 " in out  # as of a layer of one part alone: no part is named that there may not be
    assert "attention" not in out
    assert "feed-forward" not in out


def test_why(capsys, model):
    found = answer(capsys, "why", TEXT, "-m", model)
    assert list(found)[1:9] == ["token", "unit", "value", "sum", "residual", "precision", "parts", "words"]
    assert found["residual"] <= 1e-5
    assert [w["word"] for w in found["words"]] == ["The", "American", "shrew", "mole"]
    assert found["words"][0]["sink"]
    code, out, _ = run(capsys, "why", TEXT, "-m", model, "--token", " mole", "--against", " of", "--words", 2)
    assert code == 0
    assert "' mole' is ahead of ' of' by" in out.replace("\n", " ")
    assert "residual" in out
    double = answer(capsys, "why", TEXT, "-m", model, "--dtype", "float64", "--words", 0)
    assert double["residual"] <= 1e-12
    assert double["precision"] == "float64"
    assert double["value"] == pytest.approx(found["value"], rel=1e-4)


@pytest.mark.parametrize(
    "args", [("attention", "--layer", 0, "--head", 1), ("attention", "--layer", 0), ("lens", "--all"), ("why",)]
)
def test_pictures_and_pages(capsys, model, tmp_path, args):
    picture, page = tmp_path / "a.png", tmp_path / "a.html"
    text = TEXT + " $x$ </script> 鼹"
    code, out, err = run(capsys, args[0], text, "-m", model, *args[1:], "--png", picture, "--html", page)
    assert (code, out) == (0, "")
    assert f"Wrote {page}." in err
    assert picture.read_bytes().startswith(b"\x89PNG")
    data = held(page)
    assert data["text"] == text
    assert data["tokens"]["precision"] == "float32"
    assert data["rooms"] == [{"attention": "attention", "lens": "depth", "why": "why"}[args[0]]]
    if args[0] == "attention":
        assert (data["state"]["layer"], data["state"]["head"]) == (0, args[4] if len(args) > 4 else None)
    if args[0] == "why":
        assert kept(data, "why")["value"] == pytest.approx(answer(capsys, "why", text, "-m", model)["value"], rel=1e-4)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("why", TEXT, "--token", " molecules shrew"), 1, "is not one token here but"),
        (("why", TEXT, "--position", 99), 1, "there is no position 99."),
        (("why", ""), 1, "The text is empty"),
        (("why", TEXT, "--alternatives", 0), 2, "at least one alternative"),
        (("attention", TEXT, "--layer", 7), 1, "There is no layer 7: the model has 3 layers, 0 to 2."),
        (("attention", TEXT, "--layer", 0, "--head", 4), 1, "no head 4: layer 0 has 4 heads"),
        (("lens", TEXT, "--top", 0), 2, "--top is 1 or more; 0 is not."),
        (("attention", TEXT, "--layer", 0, "--words", "--html", "x.html"), 2, "A page shows weights by token"),
        (("lens", TEXT, "--all", "-p", 1), 2, "one of --all, --words and --position"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(capsys, model, args, code, message):
    got, out, err = run(capsys, *args, "-m", model)
    assert (got, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


@looking
def command(
    look: Look,
    text: Annotated[str, typer.Argument(metavar="TEXT")],
    layer: Annotated[int, typer.Option("--layer")] = 0,
) -> Seen:
    """Say how long the stream is after a layer."""
    trace = look.open().trace(text, look.bos)
    norms = trace[f"blocks.{layer}.resid_post"].norm(dim=-1).tolist()
    return Seen({"norms": norms}, lambda: print(f"{norms[-1]:.3f} long"))


def test_a_looking_verb_is_a_function_and_a_row(capsys, monkeypatch, model):
    monkeypatch.setitem(app.VERBS, "norms", app.Verb(f"{__name__}:command", "Say how long the stream is."))
    monkeypatch.setattr(app, "verbs", lambda: list(app.VERBS))
    found = answer(capsys, "norms", TEXT, "-m", model, "--layer", 1)
    expected = glassformer.load(model).trace(TEXT)["blocks.1.resid_post"].norm(dim=-1)
    assert found["norms"] == pytest.approx(expected.tolist())
    code, out, _ = run(capsys, "norms", TEXT, "-m", model, "--layer", 1)
    assert (code, out) == (0, f"{expected[-1]:.3f} long\n")
    with_bos = answer(capsys, "norms", TEXT, "-m", model, "--bos", "--dtype", "float64")
    assert len(with_bos["norms"]) == len(expected) + 1
    code, out, _ = run(capsys, "norms", "--help")
    assert all(option in out for option in ("--layer", "--model", "--bos", "--dtype", "--json", "--png", "--html"))
    code, _, err = run(capsys, "norms", TEXT, "-m", model, "--png", "norms.png")
    assert (code, err) == (2, "glassformer: There is no picture of what test_looking shows here; leave --png out.\n")


def test_a_graph_of_one_prediction(capsys, model, tmp_path):
    from glassformer.interp.prediction_graph import opened

    file = tmp_path / "graph.json"
    options = ("-m", model, "--token", " mole", "--against", " of", "-n", 12, "-c", 1.0)
    told = answer(capsys, "graph", TEXT, *options, "--turn", "embed@0=0.5", "-o", file, "--name", "mine")
    loaded = glassformer.load(model)
    want = loaded.trace(TEXT).graph(" mole", " of", coverage=1.0, most=12)
    assert told["value"] == pytest.approx(want.value, abs=1e-5)
    assert [node["name"] for node in told["nodes"]] == [node["name"] for node in want.nodes]
    assert [node["measured"] for node in told["nodes"]] == pytest.approx(
        [node["measured"] for node in want.nodes], abs=1e-5
    )
    assert len(told["nodes"]) == 12
    [turned] = told["turned"]
    assert turned["value"] == pytest.approx(want.turned("embed@0", 0.5), abs=1e-5)
    kept = opened(file, loaded.transformer)
    assert (kept["name"], kept["nodes"]) == ("mine", told["nodes"])
    code, out, _ = run(capsys, "graph", TEXT, *options, "-k", 3, "--turn", "embed@0=2")
    assert code == 0
    assert "12 nodes with" in out
    assert "With embed@0 × 2 the score is" in out
    for args, code, said in (
        (("--turn", "embed@0"), 2, "--turn is NODE=X"),
        (("-c", 0), 2, "coverage is above 0"),
        (("--turn", "a7.h0@1=1"), 1, "shows no node 'a7.h0@1'"),
        (("-k", 0), 2, "--top is 1 or more"),
    ):
        got, _, err = run(capsys, "graph", TEXT, *options[:6], *args)
        assert got == code, err
        assert said in err


@pytest.mark.parametrize(
    "asked",
    [
        ["report", "a", "-o", "OUT"],
        ["lens", "a", "--html", "OUT"],
        ["attention", "a", "--layer", "0", "--head", "0", "--png", "OUT"],
        ["graph", "a", "-o", "OUT"],
        ["circuit", "a", "b", "-o", "OUT"],
        ["readout", "TEXT", "-o", "OUT"],
        ["direction", "x", "--positive", "TEXT", "--negative", "TEXT", "--layer", "0", "-o", "OUT"],
        ["corpus", "TEXT", "--head", "0", "0", "--keep", "OUT"],
    ],
    ids=lambda asked: asked[0],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_opened(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "text").write_text("some words\n")
    names = {"TEXT": str(tmp_path / "text"), "OUT": str(tmp_path / "text" / "out")}
    code, _, err = run(capsys, *(names.get(word, word) for word in asked), "--model", tmp_path / "no-model")
    assert code == 1
    assert "cannot be written (Not a directory); name another place." in err


def test_a_lens_keeps_its_numbers_at_eighty_columns(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, "lens", "The mole", "-k", "40", "--model", model)
    assert code == 0
    rows = out.splitlines()[3:]
    assert max(map(len, rows)) == 80  # longer than the terminal is wide, and cut at the end alone
    place = r"(embedding|\d+ (attention|feed-forward)) +\d+\.\d\d% +\d+ "
    assert all(re.match(place, row) for row in rows if row.strip())
