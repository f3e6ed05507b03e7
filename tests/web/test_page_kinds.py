"""A model with a layer of every kind: every room, and every scene of the stage, at each of its layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.web.conftest import HERE, ROOMS, Server, Watched, bars
from tests.web.test_stage import FOUND, SCENES, STAGE, colours, ready, wait

pytestmark = pytest.mark.browser


def test_every_room_of_a_model_with_every_kind_of_layer(visit: Callable[..., Watched], mixed: Server):
    app = visit(mixed, reduced_motion="reduce").open(HERE)
    assert bars(app)
    for room in ROOMS:
        app.room(room)
        assert app.problems() == [], room
        app.shot(f"kinds-{room}")


def test_every_layer_s_grid_is_drawn(visit: Callable[..., Watched], mixed: Server, mixed_model: Any):
    app = visit(mixed, reduced_motion="reduce")
    for layer in range(mixed_model.config.n_layers):
        app.open(f"{HERE}&layer={layer}&head=0&query=3&key=1")
        assert f"Layer {layer}, head 0" in app.page.inner_text(".opened")
        assert app.page.evaluate(INKED) > 8, layer
        attends = layer in (0, 4)
        # What has no queries and keys says so, and nothing else is amiss.
        assert bool(app.problems()) is not attends, (layer, app.problems())
    app.complaints.clear()


def test_every_scene_of_a_model_with_every_kind_of_layer(visit: Callable[..., Watched], mixed: Server):
    app = visit(mixed, reduced_motion="reduce")
    ready(app.open(HERE))
    for name in SCENES:
        app.page.evaluate(f"() => {STAGE}.go('{name}')")
        wait(app, FOUND, 60)
        assert app.page.evaluate(f"() => {STAGE}.found?.problem ?? null") is None, name
        app.page.evaluate(f"() => {STAGE}.seek(1)")
        app.page.wait_for_timeout(60)
        assert colours(app) > 20, name
    for layer in range(5):
        app.page.evaluate(f"() => {STAGE}.zoom.into({{ layer: {layer} }})")
        app.page.wait_for_timeout(60)
        assert colours(app) > 20, layer
    assert not app.complaints


# Shades on the matrix.
INKED = """() => {
    const c = document.querySelector(".scroller canvas");
    return new Set(new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer)).size;
}"""
