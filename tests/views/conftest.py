"""A session on a tiny model, for every test here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glassformer.views import Session
from tests.tiny import tiny_directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import glassformer

    return glassformer.load(tiny_directory(tmp_path_factory.mktemp("tiny") / "tiny"), device="cpu", dtype="float32")


@pytest.fixture
def session(model: Any, tmp_path: Path) -> Session:
    return Session(model, runs=str(tmp_path / "runs"))
