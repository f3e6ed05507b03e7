"""The rooms in a browser: every view and its controls, on a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.web.conftest import HERE, ROOMS, TEXT, Watched, bars, chips
from tests.web.test_page_reasons import view

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("room", ROOMS)
def test_every_view_draws(app: Watched, room: str):
    app.open(HERE).room(room)
    assert app.problems() == []
    panel = app.page.locator(f"#room-{room}")
    assert panel.is_visible()
    assert len(panel.inner_text()) > 60
    app.shot(room)


def test_the_page_opens_where_its_address_says(app: Watched):
    app.open(f"{HERE}&tab=depth&position=2&temperature=0.5")
    assert app.page.locator("#tab-depth").get_attribute("aria-selected") == "true"
    assert app.page.locator(".panel.words .chip[aria-selected='true']").get_attribute("data-position") == "2"
    assert app.page.locator("#slider-temperature").input_value() == "0.5"


@pytest.mark.parametrize(
    "fragment", ["#text=%ZZ&layer=x", "#layer=%22a%22&temperature=%7B%7D", "#constructor=1&edits=3"]
)
def test_an_address_that_makes_no_sense_is_passed_over(app: Watched, fragment: str):
    app.open(fragment)
    assert app.problems() == []
    assert bars(app)


def test_attention_from_head_to_number(app: Watched):
    app.open(HERE)
    app.page.click("[data-layer='1'][data-head='2']")
    app.settle()
    assert "Layer 1, head 2" in app.page.inner_text(".opened")
    app.page.focus(".scroller")
    app.page.keyboard.press("ArrowLeft")
    app.page.keyboard.press("ArrowRight")
    app.page.keyboard.press("Enter")
    app.settle()
    steps = app.page.locator(".step strong").all_text_contents()
    assert steps[1:] == ["Query · key", "Scale, mask, softmax", "Value", "Addition", "Effect"]
    app.page.evaluate("document.querySelector('.scroller').scrollIntoView({ block: 'center' })")  # the cell is tall
    box = app.page.locator(".scroller").bounding_box()
    assert box is not None
    app.page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.85)
    assert app.page.locator(".panel.words .chip.hover").count() == 1
    assert "looks at" in app.page.inner_text(".stage [role='status']")
    for key in ("+", "-", "-"):
        app.page.keyboard.press(key)
    wide = "document.querySelector('.ground').offsetWidth"
    before = app.page.evaluate(wide)
    app.page.click("[aria-label='Zoom in']")
    assert app.page.evaluate(wide) > before
    app.page.click("[aria-label='The whole matrix']")
    box = app.page.locator(".scroller").bounding_box()
    assert box is not None
    assert app.page.evaluate(wide) <= box["width"]
    app.page.click("text=Average of heads")
    app.settle()
    assert "average" in app.page.inner_text(".opened h3")
    app.page.click("[data-choice='arcs']")
    app.settle()
    assert app.page.locator(".chip.arc").count() == len(chips(app))
    app.page.locator(".chip.arc").first.click()
    app.page.click("[data-choice='role']")
    assert app.page.locator(".field-title").count() >= 1
    app.shot("attention-arcs")


def test_another_head_keeps_the_zoom_and_another_text_does_not(app: Watched):
    app.open(HERE)
    wide = "document.querySelector('.ground').offsetWidth"
    fitted = app.page.evaluate(wide)
    app.page.click("[aria-label='Zoom in']")
    nearer = app.page.evaluate(wide)
    assert nearer > fitted
    app.page.click("[data-layer='2'][data-head='1']")
    app.settle()
    assert app.page.evaluate(wide) == nearer
    app.page.fill("#composer", TEXT + " a")
    app.settle()
    assert app.page.evaluate(wide) != nearer


def test_what_changed_while_another_room_was_open_is_drawn(app: Watched):
    app.open(HERE).room("depth")
    app.page.fill("#composer", "the cat")
    app.settle()
    app.room("attention")
    n = len(chips(app))
    cells = "document.querySelector('.ground').offsetWidth"
    app.page.wait_for_function(f"{cells} > 0")
    asked = app.page.evaluate("document.querySelector('.scroller canvas').width")
    assert asked > 0
    # As many columns as tokens are painted, and none of the longer text before.
    painted = """() => {
      const c = document.querySelector('.scroller canvas');
      const row = c.getContext('2d').getImageData(0, c.height - 12, c.width, 1).data;
      let last = 0;
      for (let i = 0; i < c.width; i++) if (row[4 * i + 3]) last = i;
      return last / c.width;
    }"""
    assert n < 7
    assert app.page.evaluate(painted) > 0.9


def test_scrolling_is_not_weighed_down_by_the_rest_of_the_page(app: Watched):
    """What each frame would have to put together anew: a canvas for every head, glass over everything."""
    app.open(HERE)
    assert app.page.locator("canvas").count() <= 2
    blurred = "[...document.querySelectorAll('*')].filter((e) => getComputedStyle(e).backdropFilter !== 'none').length"
    assert app.page.evaluate(blurred) == 0


def test_a_cell_shows_the_weight_that_the_model_has(app: Watched, tiny_model: Any):
    weight = float(tiny_model.trace(TEXT).pattern(1, 2)[3, 1])
    app.open(f"{HERE}&layer=1&head=2&query=3&key=1").see(".cell")
    assert f"{100 * weight:.2f}%" in app.page.inner_text(".steps")
    app.shot("cell")


def test_parts_switched_off_and_on_again(app: Watched):
    app.open(HERE).room("why")
    app.page.locator(".waterfall:not(.sum) button.part").filter(has_text="feed").first.click()
    app.settle()
    assert app.page.locator(".effect h3").all_text_contents() == ["Before", "After"]
    app.page.locator(".chip.word").nth(1).click()
    app.settle()
    app.page.locator(".neuron").first.click()
    app.settle()
    assert app.page.locator(".changed [aria-label^='Take back']").count() == 3
    app.shot("why-switched-off")
    app.page.click("#undo-edit")
    app.page.click("#all-on")
    app.settle()
    assert not app.page.locator(".changed").is_visible()
    assert app.page.locator(".effect h3").count() == 0


def test_why_this_rather_than_that(app: Watched):
    app.open(HERE).room("why")
    app.page.fill("[aria-label='Token to explain']", " a")
    app.page.fill("[aria-label='Compared with']", " the")
    app.page.click("text=Explain")
    app.settle()
    assert "the" in app.page.inner_text(".sentence")
    app.page.fill("[aria-label='Token to explain']", "no such token at all")
    app.page.click("text=Explain")
    app.settle()
    assert app.problems()
    app.complaints.clear()  # the browser logs the refusal, too


def test_comparing(app: Watched):
    app.open(HERE).room("compare")
    app.page.fill("#other-text", TEXT.replace("shrew", "carbon"))
    app.settle()
    assert "nats from A" in app.page.inner_text("#room-compare")
    app.page.fill("#other-text", TEXT)
    app.page.select_option("#other-model", "run:little@3")
    app.settle()
    assert app.problems()  # another tokenizer: said, not drawn
    app.complaints.clear()
    app.page.select_option("#other-model", "")
    app.page.fill("#other-text", "The American carbon mole is a small")
    app.settle()
    compare = app.page.locator("#room-compare .compare")
    for mode, said in (("lens", "another first choice"), ("attention", "Heads that look elsewhere"), ("patch", "100%")):
        app.page.click(f"#room-compare [aria-label='Compare'] [data-choice='{mode}']")
        app.settle()
        assert said in compare.inner_text()
    app.page.click("#room-compare [aria-label='What is carried over'] [data-choice='heads']")
    app.settle()
    assert "head 3" in compare.inner_text()
    app.shot("patching")
    app.page.fill("#other-text", TEXT)
    app.page.select_option("#other-model", "run:little@3")
    app.settle()
    assert "choose the same model for both" in " ".join(app.problems())
    app.complaints.clear()


def test_two_texts_are_compared_after_the_chosen_token(app: Watched, tiny_model: Any):
    other = TEXT.replace("shrew", "carbon")
    app.open(f"{HERE}&position=3&other={quote(json.dumps({'text': other}))}").room("compare")
    for side, text in (("A", TEXT), ("B", other)):
        told = app.page.locator(f"#room-compare [aria-label='{side}'] .num").first.text_content()
        assert float((told or "").strip(" %")) / 100 == pytest.approx(tiny_model.trace(text).top(3, 1)[0][2], abs=6e-4)


def test_every_token_s_surprise_stands_over_the_text(app: Watched):
    app.open(HERE).room("depth")
    told = view(app, "surprise", text=TEXT)
    drawn = app.page.eval_on_selector_all("[data-surprise]", "(all) => all.map((e) => Number(e.dataset.surprise))")
    assert drawn == pytest.approx(told["losses"])
    app.page.locator("[data-surprise]").nth(1).click()
    app.settle()
    assert "position 1" in (app.page.text_content("#next-after") or "")
    app.open("#text=a&tab=depth")
    assert app.problems() == []
    assert app.page.locator("[data-surprise]").count() == 0


def test_a_head_is_followed_through_texts_of_one_s_own(app: Watched, tmp_path: Path):
    app.open(f"{HERE}&layer=1&head=2").see(".corpus")
    app.page.click(".corpus summary")
    app.page.click(".corpus button")
    assert "Paste a text" in app.page.inner_text(".corpus [role=status]")
    lines = [f"The mole number {i} is a small bank of the sea.\n" for i in range(40)]
    (tmp_path / "own.txt").write_text("".join(lines), "utf-8")
    app.page.set_input_files(".corpus input[type=file]", tmp_path / "own.txt")
    app.page.click(".corpus button")
    app.page.wait_for_selector(".corpus [role=status]:has-text('piece 2 of 2')")
    text = "".join(lines)
    cut = text.rindex("\n", 0, 1500) + 1
    whole = view(app, "corpus", kind="head", layer=1, index=2, top=12, texts=[text[:cut], text[cut:]])
    drawn = app.page.eval_on_selector_all(".corpus [data-strength]", "(all) => all.map((e) => +e.dataset.strength)")
    assert drawn == pytest.approx([p["strength"] for p in whole["passages"]])
    assert app.page.locator(".corpus [data-decile]").count() == 10
    app.shot("corpus")
    app.page.keyboard.press("]")  # another layer: what was read is of the one before
    app.page.keyboard.press("}")
    assert app.page.locator(".corpus [data-decile]").count() == 0


OVER = """() => {
    const boxes = [...document.querySelectorAll(".moves text")].map((e) => [e.textContent, e.getBoundingClientRect()]);
    return boxes.flatMap(([a, x], i) => boxes.slice(i + 1).filter(([, y]) =>
        x.left + 2 < y.right && y.left + 2 < x.right && x.top + 4 < y.bottom && y.top + 4 < x.bottom
    ).map(([b]) => `${a} over ${b}`));
}"""


# Numbers of steps that a line passes through, by their boxes in the picture's own units.
CROSSED = """() => {
    const lines = [...document.querySelectorAll(".moves polyline, .moves .push line")].map((e) => {
        const all = Array.from({ length: 400 }, (_, i) => e.getPointAtLength((e.getTotalLength() * i) / 399));
        return all.map((p) => [p.x, p.y]);
    });
    return [...document.querySelectorAll(".moves .of-step")].filter((e) => {
        const b = e.getBBox();
        return lines.flat().some(([x, y]) => x > b.x && x < b.x + b.width && y > b.y + 2 && y < b.y + b.height - 2);
    }).map((e) => e.textContent);
}"""


def test_no_name_of_a_dot_or_a_step_lies_over_another(app: Watched):
    app.open().room("meaning").see(".moves")
    slider = app.page.locator(".figure input[type='range']").first
    last = int(slider.get_attribute("max") or 0)
    for place in (0, 1, last // 2, last):
        slider.fill(str(place))
        assert app.page.evaluate(OVER) == [], place
        assert app.page.evaluate(CROSSED) == [], place
        assert app.page.locator(".moves .of-dot").count() == 3
        assert app.page.locator(".moves .of-step").count() == app.page.locator(".pushes li").count()


def test_one_word_in_several_texts(app: Watched):
    app.open().room("meaning")
    assert app.page.locator("#room-meaning svg.chart polyline").count() == 3
    app.page.fill("#meaning-texts", "The mole\nNo such word")
    app.page.click("text=Lay side by side")
    app.settle()
    assert "is not in" in " ".join(app.problems())
    app.complaints.clear()


def test_a_run_and_its_checkpoints_through_every_view(app: Watched):
    app.open("#text=the cat").room("learning")
    assert app.page.locator("[data-run='little']").count() == 1
    assert app.page.locator("#room-learning svg.chart polyline").count() == 2
    assert "What it wrote" in app.page.inner_text("#room-learning")
    told = app.page.inner_text("#room-learning")
    assert "steps seen" in told
    assert "after “the cat”" in told
    assert re.search(r"most induction\s+layer \d, head \d: \d+% \(3\) → \d+% \(6\)", told), told
    app.page.click("text=Look inside this run")
    app.settle()
    assert "little" in app.page.inner_text(".model")
    app.page.locator("#checkpoint").fill("0")
    app.settle()
    assert "step 3" in app.page.inner_text(".model")
    for room in ("attention", "depth", "why", "size"):
        app.room(room)
        assert app.problems() == []
    app.page.locator(".checkpoints input").fill("1")  # also beside the model's name, whatever room is open
    app.settle()
    assert "step 6" in app.page.inner_text(".model")
    app.room("learning")
    app.page.click("text=Take one step")
    app.settle()
    assert "the gradient promised" in app.page.inner_text("#room-learning")
    for curve in ("tokens_per_second", "rate", "gradient_norm"):
        app.page.click(f"#room-learning [data-choice='{curve}']")
    app.page.click("text=Back to the model")
    app.settle()
    assert app.problems() == []


def test_the_race(app: Watched):
    app.open(HERE).room("size")
    app.page.click("#race")
    app.page.wait_for_selector("#room-size >> text=random weights")
    assert app.page.locator("#room-size .prob").count() >= 3
