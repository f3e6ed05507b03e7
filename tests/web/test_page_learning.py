"""The learning room in a browser: training from the page, the film of a run, the slice of a step, a sentence learnt."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.web.conftest import HERE, Server, Watched, serve

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def learning(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server whose runs folder holds one run with a film."""
    import glassformer

    folder = tmp_path_factory.mktemp("filmed")
    text = folder / "sea.txt"
    text.write_text("the cat sat on the mat and the dog ran to the sea.\n" * 60, "utf-8")
    settings = {"steps": 6, "film": 5, "width": 32, "d_ff": 48, "context": 48, "sample_tokens": 8, "eval_tokens": 256}
    glassformer.train("small-text", data=str(text), out=str(folder / "sea"), quiet=True, settings=settings)
    running = serve(tiny_model, folder)
    yield running, folder
    running.stop()


def numbers(packed: dict[str, Any]) -> torch.Tensor:
    import base64

    return torch.frombuffer(bytearray(base64.b64decode(packed["base64"])), dtype=torch.float32).reshape(packed["shape"])


def test_the_film_shows_what_the_model_was(learning: tuple[Server, Path], visit: Callable[..., Watched]):
    from glassformer.train import film
    from glassformer.train.reading import read_run

    server, folder = learning
    app = visit(server, reduced_motion="reduce").open(f"{HERE}&tab=learning&run=sea")
    frames = read_run(folder, "sea").frames
    box = app.page.locator(".film")
    assert box.get_attribute("data-step") == str(list(frames)[-1])
    for index, step in [(0, 0), (len(frames) - 1, list(frames)[-1])]:
        slider = app.page.locator("#film-frame")
        slider.fill(str(index))
        assert box.get_attribute("data-step") == str(step)
        about, held = film.read(frames[step])
        assert box.locator("blockquote").text_content() == about["text"]
        n = len(about["tokens"])
        drawn = box.evaluate("(e, n) => [e.film.value(n - 1, 0), e.film.value(n - 1, n - 1), e.film.entry(3, 2)]", n)
        pattern = held["pattern.0"][0].float()
        weight = held["model.blocks.0.attn.k.weight"].float()
        expected = [float(pattern[-1, 0]), float(pattern[-1, -1]), float(weight[3, 2])]
        assert drawn == pytest.approx(expected, abs=1e-6)
    box.locator("select").first.select_option("1.2")
    app.settle()
    last = film.read(frames[list(frames)[-1]])[1]["pattern.1"][2].float()
    assert box.evaluate("(e, n) => e.film.value(n - 1, 0)", len(last)) == pytest.approx(float(last[-1, 0]), abs=1e-6)
    app.page.click("text=Look inside at this step")
    app.settle()
    assert not app.problems()
    assert "sea, step 6" in app.page.inner_text("header.top")
    assert not app.complaints


def test_a_step_is_drawn_on_a_true_slice(learning: tuple[Server, Path], tiny_model: Any, visit: Callable[..., Watched]):
    from glassformer.views import Session

    server, _ = learning
    app = visit(server, reduced_motion="reduce").open(f"{HERE}&tab=learning")
    app.page.click("text=Take one step on the text above")
    app.settle()
    drawn = app.page.locator(".slice [data-at]").evaluate_all("all => all.map((e) => [+e.dataset.at, +e.dataset.loss])")
    told = Session(tiny_model).view("run_step", {"text": "The American shrew mole is a small"})
    for (at, loss), (where, said) in zip(drawn, told["slice"], strict=True):
        assert (at, loss) == (where, pytest.approx(said, rel=1e-4))
    app.shot("learning-slice")


def test_a_step_is_repeated_until_the_sentence_is_learnt(learning: tuple[Server, Path], visit: Callable[..., Watched]):
    server, _ = learning
    app = visit(server, reduced_motion="reduce").open("#text=the%20cat&model=run:sea@6&tab=learning")
    app.page.click("#repeat-step")
    app.page.wait_for_selector("#room-learning p:has-text('Learnt in')", timeout=60_000)
    tokens = app.page.locator('[aria-label="The sentence\'s tokens now"] .num').all_text_contents()
    assert tokens
    assert all(text.startswith("✓") for text in tokens)
    app.shot("learning-learnt")


def test_a_text_is_learnt_from_the_page(learning: tuple[Server, Path], visit: Callable[..., Watched]):
    server, folder = learning
    app = visit(server, reduced_motion="reduce").open(f"{HERE}&tab=learning")
    app.page.fill("#learn-text", "ab")
    app.page.click("text=Learn from this text")
    app.page.wait_for_selector("form .problem:visible", timeout=60_000)
    (problem,) = app.problems()
    assert re.fullmatch(r"[A-Z][^\n]*\.", problem)
    assert not (folder / "page-1").exists()
    assert not (folder / "page-1.txt").exists()
    app.page.fill("#learn-text", "the cat sat on the mat and the dog ran to the sea. " * 40)
    app.page.select_option("#learn-steps", "1500")
    app.page.click("text=Learn from this text")
    app.page.wait_for_selector("[data-run='page-1']", timeout=60_000)
    app.page.wait_for_selector("#room-learning progress", timeout=60_000)
    app.shot("learning-live")
    app.page.click("form button:has-text('Stop')")
    app.page.wait_for_selector("form button:has-text('Learn from this text')", timeout=60_000)
    app.page.wait_for_selector(".run-line p:has-text('interrupted')", timeout=60_000)
    events = [json.loads(line) for line in (folder / "page-1" / "journal.jsonl").read_text("utf-8").splitlines()]
    assert events[-1]["event"] == "stop"
    assert events[-1]["step"] < 1500
    assert any((folder / "page-1" / "checkpoints").iterdir())


def test_the_passages_that_taught_a_text_are_drawn_and_asking_can_be_stopped(
    learning: tuple[Server, Path], visit: Callable[..., Watched]
):
    from glassformer.train.influence import influence

    server, folder = learning
    app = visit(server, reduced_motion="reduce").open(f"{HERE}&tab=learning&run=sea").see(".taught")
    asked = app.page.locator("[aria-label='Text that is asked about']")
    assert asked.input_value()  # what the run wrote last
    asked.fill("the cat sat")
    app.page.click(".taught form button")
    app.page.wait_for_selector(".taught .passage", timeout=60_000)
    told = influence(folder / "sea", "the cat sat", top=12)
    drawn = app.page.locator(".passage").evaluate_all("all => all.map((e) => [+e.dataset.passage, +e.dataset.effect])")
    wanted = [(p.number, p.effect) for p in told.passages[:12]]
    assert [effect for _, effect in drawn] == pytest.approx([effect for _, effect in wanted], rel=1e-3, abs=1e-9)
    assert {number for number, _ in drawn} == {number for number, _ in wanted}
    said = app.page.inner_text(".taught [role=status]")
    assert f"Of {len(told.effects):,} passages" in said
    assert f"Through {told.steps} steps" in (app.page.text_content(".taught .receipt") or "")
    app.shot("learning-taught")
    app.page.route("**/api/view/influence", lambda route: None)  # never answered
    app.page.click(".taught form button")
    assert app.page.inner_text(".taught form button") == "Stop"
    app.page.click(".taught form button")
    app.page.wait_for_selector(".taught form button:has-text('Find the passages')")
    assert "topped" in app.page.inner_text(".taught [role=status]")
    app.page.unroute_all(behavior="ignoreErrors")
    app.page.fill("[aria-label='Text that is asked about']", "")
    app.page.click(".taught form button")
    app.page.wait_for_selector(".taught [role=status]:has-text('empty')")
