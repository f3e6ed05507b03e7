"""What is taken away from the page: lines of Python, tables, arrays, pictures, the session; and undo."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.web.conftest import HERE, TEXT, Watched

pytestmark = pytest.mark.browser


def taken(app: Watched, button: str) -> bytes:
    """The file that a button of the row over a room gives."""
    from playwright.sync_api import TimeoutError

    try:
        with app.page.expect_download() as waiting:
            app.page.click(f".tool-row button:text-is('{button}')")
    except TimeoutError as error:
        error.add_note(f"beside the button: {app.page.locator('.tool-row [role=status]').all_text_contents()}")
        raise
    return Path(waiting.value.path()).read_bytes()


def test_numbers_leave_as_tables_and_arrays(app: Watched, tiny_model: Any):
    app.open(f"{HERE}&layer=1&head=2").room("attention")
    pattern = tiny_model.trace(TEXT).pattern(1, 2).numpy()
    rows = list(csv.reader(io.StringIO(taken(app, "CSV").decode("utf-8"))))
    assert rows[0][1:] == tiny_model.trace(TEXT).tokens == [row[0] for row in rows[1:]]
    assert np.allclose(np.array([row[1:] for row in rows[1:]], float), pattern, atol=1e-5)
    held = np.load(io.BytesIO(taken(app, "npz")), allow_pickle=False)
    assert np.allclose(held["tile"], pattern, atol=1e-5)
    picture = taken(app, "SVG")
    assert picture.startswith(b"<svg")
    app.room("why")
    held = np.load(io.BytesIO(taken(app, "npz")), allow_pickle=False)
    assert held["parts.claimed"].shape == held["parts.direct"].shape
    rows = list(csv.DictReader(io.StringIO(taken(app, "CSV").decode("utf-8"))))
    assert {"layer", "claimed", "direct"} <= rows[0].keys()


def test_lines_of_python_are_copied(app: Watched):
    app.open(f"{HERE}&layer=1&head=2").room("attention")
    app.page.click("text=Copy as Python")
    app.page.wait_for_selector("text=/on the clipboard/")
    lines = app.page.locator(".tool-row [data-lines]").get_attribute("data-lines") or ""
    assert f"model.trace({TEXT!r}).pattern(1, 2)" in lines
    compile(lines, "copied", "exec")


def test_every_number_in_sight_can_be_taken(app: Watched, tiny_model: Any):
    app.open(f"{HERE}&layer=1&head=2").room("attention")
    which = app.page.locator("[aria-label='Which numbers are taken']")
    which.select_option("next")
    rows = list(csv.DictReader(io.StringIO(taken(app, "CSV").decode("utf-8"))))
    logits = tiny_model.logits(TEXT)[-1].double()
    assert float(rows[0]["probability"]) == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)
    app.page.click("text=Copy as Python")
    app.page.wait_for_selector("text=/on the clipboard/")
    lines = app.page.locator(".tool-row [data-lines]").get_attribute("data-lines") or ""
    assert f"model.trace({TEXT!r}).logits(-1)" in lines
    app.room("depth")
    assert which.input_value() == ""
    which.select_option("journey")
    held = np.load(io.BytesIO(taken(app, "npz")), allow_pickle=False)
    steps = tiny_model.trace(TEXT).lens(5, positions=[-1])
    assert held["steps.top.probability"].shape == (len(steps.places), 5)
    which.select_option("surprise")
    rows = list(csv.DictReader(io.StringIO(taken(app, "CSV").decode("utf-8"))))
    assert [row["token"] for row in rows] == tiny_model.trace(TEXT).tokens[1:]


def test_what_was_done_is_undone_and_done_again(app: Watched):
    app.open(HERE)
    app.page.fill("#composer", "One mole of carbon")
    app.settle()
    app.page.wait_for_timeout(900)
    app.room("depth")
    app.page.keyboard.press("z")
    assert app.page.locator("#tab-attention").get_attribute("aria-selected") == "true"
    app.page.click("#undo")
    app.settle()
    assert app.page.input_value("#composer") == TEXT
    app.page.click("#redo")
    app.settle()
    assert app.page.input_value("#composer") == "One mole of carbon"


def test_a_session_is_saved_and_opened_elsewhere(app: Watched, visit: Any, server: Any, tmp_path: Path):
    app.open(f"{HERE}&layer=2&head=1&tab=depth")
    with app.page.expect_download() as waiting:
        app.page.click("#save-session")
    file = tmp_path / "session.json"
    file.write_bytes(Path(waiting.value.path()).read_bytes())
    assert json.loads(file.read_text())["glassformer"] == 1
    other = visit(server, reduced_motion="reduce").open()
    other.page.set_input_files("input[type=file]", str(file))
    other.settle()
    assert other.page.input_value("#composer") == TEXT
    assert other.page.locator("#tab-depth").get_attribute("aria-selected") == "true"
    file.write_text("{}")
    said: list[str] = []
    other.page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.accept()))
    other.page.set_input_files("input[type=file]", str(file))
    other.page.wait_for_timeout(300)
    assert "is not a session" in said[0]


def test_two_rooms_stand_side_by_side(visit: Any, server: Any):
    app = visit(server, reduced_motion="reduce", viewport={"width": 2560, "height": 1400}).open(f"{HERE}&tab=depth")
    app.page.select_option("[aria-label='A second room beside this one']", "why")
    app.settle()
    one, two = (app.page.locator(f"#room-{name}").bounding_box() for name in ("depth", "why"))
    assert one["x"] + one["width"] <= two["x"]
    assert app.page.locator("#room-why .path-picture").is_visible()
    app.room("why")
    assert not app.page.locator("#room-depth").is_visible()


def test_the_line_between_two_rooms_is_drawn_and_goes_with_the_session(visit: Any, server: Any):
    app = visit(server, reduced_motion="reduce", viewport={"width": 2560, "height": 1400})
    app.open(f"{HERE}&tab=depth&beside=texts")
    bar = app.page.locator(".splitter")

    def share() -> float:
        one, two = (app.page.locator(f"#room-{name}").bounding_box() for name in ("depth", "texts"))
        return float(one["width"] / (one["width"] + two["width"]))

    assert share() == pytest.approx(0.5, abs=0.01)
    bar.scroll_into_view_if_needed()
    shelf, at = app.page.locator(".rooms").bounding_box(), bar.bounding_box()
    y = max(at["y"], 0) + 40
    app.page.mouse.move(at["x"] + 4, y)
    app.page.mouse.down()
    app.page.mouse.move(shelf["x"] + 0.3 * shelf["width"], y, steps=3)
    app.page.mouse.up()
    assert share() == pytest.approx(0.3, abs=0.01)
    bar.focus()
    app.page.keyboard.press("ArrowRight")
    assert share() == pytest.approx(0.35, abs=0.01)
    assert bar.get_attribute("aria-valuenow") == "35"
    app.page.mouse.move(shelf["x"] + 0.6 * shelf["width"], y)  # nobody holds it any more
    assert share() == pytest.approx(0.35, abs=0.01)
    with app.page.expect_download() as waiting:
        app.page.click("#save-session")
    held = json.loads(Path(waiting.value.path()).read_text("utf-8"))["view"]
    assert "split=0.35" in held
    assert "beside=texts" in held
    for far, ends in (("0.99", 80), ("-3", 20)):
        app.open(f"{HERE}&tab=depth&beside=texts&split={far}")
        assert bar.get_attribute("aria-valuenow") == str(ends)


def test_the_tally_adds_up_and_follows_its_sliders(app: Watched):
    from glassformer.count import count

    app.open(HERE).room("size")
    [matrices] = [t for t in count("gpt3").to_dict()["tallies"] if t["label"].startswith("matrices")]
    total = app.page.locator(".tally [data-total]")
    assert int(total.get_attribute("data-total") or 0) == matrices["total"] == 175_181_291_520
    assert "617,558,016" in app.page.inner_text(".tally")
    app.page.locator("#design-layers").fill("48")
    assert int(total.get_attribute("data-total") or 0) == 48 * matrices["per_layer"]["total"] + 2 * 617_558_016
    app.shot("size")
