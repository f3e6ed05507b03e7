"""The facts room in a browser: its numbers are the view's, and a neuron is switched off where it is read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.web.conftest import HERE, TEXT, Watched, bars

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
