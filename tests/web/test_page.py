"""The page in a browser: every view and every control, on a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.web.conftest import TEXT, Server, Watched, serve

pytestmark = pytest.mark.browser

ROOMS = ["attention", "depth", "why", "compare", "meaning", "learning", "size"]
HERE = f"#text={quote(TEXT)}"
HOSTILE = "</script><img src=x onerror=document.title='broken'><b>&lt;"


def chips(app: Watched) -> list[str]:
    return app.page.locator(".panel.words .chips .chip").all_text_contents()


def bars(app: Watched) -> list[str]:
    return app.page.locator("[aria-label='Most probable next tokens'] button .num").all_text_contents()


# Every view


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


# Words in and the next word


def test_typing_gives_tokens_and_bars(app: Watched):
    app.open(HERE)
    before = bars(app)
    app.page.fill("#composer", "One mole of carbon")
    app.settle()
    assert "".join(chips(app)).replace("␣", " ") == "One mole of carbon"
    assert bars(app) != before


def test_tab_accepts_the_prediction(app: Watched, tiny_model: Any):
    # The random model often predicts a part of a character, which the page does not offer: take a text where it is one.
    text = next(t for n in range(20) if tiny_model.next(t := "a mole" + " and a mole" * n).top(1)[0].token.isascii())
    app.open(f"#text={quote(text)}")
    ghost = app.page.locator(".ghost").text_content() or ""
    assert ghost == tiny_model.next(text).top(1)[0].token
    app.page.focus("#composer")
    app.page.keyboard.press("Control+End")
    app.page.keyboard.press("Tab")
    assert app.page.input_value("#composer") == text + ghost


def test_examples_words_and_positions(app: Watched):
    app.open()
    app.page.click("text=Avogadro")
    app.settle()
    assert app.page.input_value("#composer").startswith("One mole")
    tokens = len(chips(app))
    app.page.click(".panel.words [data-choice='words']")
    assert len(chips(app)) == 7 < tokens
    app.page.locator(".panel.words .chip").nth(1).click()
    app.settle()
    assert "position" in (app.page.text_content("#next-after") or "")
    app.page.keyboard.press("ArrowRight")
    assert app.page.locator(".panel.words .chip").nth(2).get_attribute("aria-selected") == "true"


def test_sliders_act_without_asking_the_server(app: Watched):
    app.open(HERE)
    asked: list[str] = []
    app.page.on("request", lambda request: asked.append(request.url))
    before = bars(app)
    for name, value in (("temperature", "0.4"), ("top_k", "5"), ("top_p", "0.8"), ("min_p", "0.1")):
        app.page.locator(f"#slider-{name}").fill(value)
    assert bars(app) != before
    assert "kept" in (app.page.locator(".panel.left > .soft.small").nth(1).text_content() or "")
    assert app.page.locator(".prob.cut").count() > 0
    app.page.click("text=As the model says")
    assert bars(app) == before
    assert asked == []


def test_sliders_give_what_sampling_gives(app: Watched, tiny_model: Any):
    """The page's arithmetic is that of the sampler: same order, same cuts, same probabilities."""
    import torch

    from glassformer.generate.sampling import Sampling, adjust, probabilities

    app.open(HERE)
    app.page.locator("#slider-temperature").fill("0.7")
    app.page.locator("#slider-top_k").fill("9")
    logits = tiny_model.logits(TEXT)[-1].float()
    sampling = Sampling(temperature=0.7, top_k=9)
    wanted = probabilities(adjust(logits, sampling, [], []), sampling).sort(descending=True).values[:3]
    shown = [float(row.split("%")[2]) / 100 for row in bars(app)[:3]]
    assert torch.allclose(torch.tensor(shown), wanted.float(), atol=6e-4)


def test_whole_words_and_guessing(app: Watched):
    app.open(HERE)
    app.page.click("[data-unit='words']")
    app.settle()
    assert app.page.locator("[aria-label='Most probable next words'] .prob").count() > 0
    app.page.click("[data-unit='tokens']")
    app.page.click("text=Guess first")
    assert not app.page.locator("[aria-label='Most probable next tokens']").is_visible()
    app.page.fill("[aria-label='Your guess of the next word']", "zebra")
    app.page.keyboard.press("Enter")
    assert "zebra" in (app.page.locator(".panel.left [role='status']").first.text_content() or "")
    assert app.page.locator("[aria-label='Most probable next tokens']").is_visible()


def test_an_alternative_branches_the_text(app: Watched):
    app.open(HERE)
    row = app.page.locator("[aria-label='Most probable next tokens'] button").nth(2)
    text = (row.locator(".what").text_content() or "").replace("␣", " ")
    row.click()
    app.settle()
    if text.isascii() and "‹" not in text:
        assert app.page.input_value("#composer") == TEXT + text


