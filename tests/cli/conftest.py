"""A tiny model on disk, for every verb."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import tiny_directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("model") / "tiny")
