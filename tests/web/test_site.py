"""The site in a browser, from the disk, with the network off: the stage and its scenes, and the way between pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.tiny import tiny_directory
from tests.web.conftest import ROOMS, Watched
from tests.web.test_stage import SCENES, STAGE, colours, wait


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    from glassformer.cli.app import app

    folder = tmp_path_factory.mktemp("site")
    model = tiny_directory(folder / "tiny", "llama")
    args = ["site", str(folder / "out"), "--model", str(model), "--text", "The mole is", "--text", "a <b>bank</b>"]
    done = CliRunner().invoke(app, [*args, "--json"])
    assert done.exit_code == 0, done.output
    return folder / "out", json.loads(done.stdout.splitlines()[-1])


def test_the_folder_is_what_it_says(site: tuple[Path, Any]):
    folder, told = site
    assert sorted(p.name for p in folder.iterdir()) == sorted(told["files"]) == ["index.html", "text-1.html"]
    assert {p.name: p.stat().st_size for p in folder.iterdir()} == told["files"]
    assert told["bytes"] == sum(told["files"].values())


def test_every_scene_is_in_it(visit: Callable[..., Watched], site: tuple[Path, Any]):
    watched = visit(reduced_motion="reduce", offline=True)
    watched.page.goto((site[0] / "index.html").as_uri())
    wait(watched, f"{STAGE}?.data")
    assert watched.page.evaluate(f"() => {STAGE}.data.tokens.map((t) => t.text).join('')") == "The mole is"
    for name in SCENES:
        watched.page.evaluate(f"() => {STAGE}.go('{name}')")
        wait(watched, f"(!{STAGE}.scene.need || {STAGE}.found)")
        assert watched.page.evaluate(f"() => {STAGE}.found?.problem ?? null") is None, name
        watched.page.evaluate(f"() => {STAGE}.seek(1)")
        watched.page.wait_for_timeout(80)
        assert colours(watched) > 20, name
    arc = watched.page.evaluate(f"() => {STAGE}.data.telling")
    watched.page.evaluate(f"(a) => {STAGE}.zoom.into(a)", arc)
    wait(watched, "document.querySelector('[data-key=dim-0]')")
    assert not watched.complaints


def test_pages_lead_to_each_other_and_say_what_they_lack(visit: Callable[..., Watched], site: tuple[Path, Any]):
    watched = visit(reduced_motion="reduce", offline=True)
    watched.page.goto((site[0] / "index.html").as_uri())
    said = watched.page.inner_text("nav.site")
    assert "0.4 %" in said
    assert 'glassformer open "The mole is"' in said
    assert "This page" in said
    held = json.loads(watched.page.evaluate("() => document.getElementById('data').textContent"))
    assert f"the patterns of {len(held['attention']['heads'])} heads" in said
    assert "Attention, Depth, Why, Facts, Compare, Texts, Vectors, Meaning, Learning, Size" in said
    watched.page.click("nav.site a")
    watched.page.wait_for_url("**/text-1.html")
    wait(watched, "document.querySelector('.stage-room')?.stage?.data")
    assert watched.page.url.endswith("text-1.html")
    assert "a <b>bank</b>" in watched.page.inner_text("nav.site strong")
    watched.page.evaluate(f"() => {STAGE}.zoom.into({{ layer: 0, head: 0, query: 1, key: 1 }})")
    watched.page.wait_for_timeout(200)
    assert not watched.complaints


def test_every_page_has_every_room(visit: Callable[..., Watched], site: tuple[Path, Any]):
    watched = visit(reduced_motion="reduce", offline=True)
    for page, other in (("index.html", "a <b>bank</b>"), ("text-1.html", "The mole is")):
        watched.page.goto((site[0] / page).as_uri())
        wait(watched, f"{STAGE}?.data")
        tabs = [tab.get_attribute("data-room") for tab in watched.page.locator("[role='tab']").all()]
        assert tabs == ROOMS
        for room in ROOMS:
            watched.room(room)
            assert watched.page.locator(f"#room-{room}").inner_text().strip(), room
        watched.room("compare")
        assert watched.page.input_value("#other-text") == other
        assert watched.page.locator("#room-compare .problem:visible").count() == 0
        assert "%" in watched.page.locator("#room-compare").inner_text()
        watched.room("why")
        held = json.loads(watched.page.evaluate("() => document.getElementById('data').textContent"))
        assert held["answers"]["graph"][0][0]["corrupted"] == other
        assert watched.page.locator("#room-why .circuit").count() == 1
    assert not watched.complaints


def test_every_text_of_the_gallery_has_another_beside_it():
    from glassformer.cli.site import PAGES

    assert len({page.name for page in PAGES}) == len(PAGES) == 12
    assert all(page.other and page.other != page.text for page in PAGES)


def test_a_file_in_the_way_is_said(tmp_path: Path):
    from glassformer.cli.app import app
    from glassformer.errors import UsageError

    (tmp_path / "out").write_text("x")
    done = CliRunner().invoke(app, ["site", str(tmp_path / "out")])
    assert isinstance(done.exception, UsageError)
    assert "is a file" in str(done.exception)


def test_the_place_is_an_option_and_as_before_an_argument(tmp_path: Path):
    from glassformer.cli.app import app

    (tmp_path / "out").write_text("x")
    as_option = CliRunner().invoke(app, ["site", "-o", str(tmp_path / "out")])
    assert str(as_option.exception) == str(CliRunner().invoke(app, ["site", str(tmp_path / "out")]).exception)
    twice = CliRunner().invoke(app, ["site", "a", "--out", "b"])
    assert str(twice.exception) == "The folder is given twice, as a and as --out b; leave one of them out."
