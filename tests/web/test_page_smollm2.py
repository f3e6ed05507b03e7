"""The page on SmolLM2."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.web.conftest import serve

pytestmark = pytest.mark.browser


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
