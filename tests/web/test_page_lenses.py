"""Lenses and dictionaries that were given at the start, chosen and tried on the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.web.conftest import HERE, TEXT, Server, Watched, serve


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("named")


@pytest.fixture(scope="module")
def lensed(tiny_model: Any, folder: Path) -> Iterator[Server]:
    tiny_model.readout(" ".join([TEXT] * 20), "jacobian", window=16, tokens=96).save(folder / "mine")
    wide, g = tiny_model.config.d_model, torch.Generator().manual_seed(0)
    shapes = {"W_enc": (9, wide), "W_dec": (9, wide), "b_enc": (9,), "b_dec": (wide,)}
    laid = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    save_file(laid, folder / "layer_1.safetensors")
    named = {"lenses": {"mine": folder / "mine"}, "dictionaries": {"features": folder / "layer_1.safetensors"}}
    running = serve(tiny_model, folder, **named)
    yield running
    running.stop()


def shares(app: Watched, row: int) -> list[float]:
    cells = app.page.locator(".lens-edited tbody tr").nth(row).locator("td").all_text_contents()
    return [float(cell.strip(" \u00a0%")) / 100 for cell in cells]


def test_a_fitted_lens_is_read_through_tried_and_compared(visit: Any, lensed: Server, folder: Path, tiny_model: Any):
    app = visit(lensed, reduced_motion="reduce").open(f"{HERE}&tab=depth")
    fitted = tiny_model.load_readout(folder / "mine")
    first = app.page.locator("table.lens tbody tr").last.locator("td").last
    app.page.select_option("#lens-through", "mine")
    app.settle()
    read = tiny_model.trace(TEXT).lens(3, through=fitted).to_dict()
    assert first.text_content() == read["rows"][0]["cells"][-1]["top"][0]["token"].replace(" ", "␣")
    app.open(f"{HERE}&tab=depth&through=mine")  # as a shared address says it
    assert app.page.input_value("#lens-through") == "mine"
    app.page.click("#room-depth summary:has-text('Try a lens')")
    for label, value in (("token put in", " mole"), ("in place of (optional)", " shrew"), ("after layer", "0")):
        app.page.fill(f".lens-edit [aria-label='{label}']", value)
    app.page.click(".lens-edit button")
    app.settle()
    edit = tiny_model.trace(TEXT).lens_edit(0, " mole", " shrew", through=fitted).to_dict()
    for row, own in enumerate(edit["tokens"]):
        want = [own[kind][when] for kind in ("claimed", "measured") for when in ("before", "after")]
        assert shares(app, row) == pytest.approx(want, abs=6e-5)
    app.page.click("#lens-agreement")
    app.settle()
    rows = app.page.locator(".lens-agreed tbody tr")
    assert rows.count() == tiny_model.config.n_layers - 1
    assert "mine" in app.page.inner_text(".lens-agreed thead")
    assert not app.complaints


def test_a_dictionary_is_laid_over_a_prediction_s_graph(visit: Any, lensed: Server):
    app = visit(lensed, reduced_motion="reduce").open(f"{HERE}&tab=why")
    app.see(".nodes-form")
    app.page.check(".nodes-form [type=checkbox]")
    app.page.click(".nodes-form button")
    app.settle()
    app.page.click(".nodes details summary")
    told = app.page.inner_text(".nodes details")
    assert "m1.f" in told or "m1.error" in told
    assert not app.complaints
