"""The command line as a test calls it: in this process, with what it printed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from glassformer.cli.app import main


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `glassformer ARGS`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leave:
        main([*map(str, args)])
    out, err = capsys.readouterr()
    return int(leave.value.code or 0), out, err


def answer(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    """What `glassformer ARGS --json` says."""
    code, out, err = run(capsys, *args, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def held(page: Path) -> dict[str, Any]:
    """The data inside a page that was written, which loads nothing and is not ended by any text in it."""
    html = page.read_text("utf-8")
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:|//)|@import""", html)
    assert html.count("</script>") == 2
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def kept(data: dict[str, Any], view: str, **asked: Any) -> dict[str, Any]:
    """The first answer of a view that a report keeps under these parameters."""
    return next(answer for keys, answer in data["answers"][view] if asked.items() <= keys.items())