def test_writing_on_can_be_gone_back_through(app: Watched):
    app.open(HERE)
    app.page.fill("[aria-label='Tokens to write']", "6")
    app.page.fill("[aria-label='Seed']", "3")
    app.page.click("#write-on")
    app.page.wait_for_selector("text=/tokens. Choose one/")
    steps = app.page.locator(".writing .chip")
    assert 1 <= steps.count() <= 6
    steps.first.click()
    assert app.page.locator("[aria-label='Alternatives at this step'] button").count() > 1
    app.page.locator(".writing input[type='range']").fill("0")
    assert "Step 1 of" in app.page.inner_text(".writing")
    app.page.click("text=Keep the text up to here")
    app.settle()
    assert app.page.input_value("#composer").startswith(TEXT)


# Inside


def test_attention_from_head_to_number(app: Watched):
    app.open(HERE)
    app.page.click("[data-layer='1'][data-head='2']")
    app.settle()
    assert "Layer 1, head 2" in app.page.inner_text(".opened")
    app.page.focus(".scroller")
    app.page.keyboard.press("ArrowLeft")
    app.page.keyboard.press("ArrowRight")
    app.settle()
    steps = app.page.locator(".step strong").all_text_contents()
    assert steps == ["Query · key", "Scale", "Softmax", "Value", "Effect"]
    box = app.page.locator(".scroller").bounding_box()
    assert box is not None
    app.page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.85)
    assert app.page.locator(".panel.words .chip.hover").count() == 1
    assert "looks at" in app.page.inner_text(".stage [role='status']")
    for key in ("+", "-", "-"):
        app.page.keyboard.press(key)
    app.page.click("text=Average of heads")
    app.settle()
    assert "average" in app.page.inner_text(".opened h3")
    app.page.click("[data-mode='arcs']")
    app.settle()
    assert app.page.locator(".chip.arc").count() == len(chips(app))
    app.page.locator(".chip.arc").first.click()
    app.page.click("[data-choice='role']")
    assert app.page.locator(".field-title").count() >= 1
    app.shot("attention-arcs")


def test_a_cell_shows_the_weight_that_the_model_has(app: Watched, tiny_model: Any):
    weight = float(tiny_model.trace(TEXT).pattern(1, 2)[3, 1])
    app.open(f"{HERE}&layer=1&head=2&query=3&key=1")
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
    assert app.page.locator("[aria-label='Switched off'] button[aria-label^='Switch on']").count() == 3
    app.shot("why-switched-off")
    app.page.click("text=Undo")
    app.page.click("text=All on again")
    app.settle()
    assert app.page.locator("[aria-label^='Switch on']").count() == 0
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
    app.page.wait_for_timeout(300)
    app.settle()
    assert "nats from A" in app.page.inner_text("#room-compare")
    app.page.fill("#other-text", TEXT)
    app.page.select_option("#other-model", "run:little@3")
    app.page.wait_for_timeout(300)
    app.settle()
    assert app.problems()  # another tokenizer: said, not drawn
    app.complaints.clear()
    app.page.select_option("#other-model", "")
    app.page.fill("#other-text", "The American shrew mole is a mole")
    app.page.wait_for_timeout(300)
    for mode in ("lens", "attention"):
        app.page.click(f"#room-compare [data-choice='{mode}']")
        app.settle()
        assert len(app.page.inner_text("#room-compare .compare")) > 40 or app.problems()
    app.complaints.clear()


def test_one_word_in_several_texts(app: Watched):
    app.open().room("meaning")
    assert app.page.locator("#room-meaning svg polyline").count() == 3
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
    assert "steps seen" in app.page.inner_text("#room-learning")
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
    app.page.wait_for_selector("text=random weights")
    assert app.page.locator("#room-size .prob").count() >= 3


# The page as a whole


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


def test_the_tour_from_end_to_end(app: Watched):
    app.open()
    app.page.click("#take-tour")
    seen = []
    while app.page.locator(".tour").is_visible():
        app.settle()
        app.page.wait_for_selector(".lit", state="attached")
        seen.append(app.page.inner_text(".tour h2"))
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
    assert app.page.locator("#room-depth").is_visible()
    app.page.keyboard.press("1")
    app.page.keyboard.press("]")
    app.page.keyboard.press("}")
    app.settle()
    assert "Layer 1, head 1" in app.page.inner_text(".opened")
    app.page.keyboard.press("m")
    assert app.page.locator(".arcs").is_visible()
    app.page.keyboard.press(",")
    app.settle()
    assert "position" in (app.page.text_content("#next-after") or "")
    app.page.keyboard.press("?")
    assert app.page.locator("dialog[aria-label='Keyboard']").is_visible()
    app.page.keyboard.press("Escape")
    app.page.keyboard.press("/")
    assert app.page.evaluate("document.activeElement.id") == "composer"


