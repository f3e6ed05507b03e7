"""The page as a whole: the model, the tour, sharing, themes, widths, keys, and reading it without seeing it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.web.conftest import HERE, ROOMS, TEXT, Server, Watched

pytestmark = pytest.mark.browser


def test_choosing_a_model(app: Watched):
    app.open("#text=the cat")
    app.page.click("button.model")
    app.page.wait_for_selector("[data-model='smollm2']")
    app.page.fill("[aria-label='A path, or org/name of the hub']", "nobody/nothing")
    app.page.click(".chooser form button[type='submit']:text('Open')")
    app.page.wait_for_selector("text=There is no model called nobody/nothing")
    app.page.click("[data-model='run:little']")
    app.page.wait_for_selector(".chooser", state="hidden")
    app.settle()
    assert "step 6" in app.page.inner_text(".model")
    assert app.problems() == []


# Whether what the tour lights comes into sight within three seconds.
IN_SIGHT = """async () => {
    for (let i = 0; i < 60; i++) {
        const lit = document.querySelector(".lit")?.getBoundingClientRect();
        if (lit && lit.top < innerHeight - 40 && lit.bottom > 40) return true;
        await new Promise((done) => setTimeout(done, 50));
    }
    return false;
}"""


def test_the_tour_from_end_to_end(app: Watched):
    app.open()
    app.page.click("#take-tour")
    app.page.wait_for_selector(".tour")  # its script comes when it is wanted
    seen = []
    while app.page.locator(".tour").is_visible():
        app.settle()
        app.page.wait_for_selector(".lit", state="attached")
        seen.append(app.page.inner_text(".tour h2"))
        assert app.page.evaluate(IN_SIGHT), seen[-1]
        assert app.problems() == [], seen[-1]
        app.page.click(".tour .primary")
    assert seen == [
        "Words", "Vectors", "Attention", "One cell", "Many heads", "Feed-forward", "Layers", "Next word", "Why",
        "Training", "Size",
    ]  # fmt: skip
    assert app.page.locator(".lit").count() == 0
    app.page.click("#take-tour")
    app.page.keyboard.press("ArrowRight")
    assert app.page.inner_text(".tour h2") == "Vectors"
    app.page.keyboard.press("Escape")
    assert not app.page.locator(".tour").is_visible()


def test_a_link_restores_the_view(app: Watched):
    app.open(HERE).room("depth")
    app.page.locator("#slider-temperature").fill("0.6")
    app.page.click("text=Copy link")
    fragment = "#" + app.page.url.partition("#")[2]
    app.open(fragment)
    assert app.page.input_value("#composer") == TEXT
    assert app.page.locator("#tab-depth").get_attribute("aria-selected") == "true"
    assert app.page.locator("#slider-temperature").input_value() == "0.6"


def test_an_image_of_a_view(app: Watched):
    app.open(HERE)
    with app.page.expect_download() as waiting:
        app.page.click("text=Image")
    path = Path(waiting.value.path())
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size > 10_000


UNTRUE = r"darker|brighter|lighter|\b1 (words|tokens|parts|heads|layers)\b|larger than 100|blocks\.\d"
EVERYTHING = """() => {
    const labels = [...document.querySelectorAll("[title], [aria-label]")]
        .flatMap((one) => [one.getAttribute("title"), one.getAttribute("aria-label")]);
    const hints = [...document.querySelectorAll("[role=tabpanel]:not([hidden]) *")].slice(0, 3000).map((one) => {
        one.dispatchEvent(new PointerEvent("pointermove", { clientX: 9, clientY: 9 }));
        return document.querySelector(".tip")?.textContent;
    });
    return [document.body.innerText, ...labels, ...new Set(hints)].join("\\n");
}"""


@pytest.mark.parametrize(("theme", "text"), [("light", TEXT), ("dark", "a")])
def test_no_room_says_what_is_true_in_one_theme_or_number_only(app: Watched, theme: str, text: str):
    app.open(f"#text={quote(text)}")
    app.page.click(f"[aria-label='Theme'] [data-choice='{theme}']")
    for room in ROOMS:
        app.room(room)
        said = app.page.evaluate(EVERYTHING)
        assert not re.findall(f".*(?:{UNTRUE}).*", said), room
        assert room != "why" or "of its kind" in said


PLACE = """([room, word]) => {
    const walk = document.createTreeWalker(document.querySelector(room), NodeFilter.SHOW_TEXT);
    for (let node = walk.nextNode(); node; node = walk.nextNode()) {
        const at = node.data.indexOf(word);
        if (at < 0) continue;
        const range = document.createRange();
        range.setStart(node, at);
        range.setEnd(node, at + word.length);
        const box = range.getBoundingClientRect();
        return [box.left + box.width / 2, box.top + box.height / 2];
    }
}"""


@pytest.mark.parametrize(
    ("lang", "word", "says"), [("en", "stream", "runs along a token"), ("de", "Schicht", "Stapel")]
)
def test_a_term_under_the_pointer_is_explained(app: Watched, lang: str, word: str, says: str):
    app.open(f"{HERE}&tab=depth&lang={lang}").see("#room-depth h2 >> nth=0")
    app.page.wait_for_timeout(600)  # terms are underlined when the page is at rest
    assert app.page.evaluate("CSS.highlights.get('term').size") > 5
    x, y = app.page.evaluate(PLACE, ["#room-depth", word])
    tip = app.page.locator(".tip")
    app.page.mouse.move(x, y)
    assert says in tip.inner_text()
    app.page.mouse.move(2, 2)
    assert tip.is_hidden()
    app.page.hover("#room-depth table td >> nth=3")  # what says its own is not talked over
    assert "%" in tip.inner_text()
    app.page.keyboard.press("?")
    assert app.page.locator("dialog[open] .terms dt").count() > 30


def test_themes_and_large_type(app: Watched):
    app.open(HERE)
    grounds = set()
    for theme in ("light", "dark"):
        app.page.click(f"[aria-label='Theme'] [data-choice='{theme}']")
        grounds.add(app.page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    assert len(grounds) == 2
    size = "getComputedStyle(document.documentElement).fontSize"
    small = app.page.evaluate(size)
    app.page.click("text=Large type")
    assert float(app.page.evaluate(size)[:-2]) > 1.2 * float(small[:-2])
    app.shot("large")
    # Type follows the size that the reader gave the browser.
    fonts = {"fontSizes": {"standard": 24, "fixed": 21}}
    app.page.context.new_cdp_session(app.page).send("Page.setFontSizes", fonts)
    app.page.click("text=Large type")
    assert app.page.evaluate(size) == "24px"
    app.settle()
    assert app.page.evaluate("document.querySelector('.stage-room').stage.size") >= 21
    assert app.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [375, 1000, 2560])
def test_every_width(app: Watched, width: int):
    app.page.set_viewport_size({"width": width, "height": 900})
    app.open(HERE)
    for room in ROOMS:
        app.room(room)
        assert app.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), room
        app.shot(f"{room}-{width}")


def test_keys(app: Watched):
    app.open(HERE)
    app.page.locator("body").press("2")
    app.page.wait_for_selector("#room-depth")
    app.page.keyboard.press("1")
    app.page.keyboard.press("]")
    app.page.keyboard.press("}")
    app.settle()
    assert "Layer 1, head 1" in app.page.inner_text(".opened")
    app.page.keyboard.press("m")
    assert app.page.locator(".arcs").is_visible()
    app.page.locator(".panel.left").scroll_into_view_if_needed()  # what is not seen asks for nothing
    app.page.keyboard.press(",")
    app.settle()
    assert "position" in (app.page.text_content("#next-after") or "")
    app.page.keyboard.press("?")
    assert app.page.locator("dialog[aria-label='Keyboard']").is_visible()
    app.page.keyboard.press("Escape")
    app.page.keyboard.press("/")
    assert app.page.evaluate("document.activeElement.id") == "composer"


def everything_open(app: Watched) -> None:
    """Graph of the prediction, circuit, dials of words, layers and heads: all that waits for a click."""
    app.page.click(".nodes-form button")
    app.page.fill("[aria-label='A text that ends differently']", app.page.input_value("#composer")[:-1] + "x")
    app.page.click(".circuit-form button")
    app.page.evaluate("document.querySelectorAll('#room-why details').forEach((d) => { d.open = true; })")
    app.settle()
    assert app.page.locator(".nodes .node").count()
    assert app.page.locator("#room-why .knob").count() > 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(visit: Any, server: Server, scheme: str):
    from axe_playwright_python.sync_playwright import Axe

    app = visit(server, color_scheme=scheme, reduced_motion="reduce").open(HERE)
    found: dict[str, Any] = {}
    for room in ROOMS:
        app.room(room)
        if room == "why":
            everything_open(app)
        # Rooms stay in the page: it is looked through whole with the first and with all of them.
        context = None if room in (ROOMS[0], ROOMS[-1]) else f"#room-{room}"
        for violation in Axe().run(app.page, context=context).response["violations"]:
            found[f"{room}: {violation['id']}"] = [node["html"][:160] for node in violation["nodes"][:3]]
    assert not found, json.dumps(found, indent=1)
