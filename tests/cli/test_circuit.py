"""`glassformer circuit` as a person and a program meet it."""

from __future__ import annotations

import json

import pytest

import glassformer
from glassformer.cli import circuit as verb
from glassformer.interp import tasks
from glassformer.lm import Model
from tests.cli.running import answer, run

ASKED = ("circuit", "a mole of", "A mole of", "--answer", " mole", "--wrong", " of")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")


def test_a_circuit(capsys, model):
    found = answer(capsys, *ASKED, "-m", model)
    mine = glassformer.load(model).circuit([("a mole of", "A mole of")], answer=" mole", wrong=" of")
    assert found["total_edges"] == mine.edges.graph.total == len(found["edges"])
    assert found["metric"] == "logit_difference"
    assert set(found["edges"][0]) == {"from", "to", "estimate", "exact", "reliable"}
    assert found["circuit"]["f"] == pytest.approx(mine.f, abs=1e-6)
    assert found["circuit"]["f"] >= 0.9
    assert found["faithfulness"][-1] == {"share": 1.0, "f": pytest.approx(1, abs=1e-3)}
    assert found["cmd"] == pytest.approx(mine.curve.cmd, abs=1e-5)
    assert found["random"]["cmd"] == pytest.approx(sum(each.cmd for each in mine.random) / 3, abs=1e-5)
    assert found["jaccard"] is None
    assert [row["overlap"] for row in found["rivals"]] == [0.0] * len(found["rivals"])
    few = answer(capsys, *ASKED, "-m", model, "--exact", "strongest", "--strongest", 7)
    assert few["replaced"] == pytest.approx(7 / few["total_edges"])
    code, out, _ = run(capsys, *ASKED, "-m", model, "-k", 3, "--exact", "none", "--method", "eap")
    assert code == 0
    assert f"of {found['total_edges']} edges" in out
    assert "bring" in out
    assert "→" in out
    assert "random edges" in out
    assert "'␣mole' against '␣of'" in out


def test_edges_by_position(capsys, model):
    found = answer(capsys, *ASKED, "-m", model, "--by-position", "--exact", "strongest", "--strongest", 5, "-k", 9)
    mine = glassformer.load(model)
    own = mine.trace("a mole of").edges(
        corrupted=mine.trace("A mole of"), answer=" mole", wrong=" of", exact="strongest", strongest=5, by_position=True
    )
    want = mine.circuit(
        [("a mole of", "A mole of")], answer=" mole", wrong=" of", exact="strongest", strongest=5, by_position=True
    )
    assert found["circuit"]["edges"] == want.rows()
    assert found["circuit"]["f"] >= 0.9
    assert [(row["from"], row["to"], row["position"]) for row in found["edges"]] == [
        (row["from"], row["to"], row["position"]) for row in own.ranked(9)
    ]
    _, out, _ = run(capsys, *ASKED, "-m", model, "--by-position", "--exact", "strongest", "--strongest", 5, "-k", 1)
    first = want.rows()[0]
    assert f"{first['from']} → {first['to']} at " in out
    code, _, err = run(capsys, *ASKED, "-m", model, "--by-position", "-o", "x.json")
    assert code == 2
    assert "cannot be run on others; leave out --task and --out" in err


def test_estimates_that_do_not_add_up_are_told(capsys, model):
    found = answer(capsys, *ASKED, "-m", model, "--exact", "none", "--steps", 3)
    mine = glassformer.load(model)
    own = mine.trace("a mole of").edges(
        corrupted=mine.trace("A mole of"), answer=" mole", wrong=" of", exact="none", steps=3
    )
    assert found["adds_up"] == pytest.approx(own.adds_up)
    for whole, told in ((1.2, False), (0.3, True), (None, False)):
        verb._measured({**found, "adds_up": whole})
        said = capsys.readouterr().out
        assert ("leave the embedding add up to 30% of the difference: take more --steps" in said) is told


def test_pairs_and_other_metrics(capsys, model, tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"clean": f"{a} mole of", "corrupted": f"{b} mole of"} for a, b in (("a", "A"), ("1", "2"), ("b", "c"))]
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = answer(capsys, "circuit", "-m", model, "--pairs", file, "--metric", "kl", "-f", 0.5, "-k", 4)
    assert found["metric"] == "kl"
    assert len(found["edges"]) == 4
    assert len(found["pairs"]) == 3
    assert 0 < found["jaccard"] <= 1
    assert found["circuit"]["target"] == 0.5


