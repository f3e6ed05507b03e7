"""The command line as a test calls it: in this process, with what it printed."""

from __future__ import annotations

import json
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
