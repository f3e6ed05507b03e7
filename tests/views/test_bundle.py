"""The page's modules as what a browser is sent."""

from __future__ import annotations

import os
import re
from typing import Any

from glassformer.views import bundle


def test_the_modules_become_one_script():
    text = bundle.script("report.js")
    assert not re.search(r"^(?:import|export)\b", text, re.MULTILINE)
    for path in (bundle.WEB / "js").rglob("*.js"):
        name = path.relative_to(bundle.WEB / "js").as_posix()
        if name not in ("start.js", "notebook.js"):
            assert f'glassformer["{name}"] = ' in text, name


def test_modules_lose_their_types_and_nothing_else(tmp_path: Any):
    """What a browser gets is the same program: every module still parses, and exports the same."""
    import shutil
    import subprocess

    node = shutil.which("node")
    for path in (bundle.WEB / "js").rglob("*.js"):
        name = path.relative_to(bundle.WEB / "js").as_posix()
        text, whole = bundle.module(name), path.read_text("utf-8")
        assert "/**" not in text
        assert bundle._EXPORT.findall(text) == bundle._EXPORT.findall(whole)
        (tmp_path / name.replace("/", "-").replace(".js", ".mjs")).write_text(text, "utf-8")
    if node is None:
        assert not os.environ.get("CI"), "node checks what is served"
        return
    for path in tmp_path.glob("*.mjs"):
        done = subprocess.run([node, "--check", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_page_is_small():
    # Rooms, scenes and parts come when they are opened; with the first room the page is well below 350 kB.
    first = set(bundle._ordered("start.js", later=False))
    later = ("views/why", "views/cell", "stage/scenes_", "stage/closer", "picture", "tour")
    assert not {name for name in first if name.startswith(later)}
    sent = [bundle.styles(), *(bundle.module(name) for name in first)]
    assert sum(len(text.encode()) for text in sent) <= 228_000
    preloaded = re.findall(r'modulepreload" href="/web/js/([^"]+)"', bundle.opened())
    assert set(preloaded) == first