def test_a_task_is_tried_before_its_circuit_is_sought(capsys, model, monkeypatch):
    code, out, err = run(capsys, "circuit", "-m", model, "--task", "brackets", "--examples", 8)
    assert out == ""
    assert code == 1
    assert "examples of 'brackets'" in err
    assert err.count("\n") == 1
    monkeypatch.setattr(tasks, "ENOUGH", 0.0)
    monkeypatch.setattr(tasks, "solved", lambda name, rows, pairs: list(range(len(rows))))
    monkeypatch.setattr(
        tasks,
        "examples",
        lambda name, encode, count: [
            {"clean": f"{a} mole of", "corrupted": f"{b} mole of", "answer": " mole", "wrong": " of"}
            for a, b in ("aA", "12", "bc", "xy")
        ],
    )
    traced: list[str] = []
    once = Model.trace
    monkeypatch.setattr(Model, "trace", lambda self, text, *more: traced.append(text) or once(self, text, *more))
    code, out, err = run(capsys, "circuit", "-m", model, "--task", "copying", "--examples", 4, "--json")
    assert code == 0
    assert len(traced) == 8  # each prompt once
    found = json.loads(out)
    assert "Say a word again. tiny gets 4 of 4 examples right." in err
    assert found["accuracy"] == 1
    assert len(found["pairs"]) == 2
    assert isinstance(found["circuit"]["held_out"], float)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("a mole",), 2, "Give two prompts, a clean and a corrupted one"),
        (("a mole", "a mole"), 2, "The two prompts are the same"),
        (("The mole", "The mole mole"), 1, "they need as many tokens, place for place"),
        (("a mole", "A mole", "--metric", "loss"), 2, "There is no metric 'loss'; choose logit_difference"),
        (("a mole", "A mole", "--method", "ig"), 2, "There is no method 'ig'; choose eap"),
        (("a mole", "A mole", "--exact", "some"), 2, "--exact is unreliable, strongest, all or none"),
        (("a mole", "A mole", "--steps", 0), 2, "averaged over 1 step or more; 0 is not"),
        (("a mole", "A mole", "--strongest", -1), 2, "--strongest is 0 or more; -1 is not."),
        (("a mole", "A mole", "-f", 2, "--answer", " mole", "--wrong", " of"), 2, "above 0 and at most 1; 2.0 is not"),
        (("a mole", "A mole", "-k", 0), 2, "--top is 1 or more; 0 is not."),
        (("a mole", "A mole", "--task", "names"), 2, "A --task brings its own prompts"),
        (("--task", "name"), 2, "There is no task 'name'; choose names"),
        (("--task", "names", "--examples", 1), 2, "--examples is 2 or more"),
        (("--pairs", "nowhere.jsonl"), 1, "nowhere.jsonl"),
        (("a mole of", "A mole of", "-p", 0, "--answer", " moles"), 1, "is not one token here but"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(capsys, model, args, code, message):
    got, out, err = run(capsys, "circuit", *args, "-m", model)
    assert (got, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_circuit_is_saved_and_completed_alone(capsys, model, tmp_path):
    file = tmp_path / "names.json"
    found = answer(capsys, *ASKED, "-m", model, "-o", file)
    opened = glassformer.load(model)
    alone = opened.edited(opened.load_circuit(file))
    options = ("-m", model, "-n", 5, "--temperature", 0, "--logit-bias", "0=-100")
    code, out, _ = run(capsys, "complete", "a mole of", *options, "--circuit", file)
    assert code == 0
    pieces = alone.generate("a mole of", max_tokens=5, temperature=0, logit_bias={0: -100})
    assert out.rstrip("\n") == "".join(p.text for p in pieces).rstrip("\n")
    ends = alone.logits(opened.encode("a mole of"))[-1].double()
    [pair] = found["pairs"]
    got = float(ends[opened.encode(" mole")[-1]] - ends[opened.encode(" of")[-1]])
    f = (got - pair["corrupted"]) / (pair["clean"] - pair["corrupted"])
    assert f == pytest.approx(found["circuit"]["f"], abs=1e-4)
    file.write_text("{}", "utf-8")
    code, _, err = run(capsys, "complete", "a mole of", *options, "--circuit", file)
    assert code == 1
    assert "is not of the format glassformer.circuit/1" in err
