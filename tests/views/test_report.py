"""Reports: what a file holds is what the views say, it loads nothing, and what it leaves out it says."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np
import pytest

from glassformer.errors import TextError
from glassformer.views import Session, attention, compare, report
from glassformer.views.asks import Ask, parsed
from glassformer.views.depth import packed_lens
from glassformer.views.report_data import ReportOptions

TEXT = "The American shrew mole is a small"


def answers(held: dict[str, Any], view: str) -> list[Any]:
    """What a report keeps of a view: parameters and answer, in order."""
    return held["answers"][view]


def test_a_report_holds_its_numbers_and_loads_nothing(session: Session):
    html = report.build(session, TEXT, [{"kind": "ablate_head", "layer": 0, "head": 1}])
    held = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert held["text"] == TEXT
    assert answers(held, "effects")[0][0]["edits"] == [{"kind": "ablate_head", "layer": 0, "head": 1}]
    pattern = session.trace(parsed(Ask, {k: held[k] for k in ("text", "edits")}))
    n = held["attention"]["size"]
    triangle = np.frombuffer(base64.b64decode(held["attention"]["heads"]["1,2"]), "<u2") / 65535
    grid = pattern.pattern(1, 2).numpy()
    assert np.allclose(triangle, grid[np.tril_indices(n)], atol=1e-4)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:|//)""", html)
    assert "unsafe" not in re.search(r'content-security-policy" content="([^"]*)"', html)[1]  # type: ignore[index]


def test_a_report_of_a_hundred_tokens_stays_small():
    """Of SmolLM2's shape, by the parts that grow: bounded patterns, and the lens's cell for each place and token."""
    places, tokens, cell = 61, 100, 95
    patterns = attention.PATTERN_BYTES * 4 / 3
    differences = compare.DIFFERENCES * tokens * tokens * 4 * 4 / 3
    assert patterns + differences + places * tokens * cell + 1_700_000 <= 5_000_000


def test_a_report_s_data_cannot_end_its_script(session: Session):
    html = report.build(session, "</script><script>alert(1)</script>", rooms=["depth"])
    assert html.count("<script") == 2
    assert "alert(1)</script>" not in html


def test_a_report_of_a_long_text_keeps_the_heads_that_matter(session: Session, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "PATTERN_BYTES", 400)
    held = report.collect(session, TEXT)["attention"]
    assert not held["all"]
    assert 0 < len(held["heads"]) < 12
    monkeypatch.setattr(report, "LONGEST", 3)
    with pytest.raises(TextError, match="at most"):
        report.collect(session, TEXT)


def test_a_report_keeps_each_token_of_the_lens_once(session: Session):
    plain = session.view("lens", {"text": TEXT, "top": 3})
    packed = packed_lens(plain)
    for row, short in zip(plain["rows"], packed["rows"], strict=True):
        for cell, (followed, rank, entropy, *tops) in zip(row["cells"], short["cells"], strict=True):
            assert (followed, rank, entropy) == (cell["followed"], cell["rank"], cell["entropy"])
            assert [packed["texts"][str(id)] for id in tops[::2]] == [t["token"] for t in cell["top"]]
            assert tops[1::2] == [t["probability"] for t in cell["top"]]
    assert len(json.dumps(packed)) < 0.6 * len(json.dumps(plain))


def test_rooms_come_with_what_they_need(session: Session):
    options = ReportOptions(
        other={"text": "The American carbon mole is a small"}, learning=True, position=2, token=" of"
    )
    held = report.collect(session, TEXT, rooms=["why"], options=options)
    assert held["rooms"] == ["why", "compare", "learning"]
    [[asked, why]] = answers(held, "why")
    assert why["token"] == asked["token"] == " of"
    assert why["position"] == asked["position"] == held["explained"] == 2
    side = {"text": TEXT}
    sides = answers(held, "compare")
    assert sides[0][1]["kl"] == pytest.approx(
        session.view("compare", {"a": side, "b": {"text": "The American carbon mole is a small"}})["kl"], rel=1e-4
    )
    assert len([one for _, one in sides if "difference" in one]) == compare.DIFFERENCES
    [[_, step]] = answers(held, "run_step")
    assert step["loss_after"] < step["loss"]


def test_the_circuit_the_reasons_and_the_facts_are_in_a_report(session: Session):
    other = "The American carbon mole is a small"
    held = report.collect(
        session, TEXT, rooms=["attention", "why", "facts"], options=ReportOptions(other={"text": other})
    )
    [[asked, graph]] = answers(held, "graph")
    assert asked == {"clean": TEXT, "corrupted": other}
    whole = session.view("graph", {"clean": TEXT, "corrupted": other})
    assert [edge["exact"] for edge in graph["edges"]] == pytest.approx([e["exact"] for e in whole["edges"]], rel=1e-4)
    reasons = answers(held, "reasons")
    assert len(reasons) == attention.REASONS
    for at, found in reasons:
        score = session.trace(parsed(Ask, {"text": TEXT})).scores(at["layer"], at["head"], at["query"])
        assert found["value"] == pytest.approx(float(score.flatten()[at["key"]]), rel=1e-3, abs=1e-5)
    [[_, pushed]] = answers(held, "neurons")
    facts = answers(held, "exciting")
    places = [{"layer": n["layer"], "neuron": n["index"]} for n in pushed["neurons"]]
    assert [at for at, _ in facts] == places[:12]
    assert all(found["passages"] and found["done"] == found["of"] for _, found in facts)


def test_what_cannot_be_laid_side_by_side_is_said_in_the_report(session: Session):
    held = report.collect(session, TEXT, rooms=["compare"], options=ReportOptions(other={"text": "The mole"}))
    found = {asked["what"]: one for asked, one in answers(held, "compare")}
    assert found["next"]["kl"] > 0
    assert "tokens long" in found["lens"]["problem"]
    assert "tokens long" in answers(held, "patch")[0][1]["problem"]


def test_a_position_that_is_not_there(session: Session):
    with pytest.raises(TextError, match="no position 9"):
        report.collect(session, TEXT, options=ReportOptions(position=9))
