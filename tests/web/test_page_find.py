"""Finding parts by what they do, notes that stay with a view, and one number over several texts, in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.web.conftest import HERE, TEXT, Watched, bars
from tests.web.test_page_reasons import DATA, view

pytestmark = pytest.mark.browser


def test_heads_are_found_by_what_they_read_and_opened(app: Watched):
    app.open(HERE)
    app.page.keyboard.press("f")
    app.page.wait_for_selector("dialog[open] select")
    app.page.select_option("[aria-label='Word that reads']", "4")
    app.page.select_option("[aria-label='Word that is read']", "2")
    app.page.click("dialog[open] >> text='Find'")
    app.settle()
    told = view(app, "find", text=TEXT, what="heads_reading", position=4, key=2, top=24)
    drawn = [float(e["value"]) for e in app.page.eval_on_selector_all(".found button", DATA)]
    assert drawn == pytest.approx([row["value"] for row in told["rows"]])
    app.shot("find")
    app.page.locator(".found button").first.click()
    app.settle()
    best = told["rows"][0]
    assert f"Layer {best['layer']}, head {best['head']}" in app.page.inner_text(".opened")
    app.page.click("#find")
    app.page.select_option("[aria-label='What to find']", "tokens")
    app.page.fill("[aria-label='Token or letters']", "mol")
    app.page.click("dialog[open] >> text='Find'")
    app.settle()
    assert "mol" in app.page.locator(".found button").first.inner_text()
    app.page.select_option("[aria-label='What to find']", "experts")
    app.page.click("dialog[open] >> text='Find'")
    app.settle()
    assert "experts" in app.page.inner_text("dialog[open] p")
    app.complaints.clear()  # the browser logs the refusal, too


def test_one_number_over_texts_beside_the_change(app: Watched):
    edit = {"kind": "ablate_head", "layer": 1, "head": 2}
    app.open(f'{HERE}&edits=[{{"kind":"ablate_head","layer":1,"head":2}}]').room("texts")
    app.page.fill("[aria-label='Texts, one a line']", "the mole\nthe bank of")
    app.page.select_option("[aria-label='Number that is measured']", "probability")
    app.page.fill("[aria-label='Token that is measured']", " a")
    app.page.click("#room-texts form button")
    app.settle()
    asked = {"texts": ["the mole", "the bank of"], "metric": "probability", "token": " a", "edits": [edit]}
    told = view(app, "texts", **asked)
    cells = app.page.eval_on_selector_all(".texts-table td[data-column]", DATA)
    for name in ("plain", "changed", "difference"):
        drawn = [float(c["value"]) for c in cells if c["column"] == name]
        assert drawn == pytest.approx([row[name] for row in told["rows"]])
    app.page.click(".texts-table th button >> text=difference")
    order = [float(c["value"]) for c in app.page.eval_on_selector_all("td[data-column='difference']", DATA)]
    assert order == sorted(order, reverse=True)
    app.shot("texts")
    app.page.locator(".text-open").first.click()
    app.settle()
    assert app.page.input_value("#composer") in ("the mole", "the bank of")


def test_a_note_stays_with_its_view_and_leads_back(app: Watched):
    app.open(f"{HERE}&layer=1&head=2")
    app.page.click("text='Note'")
    app.page.keyboard.type("looks back")
    assert app.page.input_value(".note textarea") == "looks back"
    app.room("why")
    assert app.page.locator(".note textarea").count() == 0
    app.page.click(".note-open")
    app.settle()
    assert "Layer 1, head 2" in app.page.inner_text(".opened")
    assert app.page.input_value(".note textarea") == "looks back"
    assert "Kept while this tab is open" in app.page.inner_text(".notes")
    app.page.reload()  # and it is kept over a reload
    app.page.wait_for_selector(".note textarea")
    app.page.click("[aria-label='Remove this note']")
    assert app.page.locator(".note").count() == 0


@pytest.mark.parametrize(
    "forbidden",
    [
        "Object.defineProperty(window, 'sessionStorage', {get() { throw new DOMException('', 'SecurityError'); }})",
        "Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); }",
        "if (location.host) sessionStorage.setItem('glassformer', '{')",
    ],
)
def test_a_browser_that_keeps_nothing_is_said(app: Watched, forbidden: str):
    app.page.add_init_script(forbidden)
    app.open(HERE)
    app.page.click("text='Note'")
    app.page.keyboard.type("looks back")
    if "'{'" in forbidden:  # what was kept is no view: the page begins anew and keeps again
        app.page.wait_for_selector(".notes:has-text('Kept while')")
    else:
        app.page.wait_for_selector(".notes:has-text('does not keep them')")
    assert app.page.input_value("#composer") == TEXT


def test_directions_are_kept_compared_and_steer_in_the_room_of_vectors(app: Watched):
    kept = [{"name": "mole - bank", "words": "mole - bank"}, {"name": "a - the", "words": "a - the"}]
    app.open(f"{HERE}&tab=vectors&sum=mole - bank")
    app.page.click("#keep-sum")
    app.page.fill("[aria-label='A sum of words']", "a - the")
    app.page.keyboard.press("Enter")
    app.page.click("#keep-sum")
    app.page.wait_for_selector(".directions caption")
    told = view(app, "directions", text=TEXT, directions=kept)
    drawn = app.page.locator(".directions td.num").all_inner_texts()
    assert [float(x) for x in drawn] == pytest.approx([x for row in told["cosines"] for x in row], abs=6e-4)
    app.page.locator("[aria-label='Steer by a - the']").fill("6")
    app.settle()
    steer = {"kind": "steer", "strength": 6, **{key: told["directions"][1][key] for key in ("layer", "vector")}}
    best = view(app, "next", text=TEXT, edits=[steer])["tokens"][0]
    assert best["token"].strip() in app.page.locator(".bars .prob .what").first.inner_text()
    assert "steered after layer" in app.page.inner_text(".changed")
    app.page.click("[aria-label='Drop the direction a - the']")
    app.settle()
    assert app.page.locator(".direction").count() == 1
    assert app.page.locator(".changed").is_hidden()


def test_kept_directions_come_back_with_the_page_and_with_a_session(app: Watched, visit: Any, tmp_path: Path):
    app.open(f"{HERE}&tab=vectors&sum=mole - bank")
    app.page.click("#keep-sum")
    app.page.fill("[aria-label='A sum of words']", "a - the")
    app.page.keyboard.press("Enter")
    app.page.click("#keep-sum")
    app.page.wait_for_selector(".directions caption")
    steer = "[aria-label='Steer by a - the']"
    app.page.locator(steer).fill("6")
    app.settle()
    cosines, steered = app.page.locator(".directions td.num").all_inner_texts(), bars(app)
    with app.page.expect_download() as waiting:
        app.page.click("#save-session")
    (tmp_path / "session.json").write_bytes(Path(waiting.value.path()).read_bytes())
    app.page.reload()
    app.see("#keep-sum").page.wait_for_selector(".directions caption")
    elsewhere = visit(app.server, reduced_motion="reduce").open()
    assert bars(elsewhere) != steered
    elsewhere.page.set_input_files("header input[type=file]", str(tmp_path / "session.json"))
    elsewhere.see("#keep-sum").page.wait_for_selector(".directions caption")
    for page in (app, elsewhere):
        assert page.page.locator(".direction strong").all_inner_texts() == ["mole - bank", "a - the"]
        assert page.page.locator(".directions td.num").all_inner_texts() == cosines
        assert page.page.locator(steer).input_value() == "6"
        assert bars(page) == steered
        page.page.locator(steer).fill("0")
        page.settle()
        assert page.page.locator(".changed").is_hidden()
        assert bars(page) != steered