# What goes wrong


def test_a_text_too_long_is_said(app: Watched):
    app.open(HERE)
    app.page.fill("#composer", "mole " * 200)
    app.settle()
    assert any("reads at most 64" in problem for problem in app.problems())
    app.page.fill("#composer", TEXT)
    app.settle()
    assert app.problems() == []
    app.complaints.clear()


def test_an_empty_text(app: Watched):
    app.open(HERE)
    app.page.fill("#composer", "")
    app.settle()
    assert "Type a text" in app.page.inner_text("#facts")
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
        assert app.page.locator("img").count() == 0
    assert app.page.title() == "Glassformer"
    assert "<img" in "".join(chips(app)).replace("␣", " ")


# Reading it without seeing it


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(visit: Any, server: Server, scheme: str):
    from axe_playwright_python.sync_playwright import Axe

    app = visit(server, color_scheme=scheme, reduced_motion="reduce").open(HERE)
    found: dict[str, Any] = {}
    for room in ROOMS:
        app.room(room)
        for violation in Axe().run(app.page).response["violations"]:
            found[f"{room}: {violation['id']}"] = [node["html"][:160] for node in violation["nodes"][:3]]
    assert not found, json.dumps(found, indent=1)


# Reports


@pytest.fixture
def report(tiny_model: Any, tmp_path: Path) -> Path:
    from glassformer.studio import Studio
    from glassformer.studio.report import build

    path = tmp_path / "report.html"
    path.write_text(build(Studio(tiny_model), TEXT), "utf-8")
    return path


def test_a_report_from_disk_with_the_network_off(visit: Any, report: Path):
    app = visit(None, offline=True)
    asked: list[str] = []
    app.page.on("request", lambda request: asked.append(request.url))
    app.page.goto(report.as_uri())
    app.settle()
    assert bars(app)
    for room in ("attention", "depth", "why", "size"):
        app.room(room)
        assert app.problems() == []
        app.shot(f"report-{room}")
    app.page.locator("#slider-temperature").fill("0.5")
    app.room("attention")
    app.page.focus(".scroller")
    app.page.keyboard.press("ArrowLeft")
    app.settle()
    app.page.locator(".panel.words .chip").nth(1).click()
    app.settle()
    assert "after" in (app.page.text_content("#next-after") or "")
    app.room("why")
    assert "explains the last prediction" in " ".join(app.problems())
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    assert not app.complaints


def test_a_report_from_the_page(app: Watched):
    app.open(HERE)
    with app.page.expect_download(timeout=90_000) as waiting:
        app.page.click("text=Report")
    html = Path(waiting.value.path()).read_text("utf-8")
    assert html.startswith("<!doctype html>")
    assert not re.search(r"""(?:src|href)=["']https?:""", html)


def test_a_report_of_a_hostile_text(visit: Any, tiny_model: Any, tmp_path: Path):
    from glassformer.studio import Studio
    from glassformer.studio.report import build

    path = tmp_path / "hostile.html"
    path.write_text(build(Studio(tiny_model), HOSTILE), "utf-8")
    app = visit(None, offline=True)
    app.page.goto(path.as_uri())
    app.settle()
    assert app.page.input_value("#composer") == HOSTILE
    assert app.page.locator("img").count() == 0
    assert not app.complaints


# Notebooks


def test_the_frame_of_a_notebook(visit: Any, tiny_model: Any, tmp_path: Path):
    """The widget's own module in a page that plays the notebook: questions go out, answers come back."""
    from glassformer.notebook import view
    from glassformer.studio import bundle

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
            self.studio, self.said = widget.studio, {}

        def send(self, data: dict[str, Any]) -> None:
            self.said = data

    ear = Ear()
    if "view" in message:
        sent.append(message)
    _answer(ear, message, None)
    return json.dumps(ear.said)


# On SmolLM2


@pytest.mark.smollm2
def test_smollm2_from_words_to_why(visit: Any, smollm2: Any, runs: Path):
    server = serve(smollm2, runs)
    app = visit(server, reduced_motion="reduce").open("#text=" + quote("The capital of France is"))
    assert app.page.locator(".ghost").text_content() == " Paris"
    for room in ("attention", "depth", "why", "compare", "size"):
        app.room(room)
        assert app.problems() == []
        app.shot(f"smollm2-{room}")
    app.room("why")
    assert "Paris" in app.page.inner_text(".sentence")
    assert not app.complaints
    server.stop()
