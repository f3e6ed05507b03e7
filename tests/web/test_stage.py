"""The stage in a browser: what it draws is what the API says, it moves, and every key works."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.web.conftest import HERE, TEXT, Server, Watched

STAGE = "document.querySelector('.stage-room').stage"


def wait(watched: Watched, expression: str, seconds: float = 20) -> Any:
    """Until a JavaScript expression is true; the page's policy forbids `wait_for_function`."""
    for _ in range(int(seconds * 20)):
        if found := watched.page.evaluate(f"() => {expression}"):
            return found
        watched.page.wait_for_timeout(50)
    raise AssertionError(f"never: {expression}")


def ready(watched: Watched) -> Watched:
    wait(watched, f"{STAGE}?.data && {STAGE}.machine")
    return watched


@pytest.fixture
def moving(visit: Callable[..., Watched], server: Server) -> Iterator[Watched]:
    """The page for those who like motion."""
    watched = visit(server)
    yield watched
    assert not watched.complaints


def colours(watched: Watched) -> int:
    """How many colours stand on the canvas."""
    return watched.page.evaluate(
        """() => { const c = document.querySelector('.stage-view canvas');
        const d = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);
        return new Set(d).size; }"""
    )


def test_what_is_drawn_is_what_the_api_says(app: Watched):
    ready(app.open(HERE))
    asked = {"text": TEXT, "model": None, "edits": [], "position": -1, "threshold": 0.1}
    answer = app.page.request.post(app.server.address.split("/?")[0] + "/api/view/stage", data=json.dumps(asked)).json()
    read = app.page.evaluate(
        f"""() => {{ const d = {STAGE}.data; return {{
        tokens: d.tokens.map((t) => t.text), first: Array.from(d.lanes.row(d.lane(1, 2))), arcs: d.arcs.length,
        strongest: d.arcs[0] ?? null, next: d.next[0], places: d.places, norm: d.lanes.norm[d.lane(2, 3)] }}; }}"""
    )
    assert read["tokens"] == [t["text"] for t in answer["tokens"]]
    assert read["next"] == answer["next"][0]
    assert read["arcs"] == answer["arcs"]["count"]
    assert read["places"] == 2 * answer["layers"] + 1
    from tests.views.test_stage import numbers, vectors

    exact, _ = vectors(answer["lanes"])
    assert read["first"] == pytest.approx(exact[1, 2].tolist(), rel=1e-5)
    assert read["norm"] == pytest.approx(float(numbers(answer["lanes"]["norm"])[2, 3]))
    assert read["strongest"]["share"] == pytest.approx(float(numbers(answer["arcs"]["share"])[0]))


def test_a_long_text_s_columns_stand_before_its_layers_have_run(moving: Watched):
    """However long that takes: the text put in later shows its words at once."""
    ready(moving.open(HERE))
    moving.page.route("**/api/view/stage", lambda route: None)  # its answer takes as long as one likes
    moving.page.evaluate(f"() => {{ {STAGE}.long = 10; {STAGE}.state.set({{text: 'a mole of carbon'}}); }}")
    assert wait(moving, f"{STAGE}.data.early && {STAGE}.data.tokens.map((t) => t.text).join('')") == "a mole of carbon"
    assert moving.page.locator(".stage-view").get_attribute("aria-busy") == "true"


def test_it_moves_by_itself_waits_for_a_guess_and_scores_it(moving: Watched):
    ready(moving.open(HERE))
    wait(moving, f"{STAGE}.t > 0.02")
    moving.page.evaluate(f"() => {{ {STAGE}.t = 0.75; }}")
    wait(moving, f"!{STAGE}.playing")
    assert 0.75 < moving.page.evaluate(f"() => {STAGE}.t") < 0.9
    right = moving.page.evaluate(f"() => {STAGE}.quiz.make().right")
    moving.page.locator(".question .choice").nth(right).click()
    assert "Right" in moving.page.inner_text(".question .result")
    wait(moving, f"{STAGE}.t === 1")
    assert colours(moving) > 200


def test_a_wrong_guess_gets_the_answer_and_a_reason(app: Watched):
    ready(app.open(HERE))
    question = app.page.evaluate(f"() => {STAGE}.quiz.make()")
    wrong = (question["right"] + 1) % len(question["choices"])
    app.page.locator(".question .choice").nth(wrong).click()
    said = app.page.inner_text(".question .result")
    assert question["choices"][question["right"]] in said
    assert question["because"] in said
    assert app.page.inner_text(".question").count("0 of 1 right") == 1


