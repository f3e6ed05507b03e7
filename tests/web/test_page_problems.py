"""What goes wrong at the page: long and empty texts, a server that goes, hostile tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.web.conftest import HERE, HOSTILE, ROOMS, TEXT, Watched, chips, serve

pytestmark = pytest.mark.browser


def test_a_text_too_long_is_said(app: Watched):
    app.open(HERE)
    app.page.fill("#composer", "mole " * 200)
    app.settle()
    assert any("reads at most 64" in problem for problem in app.problems())
    app.page.fill("#composer", TEXT)
    app.settle()
    assert app.problems() == []
    app.complaints.clear()


def test_rooms_do_not_wait_for_the_stage_of_a_long_text(app: Watched):
    app.page.route("**/api/view/stage", lambda route: None)  # its answer takes as long as one likes
    app.page.goto(app.server.address + HERE)
    app.page.wait_for_selector("#room-attention .opened", timeout=15_000)
    assert app.page.locator(".stage-room").is_visible()
    app.page.unroute_all(behavior="ignoreErrors")


def test_an_empty_text(app: Watched):
    app.open(HERE)
    app.page.fill("#composer", "")
    app.settle()
    assert "type a text" in app.page.inner_text("#facts")
    assert app.problems() == []


def test_the_server_gone_and_back(visit: Any, tiny_model: Any, runs: Path):
    server = serve(tiny_model, runs)
    app = visit(server).open(HERE)
    server.stop()
    app.page.fill("#composer", "One mole")
    app.page.wait_for_selector("text=The server does not answer")
    server.start()
    app.page.wait_for_selector("text=The server does not answer", state="hidden", timeout=20_000)
    app.settle()
    assert "".join(chips(app)).replace("␣", " ") == "One mole"
    server.stop()


def test_hostile_texts_stay_texts(app: Watched):
    app.open(f"#text={quote(HOSTILE)}")
    for room in ROOMS:
        app.room(room)
        if room == "why":
            app.page.click(".nodes-form button")
            app.page.evaluate("document.querySelectorAll('#room-why details').forEach((d) => { d.open = true; })")
            app.settle()
            assert any("<" in name for name in app.page.locator(".nodes .band-name, .nodes .node").all_text_contents())
            app.page.fill("[aria-label='A text that ends differently']", HOSTILE.replace("lt", "gt"))
            app.page.click(".circuit-form button")
            app.settle()
        assert app.page.locator("img").count() == 0
    assert app.page.title() == "Glassformer"
    assert "<img" in "".join(chips(app)).replace("␣", " ")
