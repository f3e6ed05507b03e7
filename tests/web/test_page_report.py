"""Reports opened from disk with the network off."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.web.conftest import HERE, HOSTILE, TEXT, Watched, bars

pytestmark = pytest.mark.browser

# A word of what each room of a report shows.
SAID = {
    "attention": "All heads",
    "depth": "feed-forward",
    "why": "The circuit",
    "facts": "It answers to",
    "compare": "nats from A",
    "meaning": "At the end",
    "learning": "the gradient promised",
    "size": "gpt3",
}


@pytest.fixture
def report(tiny_model: Any, runs: Path, tmp_path: Path) -> Path:
    from glassformer.views import Session
    from glassformer.views.report import build
    from glassformer.views.report_data import ReportOptions

    path = tmp_path / "report.html"
    options = ReportOptions(
        other={"text": TEXT.replace("shrew", "carbon")},
        word="mole",
        contexts=("The mole", "One mole of"),
        run="little",
        learning=True,
    )
    path.write_text(build(Session(tiny_model, runs=str(runs)), TEXT, options=options), "utf-8")
    return path


def test_a_report_from_disk_with_the_network_off(visit: Any, report: Path):
    app = visit(None, offline=True)
    asked: list[str] = []
    app.page.on("request", lambda request: asked.append(request.url))
    app.page.goto(report.as_uri())
    app.settle()
    assert bars(app)
    for room, said in SAID.items():
        app.room(room)
        assert app.problems() == []
        assert said in app.page.inner_text(f"#room-{room}")
        app.shot(f"report-{room}")
    app.room("compare")
    for mode, said in (("lens", "another first choice"), ("attention", "Heads that look elsewhere"), ("patch", "100%")):
        app.page.click(f"#room-compare [aria-label='Compare'] [data-choice='{mode}']")
        app.settle()
        assert app.problems() == []
        assert said in app.page.inner_text("#room-compare .compare")
    app.page.click("#room-compare [data-choice='feed_forward']")
    app.settle()
    assert "patching of the stream and of the heads" in " ".join(app.problems())
    app.page.locator("#slider-temperature").fill("0.5")
    app.room("attention")
    app.page.focus(".scroller")
    app.page.keyboard.press("ArrowLeft")
    app.settle()
    app.page.locator(".panel.words .chip").nth(1).click()
    app.settle()
    assert "after" in (app.page.text_content("#next-after") or "")
    app.room("why")
    assert "explains one prediction" in " ".join(app.problems())
    assert f'To compute it: glassformer open "{TEXT}"' in " ".join(app.problems())
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    assert not app.complaints


def test_dials_of_a_report_act_by_the_steps_that_were_taken(visit: Any, report: Path, tiny_model: Any):
    from glassformer.views import Session

    app = visit(None, offline=True)
    app.page.goto(report.as_uri())
    app.settle().room("why")
    before = bars(app)
    for place, step in ((".waterfall", "0.5"), (".chips.big", "2"), (".waterfall", "0")):
        app.page.locator(f".why {place} .knob").first.fill(step)
        app.settle()
        assert app.page.locator(".changed .change-chip").count() == 1
        edits = app.page.evaluate("document.querySelector('.stage-room').stage.state.get('edits')")
        assert edits[0]["by"] == float(step)
        told = Session(tiny_model).view("next", {"text": TEXT, "edits": edits})["tokens"]
        drawn = app.page.locator("[aria-label='Most probable next tokens'] .num").all_text_contents()
        assert drawn[:8] == [f"{100 * t['probability']:.1f}%" for t in told[:8]]
        assert all("the change of the prediction alone" in said for said in app.problems())
    app.page.locator(".why .waterfall .knob").first.fill("1")
    app.settle()
    assert bars(app) == before
    assert not app.complaints


def test_a_report_from_the_page(app: Watched):
    app.open(HERE)
    with app.page.expect_download(timeout=90_000) as waiting:
        app.page.click("text=Report")
    html = Path(waiting.value.path()).read_text("utf-8")
    assert html.startswith("<!doctype html>")
    assert not re.search(r"""(?:src|href)=["']https?:""", html)


def test_the_page_s_report_holds_what_was_looked_at(app: Watched):
    app.open(f"{HERE}&layer=1&head=2").room("compare")
    app.page.fill("#other-text", TEXT.replace("shrew", "carbon"))
    app.page.wait_for_timeout(300)
    app.room("learning").room("meaning")
    with app.page.expect_download(timeout=90_000) as waiting:
        app.page.click("text=Report")
    html = Path(waiting.value.path()).read_text("utf-8")
    held = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert held["rooms"] == ["stage", "attention", "depth", "why", "facts", "compare", "meaning", "learning", "size"]
    assert held["other"]["text"] == TEXT.replace("shrew", "carbon")
    assert (held["state"]["tab"], held["state"]["layer"], held["state"]["head"]) == ("meaning", 1, 2)


def test_a_report_of_a_changed_model_says_so_in_every_room(app: Watched, visit: Any, tmp_path: Path):
    edits = '[{"kind":"ablate_head","layer":1,"head":2},{"kind":"ablate_mlp","layer":0,"position":1}]'
    app.open(f"{HERE}&edits={quote(edits)}").room("meaning")
    with app.page.expect_download(timeout=90_000) as waiting:
        app.page.click("text=Report")
    file = tmp_path / "report.html"
    waiting.value.save_as(file)
    read = visit(reduced_motion="reduce")
    read.page.goto(file.as_uri())
    read.settle()
    tabs = read.page.locator("[role=tab]").evaluate_all("all => all.map(tab => tab.id)")
    assert {"tab-facts", "tab-why", "tab-meaning"} <= set(tabs)
    for tab in tabs:
        read.page.click(f"#{tab}")
        read.settle()
        bar = read.page.locator(".changed")
        assert bar.is_visible(), tab
        assert "layer 1 head 2 is off" in bar.inner_text()
        assert "layer 0 feed-forward at “" in bar.inner_text()
        assert read.problems() == [], tab
    assert not read.complaints


def test_a_report_that_cannot_be_made_is_said(app: Watched):
    app.open(f"{HERE}&word=zebra").room("meaning")
    assert app.problems()
    app.page.click("text=Report")
    app.page.wait_for_selector("text=No report: ")
    app.complaints.clear()


def test_a_report_of_a_hostile_text(visit: Any, tiny_model: Any, tmp_path: Path):
    from glassformer.views import Session
    from glassformer.views.report import build

    path = tmp_path / "hostile.html"
    path.write_text(build(Session(tiny_model), HOSTILE), "utf-8")
    app = visit(None, offline=True)
    app.page.goto(path.as_uri())
    app.settle()
    assert app.page.input_value("#composer") == HOSTILE
    assert app.page.locator("img").count() == 0
    assert not app.complaints
