"""One server on a tiny model for a file's tests, and the real `openai` client of it."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from glassformer.lm import Model
from tests.serve.running import Running, running, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Running]:
    with running(model) as made:
        yield made


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made