def test_keys_scrub_and_play(app: Watched):
    ready(app.open(HERE))
    app.page.focus(".stage-view canvas")
    app.page.keyboard.press("Home")
    app.page.keyboard.press("ArrowRight")
    assert app.page.evaluate(f"() => {STAGE}.t") == pytest.approx(0.02)
    app.page.keyboard.press("Space")  # no motion wanted: on to the next still
    assert app.page.evaluate(f"() => {STAGE}.t") > 0.1
    assert not app.page.evaluate(f"() => {STAGE}.playing")
    app.page.keyboard.press("End")
    assert app.page.evaluate(f"() => {STAGE}.t") == 1


def test_own_words_are_drawn_at_once(app: Watched):
    ready(app.open(HERE))
    app.page.fill("#composer", "The mole is small")
    wait(app, f"{STAGE}.data.tokens.map((t) => t.text).join('') === 'The mole is small'")


@pytest.mark.parametrize("width", [375, 1400, 2560])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_part_stands_outside(visit: Callable[..., Watched], server: Server, width: int, scheme: str):
    size = {"width": width, "height": 812 if width == 375 else 900}
    watched = visit(server, viewport=size, color_scheme=scheme, reduced_motion="reduce")
    ready(watched.open(HERE))
    watched.page.evaluate(f"() => {STAGE}.seek(1)")
    watched.page.wait_for_timeout(200)
    assert colours(watched) > 100
    outside = watched.page.evaluate(
        """() => { const box = document.querySelector('.stage-view').getBoundingClientRect();
        return [...document.querySelectorAll('.stage-parts .part')].filter((e) => { const b = e.getBoundingClientRect();
        return b.left < box.left - 2 || b.right > box.right + 2 || b.top < box.top - 2 || b.bottom > box.bottom + 2; })
        .map((e) => e.ariaLabel); }"""
    )
    assert outside == []
    assert watched.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    watched.shot(f"stage-machine-{width}-{scheme}")
    assert not watched.complaints


SCENES = [
    "machine", "numbers", "meaning", "grid", "softmax", "values", "heads", "facts", "layers", "answer", "temperature",
    "why", "learning", "size",
]  # fmt: skip
FOUND = f"(!{STAGE}.scene.need || {STAGE}.found)"


@pytest.mark.parametrize("width", [375, 1400])
def test_every_scene_draws_asks_and_has_an_address(visit: Callable[..., Watched], server: Server, width: int):
    watched = visit(server, viewport={"width": width, "height": 900}, reduced_motion="reduce")
    ready(watched.open(HERE))
    assert watched.page.evaluate(f"() => [...{STAGE}.around.list.options].map((o) => o.value)") == SCENES
    for name in SCENES[1:]:
        watched.page.evaluate(f"() => {STAGE}.step(1)")
        wait(watched, FOUND, 60)
        assert watched.page.evaluate(f"() => {STAGE}.found?.problem ?? null") is None
        watched.page.evaluate(f"() => {{ {STAGE}.held = true; {STAGE}.seek(1); }}")
        watched.page.wait_for_timeout(100)
        assert watched.page.evaluate("() => location.hash").count(f"scene={name}")
        assert colours(watched) > 20, name
        cut = watched.page.evaluate(f"() => {STAGE}.stats.cut")
        assert [text for text in cut if len(text.split()) > 2] == [], name  # a word may be, a sentence not
        question = watched.page.evaluate(f"() => {STAGE}.quiz.make()")
        if question is not None:  # the tiny model may have nothing to ask in a scene
            assert len(set(question["choices"])) == len(question["choices"]) > 1
            assert 0 <= question["right"] < len(question["choices"])
        said = watched.page.inner_text(".stage-head")
        assert "{" not in said
        assert "scene." not in said
    assert not watched.complaints


def test_a_scenes_address_opens_it(app: Watched):
    app.open(f"{HERE}&scene=temperature")
    wait(app, f"{STAGE}?.data")
    assert app.page.input_value(".stage-bar select.scenes") == "temperature"


