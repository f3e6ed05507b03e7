"""A scene's question is asked before the picture, or the sentence over it, gives the answer away."""

from __future__ import annotations

from typing import Any

import pytest

from tests.web.conftest import HERE, Watched
from tests.web.test_stage import FOUND, SCENES, STAGE, ready, wait

# Every text that stands on the canvas after a frame, taken from the browser's own drawing.
WATCH = """() => { const p = CanvasRenderingContext2D.prototype, plain = p.fillText; window.drawn = [];
  p.fillText = function (text, ...at) {
    if (this.globalAlpha > 0.05) window.drawn.push(text);
    return plain.call(this, text, ...at);
  }; }"""


@pytest.fixture
def asked(app: Watched) -> Any:
    ready(app.open(HERE))
    app.page.evaluate(WATCH)

    def at_the_question(name: str) -> list[str]:
        app.page.evaluate(f"() => {STAGE}.go('{name}')")
        wait(app, f"{STAGE}.scene.id === '{name}' && !{STAGE}.scene.fetched && {FOUND}", 60)
        wait(app, f"{STAGE}.quiz.open && {STAGE}.t === {STAGE}.scene.hold")
        app.page.evaluate(f"() => {{ window.drawn = []; {STAGE}.redraw(); }}")
        wait(app, "window.drawn.length")
        drawn: list[str] = app.page.evaluate("() => window.drawn")
        return drawn

    return at_the_question


def test_no_sentence_answers_its_question(app: Watched):
    ready(app.open(HERE))
    for name in SCENES:
        app.page.evaluate(f"() => {STAGE}.go('{name}')")
        wait(app, f"{STAGE}.scene.id === '{name}' && !{STAGE}.scene.fetched && {FOUND}", 60)
        question = app.page.evaluate(f"() => {STAGE}.quiz.make()")
        if question is None or not any(c.isdigit() for c in question["choices"][question["right"]]):
            continue
        assert question["choices"][question["right"]] not in app.page.inner_text(".stage-head"), name


def test_the_row_that_is_asked_for_is_not_drawn_before(app: Watched, asked: Any):
    asked("grid")
    dots = app.page.evaluate(
        f"""() => {{ const p = CanvasRenderingContext2D.prototype, plain = p.arc; let n = 0;
        p.arc = function (x, y, r, ...more) {{ if (r > 0) n++; return plain.call(this, x, y, r, ...more); }};
        {STAGE}.redraw(); return new Promise((done) => setTimeout(() => {{ p.arc = plain; done(n); }}, 150)); }}"""
    )
    query = app.page.evaluate(f"() => {STAGE}.found.arc.query")
    rows = min(query + 1, 16)
    assert dots == sum(range(rows - min(rows, query + 1) + 1, rows))  # the rows above it


def test_no_length_of_a_value_is_drawn_before(app: Watched, asked: Any):
    drawn = asked("values")
    lengths = app.page.evaluate(f"() => [...{STAGE}.found.writes.norm].map((x) => x.toFixed(2))")
    assert len(lengths) > 2
    assert not set(lengths) & set(drawn)


def test_uses_of_a_word_have_not_parted_before(asked: Any):
    drawn = asked("meaning")
    assert not [text for text in drawn if text.endswith("°")]


def test_no_frame_of_a_head_is_drawn_before(app: Watched, asked: Any):
    asked("heads")
    assert app.page.evaluate(f"() => {STAGE}.t") <= 0.68  # where the frames begin to light up
