"""A notebook that shows views, executed for real."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.tiny import tiny_directory


@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
def test_a_notebook_shows_views(tmp_path: Path):
    import nbclient
    import nbformat

    tiny_directory(tmp_path / "tiny")
    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_code_cell("import glassformer as gf\nmodel = gf.load('tiny')\nmodel.view('The mole is')"),
        nbformat.v4.new_code_cell("model.trace('The mole is').attention()"),
        nbformat.v4.new_code_cell("model.view('The mole is', rooms=['why'], live=False)"),
    ]
    os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
    client = nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [[o["data"] for o in cell.outputs if "data" in o][-1] for cell in book.cells]
    for data in shown[:2]:
        assert "application/vnd.jupyter.widget-view+json" in data
        assert data["text/html"].startswith("<iframe")  # for wherever widgets cannot run
    # The widget waits for its stand-in, which therefore holds what is quick; a static view holds what was asked.
    rooms = [re.search(r"&quot;rooms&quot;:\[(.*?)\]", data["text/html"])[1] for data in shown]  # type: ignore[index]
    assert [text.replace("&quot;", "") for text in rooms] == ["attention,depth,size", "attention", "why"]
    assert "application/vnd.jupyter.widget-view+json" not in shown[2]
    assert shown[2]["text/html"].startswith("<iframe")