def test_zooming_in_and_back_by_keyboard(app: Watched, tiny_model: Any):
    ready(app.open(HERE))
    app.page.evaluate(f"() => {STAGE}.seek(1)")
    app.page.focus(".stage-view canvas")
    app.page.wait_for_timeout(200)
    app.page.keyboard.press("Enter")
    assert app.page.evaluate("() => document.activeElement.className") == "part"
    app.page.focus("[data-key='layer-1']")
    app.page.keyboard.press("Enter")
    app.page.wait_for_timeout(200)
    app.page.click("[data-key='head-2']")
    wait(app, "document.querySelector('[data-key=\"cell-3-1\"]')")
    app.page.click("[data-key='cell-3-1']")
    wait(app, "document.querySelector('[data-key=\"dim-0\"]')")
    cell = tiny_model.trace(TEXT).cell(1, 2, 3, 1)
    label = app.page.get_attribute("[data-key='dim-0']", "aria-label")
    assert f"{abs(float(cell.products[0])):.3f}" in label
    app.page.click("[data-key='dim-0']")
    assert app.page.evaluate("() => location.hash").count("zoom=l1.h2.q3.k1.d0")
    app.page.focus(".stage-view canvas")
    for level in range(4, 0, -1):
        assert app.page.locator(".crumbs button").count() == level
        app.page.keyboard.press("Escape")
        app.page.wait_for_timeout(60)
    assert app.page.evaluate(f"() => {STAGE}.zoom.path.length") == 0


def test_a_part_opens_its_room_and_the_way_leads_back(app: Watched):
    app.open(f"{HERE}&zoom=l1.h2.q3.k1")
    wait(app, f"{STAGE}?.data && {STAGE}.zoom.path.length === 3")
    app.page.click(".open-room")
    app.settle()
    assert "Layer 1, head 2" in app.page.inner_text(".opened")
    app.page.click(".back-to-stage")
    assert app.page.locator(".back-to-stage").count() == 0
    assert app.page.evaluate("() => document.activeElement.tagName") == "CANVAS"


def test_a_place_that_is_not_there_is_the_nearest_that_is(app: Watched):
    app.open(f"{HERE}&zoom=l1.h99.q3.k1")
    wait(app, f"{STAGE}?.data")
    assert app.page.evaluate(f"() => {STAGE}.zoom.path") == [{"layer": 1}]


def test_another_language_is_a_file(app: Watched):
    ready(app.open(f"{HERE}&lang=de"))
    wait(app, "document.documentElement.lang === 'de'")
    assert app.page.inner_text("#find") == "Finden"
    assert app.page.inner_text("#tab-why") == "Warum"
    assert app.page.get_attribute("#composer", "aria-label") == "Ihr Text"
    assert app.page.inner_text(".stage-room h2") == "Von den Wörtern zum nächsten Wort"
    app.page.select_option("[lang=''] >> nth=0", "en")
    wait(app, "document.documentElement.lang === 'en'")
    assert app.page.inner_text("#find") == "Find"
    assert app.page.inner_text("#tab-why") == "Why"
    assert app.page.get_attribute("#composer", "aria-label") == "Your text"
    assert app.page.inner_text(".stage-room h2") == "From words to the next word"


WRITTEN = """window.written = []; const plain = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, ...at) {
  if (this.globalAlpha > 0.05) window.written.push(text);
  return plain.call(this, text, ...at);
};"""


def written(watched: Watched, t: float) -> list[str]:
    """What is written in the picture at a moment of the film."""
    watched.page.evaluate(f"() => {{ window.written = []; {STAGE}.held = true; {STAGE}.seek({t}); {STAGE}.redraw(); }}")
    watched.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return watched.page.evaluate("() => window.written")


def test_no_number_on_the_way_is_made_up(app: Watched):
    """What stands in the middle of a film stands at its beginning or its end too: a number does not grow."""
    app.page.add_init_script(WRITTEN)
    ready(app.open(HERE))
    for name in ("machine", "softmax", "values", "answer", "why", "layers"):
        app.page.evaluate(f"() => {STAGE}.go('{name}')")
        wait(app, FOUND, 60)

        def numbers(t: float) -> set[str]:
            return {text for text in written(app, t) if any(c.isdigit() for c in text)}

        told = numbers(1) | numbers(0.3 if name == "why" else 0)
        on_the_way = set().union(*(numbers(0.05 * k) for k in range(1, 20)))
        assert on_the_way - told == set(), name


