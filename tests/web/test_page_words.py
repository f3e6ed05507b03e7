"""The words in and the next word beside them: chips, bars, sliders, branching, writing on."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.web.conftest import HERE, TEXT, Watched, bars, chips

pytestmark = pytest.mark.browser


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

    from glassformer.generate.sampling import adjust, probabilities
    from glassformer.generate.settings import Sampling

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


def test_what_a_form_took_from_the_model_is_drawn(app: Watched, tiny_model: Any):
    from glassformer.generate.constraints import Constraint

    app.open(HERE)
    app.page.fill("[aria-label='Tokens to write']", "6")
    app.page.locator("#slider-temperature").fill("0")
    app.page.select_option("[aria-label='Form of what is written']", "regex")
    app.page.fill("[aria-label='The form in words']", "[0-9]{3}")
    app.page.click("#write-on")
    app.page.wait_for_selector("text=/tokens. Choose one/")
    first = next(iter(tiny_model.generate(TEXT, temperature=0, constraint=Constraint.regex("[0-9]{3}"))))
    assert first.removed > 0.5  # of a model with random weights
    app.page.locator(".writing .chip").first.click()
    said = app.page.inner_text(".form-took")
    assert f"The form took {first.removed:.2%} of the model's probability" in said
    width = app.page.locator(".form-took .track .bar").evaluate("e => e.offsetWidth / e.parentElement.offsetWidth")
    assert abs(width - first.removed) < 0.02
    written = "".join(app.page.locator(".writing .chip").all_text_contents())
    assert written.isdecimal()
    app.page.fill("[aria-label='The form in words']", "[0-9")  # one that cannot be is said
    app.page.click("#write-on")
    app.page.wait_for_selector("text=/this regular expression/")


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
