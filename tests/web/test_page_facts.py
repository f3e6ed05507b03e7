"""The facts room in a browser: its numbers are the view's, and a neuron is switched off where it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.web.conftest import HERE, TEXT, Server, Watched, bars

pytestmark = pytest.mark.browser


def test_a_neuron_is_a_question_and_an_answer(app: Watched, tiny_model: Any):
    from glassformer.views import Session

    app.open(f"{HERE}&tab=facts")
    app.page.click("#room-facts summary")
    own = ["the cat sat on the mat", "a dog ran to the sea"]
    app.page.fill("#room-facts textarea", "\n".join(own))
    app.page.locator("#room-facts textarea").blur()
    app.settle()
    told = Session(tiny_model).view("neurons", {"text": TEXT, "top": 12})["neurons"]
    totals = app.page.locator("[data-total]").evaluate_all("all => all.map((e) => +e.dataset.total)")
    assert totals == pytest.approx([n["total"] for n in told], abs=1e-5)
    first = max(told, key=lambda n: n["total"])
    ask = {"layer": first["layer"], "neuron": first["index"], "texts": own}
    told = [p["output"] for p in Session(tiny_model).view("exciting", ask)["passages"]]
    drawn = app.page.locator("[data-output]").evaluate_all("all => all.map((e) => +e.dataset.output)")
    assert drawn == pytest.approx(told, abs=1e-5)
    before = bars(app)
    app.page.click("#room-facts button:has-text('Switch it off')")
    app.settle()
    assert app.page.locator("section.changed").is_visible()
    assert app.page.locator("#room-facts button:has-text('switch it on')").is_visible()
    app.page.click("#room-facts button:has-text('switch it on')")
    app.settle()
    assert bars(app) == before
    app.shot("facts")


def test_experts_are_a_grid_and_rows_with_dials(visit: Callable[..., Watched], mixed: Server, mixed_model: Any):
    from axe_playwright_python.sync_playwright import Axe

    from glassformer.views import Session

    app = visit(mixed, reduced_motion="reduce").open(f"{HERE}&tab=facts&layer=4").see(".expert-row >> nth=0")
    told = Session(mixed_model).view("experts", {"text": TEXT, "layer": 4})
    rows = app.page.locator("[data-expert]").evaluate_all("all => all.map((e) => ({ ...e.dataset }))")
    assert [int(row["expert"]) for row in rows] == [one["expert"] for one in told["experts"]]
    for name in ("weight", "contribution"):
        drawn = [float(row[name]) for row in rows]
        assert drawn == pytest.approx([one[name] for one in told["experts"]], abs=1e-5)
    shared = app.page.get_attribute("[data-shared]", "data-shared")
    assert float(shared or "nan") == pytest.approx(told["shared"]["contribution"], abs=1e-5)
    grid = app.page.locator(".shades canvas").nth(1)
    assert grid.evaluate("(c) => [c.height, c.width]") == [told["q1"], told["n_experts"]]
    app.shot("experts")
    assert Axe().run(app.page, context=".experts").response["violations"] == []
    before = bars(app)
    app.page.locator(".expert-row .knob").first.fill("0")
    app.settle()
    assert bars(app) != before
    assert f"expert {told['experts'][0]['expert']}" in app.page.inner_text(".changed")
    app.page.locator(".expert-row .knob").first.fill("1")
    app.settle()
    assert bars(app) == before
    grid.focus()
    app.page.keyboard.press("ArrowUp")  # the token before
    app.settle()
    told = Session(mixed_model).view("experts", {"text": TEXT, "layer": 4, "position": -2})
    chosen = app.page.locator("[data-expert]").evaluate_all("all => all.map((e) => +e.dataset.expert)")
    assert chosen == [one["expert"] for one in told["experts"]]
    app.page.locator(".shades canvas").first.focus()
    app.page.keyboard.press("ArrowUp")  # the layer before
    app.settle()
    assert app.page.inner_text(".experts h3[aria-live]").startswith("Layer 3")
    assert app.problems() == []
    assert not app.complaints


def test_a_model_without_experts_has_no_place_for_them(app: Watched):
    app.open(f"{HERE}&tab=facts")
    assert app.page.locator(".experts").is_hidden()