def test_words_left_unnamed_are_told_of_on_a_phone(visit: Callable[..., Watched], server: Server):
    watched = visit(server, viewport={"width": 375, "height": 800}, reduced_motion="reduce")
    watched.page.add_init_script(WRITTEN)
    watched.open(f"#text={quote(' '.join('abcdefghijklmnopqrstuvwxyz'))}").see(".stage-view")
    ready(watched)
    words = watched.page.evaluate(f"() => {STAGE}.data.tokens.map((t) => t.text.trim())")
    assert len(words) > 24
    far = written(watched, 1)
    assert "is named; come nearer" in " ".join(far)
    assert [word for word in words if word and word not in far]
    assert not watched.complaints


def test_hostile_and_short_texts(app: Watched):
    for text in ("</script><img src=x onerror=document.title='broken'>", "a", "\u202etxet \x07 \U0001f600漢"):
        ready(app.open(f"#text={quote(text)}"))
        for name in ("machine", "grid", "values", "learning", "why"):
            app.page.evaluate(f"() => {STAGE}.go('{name}')")
            wait(app, FOUND, 60)
            app.page.evaluate(f"() => {STAGE}.seek(1)")
            app.page.wait_for_timeout(60)
    assert app.page.title() == "Glassformer"


def test_axe_finds_nothing(app: Watched):
    from axe_playwright_python.sync_playwright import Axe

    for scene in ("machine", "heads"):
        app.open(f"{HERE}&scene={scene}")
        wait(app, f"{STAGE}?.data && {FOUND}")
        app.page.wait_for_timeout(200)
        found = Axe().run(app.page, context=".stage-room")
        assert [v["id"] for v in found.response["violations"]] == []


def test_the_picture_pans_and_zooms_and_goes_on_into_its_parts(app: Watched):
    ready(app.open(HERE))
    app.page.evaluate(f"() => {STAGE}.seek(1)")
    app.page.wait_for_timeout(150)
    slab = app.page.locator("[data-key='layer-1']").bounding_box()
    view = app.page.locator(".stage-view").bounding_box()
    assert slab is not None
    assert view is not None
    x, y = slab["x"] + slab["width"] / 2, slab["y"] + slab["height"] / 2
    app.page.mouse.move(x, y)
    app.page.keyboard.down("Control")
    app.page.mouse.wheel(0, -200)
    app.page.keyboard.up("Control")
    wait(app, f"{STAGE}.camera.near")
    app.page.wait_for_timeout(100)
    nearer = app.page.locator("[data-key='layer-1']").bounding_box()
    assert nearer is not None
    assert nearer["width"] > 1.5 * slab["width"]
    assert nearer["x"] < x < nearer["x"] + nearer["width"]  # the point under the pointer stays there
    assert colours(app) > 100
    before = app.page.evaluate(f"() => {STAGE}.camera.x")
    app.page.mouse.down()
    app.page.mouse.move(x + 40, y + 10, steps=4)
    app.page.mouse.up()
    assert app.page.evaluate(f"() => {STAGE}.camera.x") != before
    assert app.page.evaluate(f"() => {STAGE}.zoom.path.length") == 0  # what was dragged was not clicked
    app.page.focus(".stage-view canvas")
    app.page.keyboard.press("Escape")
    assert not app.page.evaluate(f"() => {STAGE}.camera.near")
    # On and on: into the layer under the pointer, a head of it, and out again.
    app.page.evaluate(
        f"([x, y]) => {{ for (let i = 0; i < 3; i++) {STAGE}.camera.zoom(1.6, x, y); }}", [x - view["x"], y - view["y"]]
    )
    wait(app, f"{STAGE}.zoom.path.length === 1")
    assert app.page.evaluate(f"() => {STAGE}.zoom.place.layer") == 1
    app.page.keyboard.press("-")
    assert app.page.evaluate(f"() => {STAGE}.zoom.path.length") == 0


def test_what_left_and_came_back_at_once_is_drawn(app: Watched):
    """A browser may tell of both in one piece; the last counts, or the picture stands still in full sight."""
    app.page.add_init_script(
        """window.tellers = []; const Plain = window.IntersectionObserver;
        window.IntersectionObserver = class extends Plain {
          constructor(tell, ...more) { super(tell, ...more); window.tellers.push(tell); } };"""
    )
    ready(app.open(HERE))
    told = "[false, true].map((isIntersecting) => ({ isIntersecting, target: " + STAGE + ".canvas }))"
    app.page.evaluate(f"() => window.tellers.filter((t) => String(t).includes('this.seen')).forEach((t) => t({told}))")
    assert app.page.evaluate(f"() => {STAGE}.seen")
