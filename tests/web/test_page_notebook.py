"""The notebook's frame: questions go out, answers come back."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.web.conftest import HERE, TEXT, serve

pytestmark = pytest.mark.browser


def framed(visit: Any, widget: Any, tmp_path: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The widget's own module in a page that plays the notebook, and the questions that its frame asks."""
    from glassformer.views import bundle

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
    return app, sent


def test_the_frame_of_a_notebook(visit: Any, tiny_model: Any, tmp_path: Path):
    from glassformer.notebook import view

    app, sent = framed(visit, view(tiny_model, TEXT, rooms=["attention", "why"]), tmp_path)
    frame = app.page.frame_locator("iframe")
    frame.locator("[aria-label='Most probable next tokens'] button").first.wait_for()
    frame.locator("#tab-why").click()
    frame.locator(".sentence").wait_for(timeout=60_000)
    assert {"tokens", "next", "why"} <= {message["view"] for message in sent}
    assert not app.complaints


SIGNS = {"induction": "◆", "duplicate": "◇", "previous": "◐", "first": "●", "self": "○", None: ""}
MARKS = "(all) => Object.fromEntries(all.map((one) => [`${one.dataset.layer}.${one.dataset.head}`, one.textContent]))"


def test_heads_have_the_same_marks_in_a_notebook_as_on_the_page(
    visit: Any, runs: Path, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from glassformer.interp import heads
    from glassformer.lm import Model
    from glassformer.notebook import view

    monkeypatch.setattr(heads, "CLEAR", 0.02)  # no head of a random model does anything clearly
    model = Model(copy.deepcopy(tiny_model.transformer), tiny_model.tokenizer, name="copy")
    with torch.no_grad():
        model.transformer.blocks[0].attn.q.weight.mul_(40)
    names = model.heads().names()
    right = {f"{layer}.{head}": SIGNS[name] for layer, row in enumerate(names) for head, name in enumerate(row)}
    assert len(set(right.values())) > 1
    static = tmp_path / "static.html"
    static.write_text(view(model, TEXT, rooms=["attention"], live=False).page, "utf-8")
    alone = visit(None)
    alone.page.goto(static.as_uri())
    notebook, _ = framed(visit, view(model, TEXT, rooms=["attention"]), tmp_path)
    server = serve(model, runs)
    for place in (visit(server).open(HERE).page, notebook.page.frame_locator("iframe"), alone.page):
        place.locator("#heads-note", has_text="◆").wait_for()
        assert place.locator(".thumb").evaluate_all(MARKS) == right
    server.stop()


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
