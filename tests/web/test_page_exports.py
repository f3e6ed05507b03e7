"""Everything that a room offers is taken away and opened: tables, arrays, drawings, images and lines of Python."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.web.conftest import HERE, ROOMS, TEXT, Watched
from tests.web.test_page_tools import taken

pytestmark = pytest.mark.browser


def arrays(data: bytes) -> dict[str, np.ndarray]:
    held = np.load(io.BytesIO(data), allow_pickle=False)
    return {name: held[name] for name in held.files}


@pytest.mark.parametrize("room", ROOMS)
def test_whatever_a_room_offers_opens(app: Watched, room: str):
    from PIL import Image

    app.page.set_default_timeout(120_000)  # what excites neurons is read meanwhile
    app.open(f"{HERE}&layer=1&head=2").room(room)
    if room == "facts":
        app.page.wait_for_selector("#room-facts [data-output]")  # the first passages
        app.settle()
    which = app.page.locator("[aria-label='Which numbers are taken']")
    offered = [o.get_attribute("value") for o in which.locator("option").all()]
    assert len(offered) > 1
    for name in offered:
        which.select_option(name)
        rows = list(csv.reader(io.StringIO(taken(app, "CSV").decode("utf-8"))))
        assert len(rows) > 1, name
        assert len({len(row) for row in rows}) == 1, name
        found = arrays(taken(app, "npz"))
        assert any(x.size for x in found.values()), name
        app.page.click("text=Copy as Python")
        app.page.wait_for_selector("text=/on the clipboard/")
        compile(app.page.locator(".tool-row [data-lines]").get_attribute("data-lines") or "", name or room, "exec")
    drawing = ElementTree.fromstring(taken(app, "SVG"))
    assert drawing.tag.endswith("svg")
    assert float(drawing.get("width", "0")) > 300
    with app.page.expect_download() as waiting:
        app.page.click("text=Image")
    with Image.open(Path(waiting.value.path())) as image:
        assert min(image.size) > 100
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20


def test_numbers_leave_with_the_sign_and_size_they_have(app: Watched):
    """Vectors are signed bytes, and a neuron's number may need more than sixteen bits."""
    app.open(HERE)
    app.page.locator("[aria-label='Which numbers are taken']").select_option("stage")
    found = arrays(taken(app, "npz"))
    asked = {"text": TEXT, "model": None, "edits": [], "position": -1, "threshold": 0.1}
    address = app.server.address.split("/?")[0] + "/api/view/stage"
    answer = app.page.request.post(address, data=json.dumps(asked)).json()
    from tests.views.helpers import numbers

    assert found["lanes.q"].min() < 0
    assert np.array_equal(found["lanes.q"], numbers(answer["lanes"]["q"]))
    assert found["neurons.index"].dtype == np.int32
    assert np.array_equal(found["neurons.index"], numbers(answer["neurons"]["index"]))
