"""The page tells the truth about its state: changes of the model, empty texts, keyboard, runs, restarts, characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.web.conftest import HERE, ROOMS, TEXT, Watched, bars, chips, serve

pytestmark = pytest.mark.browser

OFF = '[{"kind":"ablate_head","layer":1,"head":2}]'


def test_a_changed_model_says_so_in_every_room_and_on_links(app: Watched):
    asked: list[dict[str, Any]] = []
    app.page.on(
        "request", lambda request: asked.append(request.post_data_json) if "/api/view/" in request.url else None
    )
    app.open(f"{HERE}&edits={quote(OFF)}")
    bar = app.page.locator(".changed")
    for room in ROOMS:
        app.room(room)
        assert bar.is_visible()
        assert "layer 1 head 2 is off" in bar.inner_text()
        # A room asks with the changes, or says that it shows the model as it is.
        sides = [one.get(side, {}).get("edits") for one in asked for side in ("a", "b")]
        assert ("as it is" in bar.inner_text()) or any(one.get("edits") for one in asked) or any(sides), room
        asked.clear()
    app.room("facts")
    assert "of the model as it is" in bar.inner_text()
    app.room("attention")
    app.shot("changed-model")
    app.page.fill("#composer", "One mole of carbon")
    app.settle()
    assert "layer 1 head 2 is off" in bar.inner_text()  # it still is, for the next text
    app.page.click("#compare-edits")
    app.settle()
    assert app.page.locator("#tab-compare").get_attribute("aria-selected") == "true"
    assert "nats from A" in app.page.inner_text("#room-compare")
    app.page.click("#undo-edit")
    app.settle()
    assert not bar.is_visible()


BAD = {
    "nodes": '{"asked":true,"share":"x","pinned":3,"names":[],"groups":[1],"by":null}',
    "marks": '{"groups":"ab","pinned":{}}', "table": '{"texts":"x","metric":7}', "notes": '[{"at":{"text":3}}]',
    "edits": '[{"kind":"scale","part":"word"}]', "directions": '[{"vector":"x"}]', "contexts": "[1,2]",
    "other": '{"text":[]}', "plane": '["a",2]', "position": "-7", "split": "[]",
}  # fmt: skip


def test_an_address_with_bad_values_opens_without_them(app: Watched):
    app.open(HERE + "".join(f"&{key}={quote(value)}" for key, value in BAD.items()) + "&tab=why")
    assert "".join(chips(app)).replace("␣", " ") == TEXT
    for room in ("why", "compare", "texts", "vectors", "meaning"):
        app.room(room)
        assert app.problems() == [], room


def test_what_no_change_reaches_is_said_on_the_stage_beside_signs_and_in_a_second_room(visit: Any, server: Any):
    app = visit(server, reduced_motion="reduce", viewport={"width": 2560, "height": 1400})
    app.open(f"{HERE}&scene=size&beside=size&edits={quote(OFF)}")
    assert "model as it is" in app.page.inner_text(".stage-head .say")
    assert "is the model as it is" in app.page.inner_text(".changed")
    app.page.wait_for_selector("#heads-note:has-text('signs are of the model as it is')")
    app.page.click("#all-on")
    app.settle()
    assert "as it is" not in app.page.inner_text(".stage-head .say") + app.page.inner_text("#heads-note")


def test_a_row_switches_off_what_it_says(app: Watched):
    app.open(HERE).room("why")
    row = app.page.locator("#room-why .waterfall:not(.sum) button.part:enabled").filter(has_text="from").first
    name = row.inner_text()
    row.click()
    app.settle()
    said = app.page.locator(".changed").inner_text()
    assert "no longer reads" in said
    layer_head = name.split(" from ")[0].strip()
    assert layer_head in said


def test_an_empty_text_is_an_empty_page(app: Watched, tiny_model: Any):
    app.open(HERE)
    for room in ("attention", "depth", "why"):
        app.room(room)
    app.page.fill("#composer", "")
    app.settle()
    assert chips(app) == bars(app) == []
    assert tiny_model.name in app.page.inner_text("#facts")
    assert tiny_model.name in app.page.inner_text("header")
    for room in ("attention", "depth", "why"):
        app.room(room)
        assert app.problems() == []
        assert "shrew" not in app.page.inner_text(f"#room-{room}")
    assert app.page.locator(".thumb").count() == 0
    app.page.fill("#composer", TEXT)
    app.settle()
    assert bars(app)


def test_tab_accepts_once_and_then_moves_on(app: Watched, tiny_model: Any):
    text = next(t for n in range(20) if tiny_model.next(t := "a mole" + " and a mole" * n).top(1)[0].token.isascii())
    app.open(f"#text={quote(text)}")
    app.page.focus("#composer")
    app.page.keyboard.press("Control+End")
    app.page.keyboard.press("Tab")
    app.settle()
    accepted = app.page.input_value("#composer")
    assert accepted == text + tiny_model.next(text).top(1)[0].token
    app.page.keyboard.press("Tab")
    assert app.page.evaluate("document.activeElement.id") != "composer"
    assert app.page.input_value("#composer") == accepted
    app.page.focus("#composer")
    app.page.keyboard.press("Escape")
    assert app.page.evaluate("document.activeElement.id") != "composer"


def test_runs_appear_when_they_start(visit: Any, tiny_model: Any, runs: Path, tmp_path: Path):
    empty = tmp_path / "runs"
    server = serve(tiny_model, empty)
    app = visit(server, reduced_motion="reduce").open(HERE).room("learning")
    assert "There is no run yet" in app.page.inner_text("#room-learning")
    empty.mkdir()
    (empty / "little").symlink_to(runs / "little")
    app.page.wait_for_selector("[data-run='little']", timeout=15_000)
    server.stop()


def test_the_page_goes_on_after_the_server_was_restarted(visit: Any, tiny_model: Any, runs: Path):
    server = serve(tiny_model, runs)
    app = visit(server, reduced_motion="reduce").open(HERE)
    app.page.fill("#composer", "One mole of carbon")
    app.settle().room("depth")
    server.stop()
    app.page.fill("#composer", "One mole of carbon dioxide")
    app.page.wait_for_selector("text=/does not answer/")
    server.start()
    app.page.wait_for_selector(".problem:visible", state="detached", timeout=20_000)
    app.settle()
    assert len(chips(app)) == len(tiny_model.ids("One mole of carbon dioxide"))
    app.page.reload()
    app.page.wait_for_selector("#composer")
    app.settle()
    assert app.page.input_value("#composer") == "One mole of carbon dioxide"
    assert app.page.locator("#tab-depth").get_attribute("aria-selected") == "true"
    server.stop()


def test_the_key_of_a_port_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from glassformer.cli.open import kept_token
    from glassformer.serve.security import new_token

    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path))
    first = kept_token(4711, new_token)
    assert kept_token(4711, new_token) == first != kept_token(4712, new_token)
    path = tmp_path / "page" / "token-4711"
    assert path.stat().st_mode & 0o077 == 0
    path.chmod(0o644)  # somebody else may have read it
    assert kept_token(4711, new_token) != first
    path.write_bytes(b"\xff")
    assert len(kept_token(4711, new_token)) >= 32


def test_characters_of_several_tokens_are_shown_as_characters(app: Watched):
    for text in ("鼹鼠 is a mole", "😀 ok", "שלום"):
        app.open(f"#text={quote(text)}")
        seen = "".join(chips(app))
        assert "\ufffd" not in app.page.inner_text("main")
        assert all(character in seen for character in text.replace(" ", ""))
    app.shot("characters")


def test_paths_are_drawn_from_what_was_measured(app: Watched, tiny_model: Any):
    from glassformer.views import Session

    app.open(HERE).room("why")
    wanted = Session(tiny_model).view("why", {"text": TEXT})
    drawn = app.page.locator(".path-picture .flow")
    totals = [float(drawn.nth(i).get_attribute("data-total") or "nan") for i in range(drawn.count())]
    parts = sorted((p["total"] for p in wanted["parts"]), key=lambda x: -abs(x))[: len(totals)]
    assert sorted(map(abs, totals)) == pytest.approx(sorted(map(abs, parts)), abs=2e-3)
    assert " ".join(wanted["plain"]) in app.page.inner_text("#room-why .sentence")
    many = app.page.locator("[aria-label='Parts drawn']")
    many.fill("4")
    assert drawn.count() == 4
    app.shot("why")


def test_a_dial_acts_at_once(app: Watched):
    app.open(HERE).room("why")
    before = bars(app)
    app.page.locator("#room-why .waterfall .knob").first.fill("0.5")
    app.settle()
    assert bars(app) != before
    assert "× 0.50" in app.page.locator(".changed").inner_text()
    app.page.locator("#room-why .waterfall .knob").first.fill("1")
    app.settle()
    assert bars(app) == before
    assert not app.page.locator(".changed").is_visible()


def test_a_layer_has_a_dial_that_is_one_change(app: Watched, tiny_model: Any):
    import glassformer as gf

    app.open(HERE).room("why")
    app.page.click("text=The sum, layer by layer")
    knob = app.page.locator("#room-why .waterfall.sum .knob[aria-label^='layer 1, from']")
    assert knob.count() == 1
    knob.fill("0")
    app.settle()
    chips = app.page.locator(".changed .change-chip")
    assert chips.count() == 1
    assert chips.inner_text().startswith("layer 1 × 0.00")
    off = tiny_model.edited(gf.ablate(layer=1, part="attention"), gf.ablate(layer=1, part="feed_forward"))
    want = [f"{100 * one.probability:.1f}%" for one in off.next(TEXT).top(8)]
    assert bars(app)[:8] == want
    knob.fill("1")
    app.settle()
    assert not app.page.locator(".changed").is_visible()
    assert app.problems() == []


def test_columns_stay_in_their_panel_and_bars_have_one_width(app: Watched):
    app.open(HERE)
    app.page.locator("#slider-temperature").fill("0.7")
    over = "[...document.querySelectorAll('.left .prob')].filter((row) => row.scrollWidth > row.clientWidth + 1).length"
    assert app.page.evaluate(over) == 0
    assert app.page.evaluate(
        "document.querySelector('.left').scrollWidth <= document.querySelector('.left').clientWidth"
    )
    app.page.click("[data-unit='words']")
    app.settle()
    widths = "new Set([...document.querySelectorAll('.word-range .track')].map((t) => Math.round(t.offsetWidth))).size"
    assert app.page.evaluate(widths) == 1


def test_arcs_say_nothing_of_the_matrix(app: Watched):
    app.open(HERE).room("attention")
    app.page.hover(".scroller", position={"x": 120, "y": 200})
    app.page.click("[data-choice='arcs']")
    app.page.mouse.move(1, 1)
    app.settle()
    assert "looks at" not in (app.page.locator("#room-attention .stage > [role='status']").text_content() or "")
    assert not app.page.locator(".cell").is_visible()


def test_a_long_text_leaves_its_room_in_sight(app: Watched):
    app.open(f"#text={quote('a mole ' * 20)}")
    app.page.evaluate("document.querySelector('.panel.words').classList.add('long')")
    high = app.page.evaluate("document.querySelector('.panel.words').offsetHeight")
    assert high < 450


def test_the_cloud_is_drawn_and_turned_and_words_are_added(app: Watched, tiny_model: Any):
    app.open(f"{HERE}&sum={quote('mole - small + carbon')}").room("vectors")
    assert "share" not in app.problems()
    said = app.page.inner_text("#room-vectors")
    assert "of the variance of" in said
    near = tiny_model.neighbours("mole - small + carbon", k=1).to_json()["neighbours"][0]
    assert f"{near['similarity']:.4g}" in said
    ink = (
        "(() => { const c = document.querySelector('.cloud');"
        " const { data } = c.getContext('2d').getImageData(0, 0, c.width, c.height);"
        " return data.reduce((a, b) => (a * 31 + b) | 0, 7); })()"
    )
    before = app.page.evaluate(ink)
    app.page.focus(".cloud")
    app.page.keyboard.press("ArrowRight")
    assert app.page.evaluate(ink) != before
    app.page.fill("[aria-label='Three words whose plane is shown']", "mole small carbon")
    app.page.keyboard.press("Enter")
    app.settle()
    assert "The plane through mole, small, carbon" in app.page.inner_text("#room-vectors")
    app.shot("vectors")


def test_a_cell_is_drawn_from_its_numbers(app: Watched, tiny_model: Any):
    from math import acos, degrees

    from glassformer.views import Session

    app.open(f"{HERE}&layer=1&head=2&query=4&key=2").room("attention")
    wanted = Session(tiny_model).view("cell", {"text": TEXT, "layer": 1, "head": 2, "query": 4, "key": 2})
    angle = float(app.page.locator(".arrows").get_attribute("data-angle") or "nan")
    assert angle == pytest.approx(degrees(acos(wanted["cosine"])), abs=1e-3)
    assert float(app.page.locator(".running").get_attribute("data-sum") or "nan") == pytest.approx(
        wanted["dot"], rel=1e-4
    )
    rows = app.page.locator(".score")
    drawn = [float(rows.nth(i).get_attribute("data-weight") or "nan") for i in range(rows.count())]
    assert drawn == pytest.approx(wanted["row"]["weights"], abs=1e-6)
    app.shot("cell-picture")
