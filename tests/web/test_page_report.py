"""Reports opened from disk with the network off."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.web.conftest import HERE, HOSTILE, TEXT, Watched, bars

pytestmark = pytest.mark.browser


@pytest.fixture
def report(tiny_model: Any, tmp_path: Path) -> Path:
    from glassformer.studio import Studio
    from glassformer.studio.report import build

    path = tmp_path / "report.html"
    path.write_text(build(Studio(tiny_model), TEXT), "utf-8")
    return path


def test_a_report_from_disk_with_the_network_off(visit: Any, report: Path):
    app = visit(None, offline=True)
    asked: list[str] = []
    app.page.on("request", lambda request: asked.append(request.url))
    app.page.goto(report.as_uri())
    app.settle()
    assert bars(app)
    for room in ("attention", "depth", "why", "size"):
        app.room(room)
        assert app.problems() == []
        app.shot(f"report-{room}")
    app.page.locator("#slider-temperature").fill("0.5")
    app.room("attention")
    app.page.focus(".scroller")
    app.page.keyboard.press("ArrowLeft")
    app.settle()
    app.page.locator(".panel.words .chip").nth(1).click()
    app.settle()
    assert "after" in (app.page.text_content("#next-after") or "")
    app.room("why")
    assert "explains the last prediction" in " ".join(app.problems())
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    assert not app.complaints


def test_a_report_from_the_page(app: Watched):
    app.open(HERE)
    with app.page.expect_download(timeout=90_000) as waiting:
        app.page.click("text=Report")
    html = Path(waiting.value.path()).read_text("utf-8")
    assert html.startswith("<!doctype html>")
    assert not re.search(r"""(?:src|href)=["']https?:""", html)


def test_a_report_of_a_hostile_text(visit: Any, tiny_model: Any, tmp_path: Path):
    from glassformer.studio import Studio
    from glassformer.studio.report import build

    path = tmp_path / "hostile.html"
    path.write_text(build(Studio(tiny_model), HOSTILE), "utf-8")
    app = visit(None, offline=True)
    app.page.goto(path.as_uri())
    app.settle()
    assert app.page.input_value("#composer") == HOSTILE
    assert app.page.locator("img").count() == 0
    assert not app.complaints
