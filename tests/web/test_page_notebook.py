"""The notebook's frame: questions go out, answers come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.web.conftest import TEXT

pytestmark = pytest.mark.browser


def test_the_frame_of_a_notebook(visit: Any, tiny_model: Any, tmp_path: Path):
    """The widget's own module in a page that plays the notebook: questions go out, answers come back."""
    from glassformer.notebook import view
    from glassformer.views import bundle

    widget = view(tiny_model, TEXT, rooms=["attention", "why"])
    module = (bundle.WEB / "js" / "notebook.js").read_text("utf-8")
    app = visit(None)
    sent: list[dict[str, Any]] = []
    app.page.expose_function("kernel", lambda message: answer(widget, sent, message))
    path = tmp_path / "notebook.html"
    held = json.dumps({"page": widget.page, "height": 700}).replace("<", "\\u003c")
    path.write_text(
        f"<!doctype html><div id=cell></div><script>const state = {held};</script><script type=module>"
        f"{module.replace('export default', 'const widget =')}\n"
        "const model = {get: (name) => state[name], on: (event, call) => { model.hear = call; }, off() {},"
        "send: async (message) => model.hear(JSON.parse(await kernel(message)))};"
        "widget.render({model, el: document.getElementById('cell')});</script>",
        "utf-8",
    )
    app.page.goto(path.as_uri())
    frame = app.page.frame_locator("iframe")
    frame.locator("[aria-label='Most probable next tokens'] button").first.wait_for()
    frame.locator("#tab-why").click()
    frame.locator(".sentence").wait_for(timeout=60_000)
    assert {"tokens", "next", "why"} <= {message["view"] for message in sent}
    assert not app.complaints


def answer(widget: Any, sent: list[dict[str, Any]], message: dict[str, Any]) -> str:
    """What the kernel's side gives for a message of the frame."""
    from glassformer.notebook import _answer

    class Ear:
        def __init__(self) -> None:
            self.session, self.said = widget.session, {}

        def send(self, data: dict[str, Any]) -> None:
            self.said = data

    ear = Ear()
    if "view" in message:
        sent.append(message)
    _answer(ear, message, None)
    return json.dumps(ear.said)
