"""Several models, named keys, and what a server is started with."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from glassformer.cli.serve import listed
from glassformer.errors import UsageError
from glassformer.lm import Model
from glassformer.serve.admission import AdmissionQueue
from glassformer.serve.models import Models, Served
from glassformer.serve.problems import Refusal
from glassformer.serve.security import KeyFile, Policy
from glassformer.serve.telemetry import Metrics
from tests.serve.running import TEXT, running
from tests.tiny import tiny_directory


class Shelf:
    """Models that count how often each is opened."""

    def __init__(self, model: Model, names: str, memory: float | None = None) -> None:
        self.opened: list[str] = []
        self.metrics = Metrics()
        self.model = model

        def make(name: str) -> Served:
            self.opened.append(name)
            engine = model.engines.make(native=False, slots=1, capacity=64)
            return Served(model, AdmissionQueue(engine, self.metrics), name)

        sources = {name: (lambda name=name: make(name)) for name in names}
        one = Served(model, AdmissionQueue(model.engines.make(native=False, slots=1, capacity=64)), "a").bytes
        budget = None if memory is None else int(memory * one)
        self.models = Models(make(names[0]), metrics=self.metrics, sources=sources, memory=budget)


def test_models_are_opened_when_asked_for_and_let_go_when_room_is_needed(model):
    shelf = Shelf(model, "abc", memory=2.5)
    models = shelf.models

    async def go() -> None:
        assert (await models.get(None)).name == "a"
        assert [card["loaded"] for card in models.cards()] == [True, False, False]
        assert (await models.get("b")).name == "b"
        assert (await models.get("a")).name == "a"
        assert shelf.opened == ["a", "b"]
        await models.get("c")  # b was not used for longest
        assert [card["id"] for card in models.cards() if card["loaded"]] == ["a", "c"]
        busy = await models.get("a")
        with busy.queue.planning():
            await models.get("c")
            await models.get("b")  # a is used longest ago, and busy: c goes
            assert {card["id"] for card in models.cards() if card["loaded"]} == {"a", "b"}
        with pytest.raises(Refusal, match="'d' is not served here; 'a', 'b', 'c' are"):
            await models.get("d")

    asyncio.run(go())
    models.close()


def test_several_requests_open_a_model_once(model):
    shelf = Shelf(model, "ab")

    async def go() -> None:
        found = await asyncio.gather(*(shelf.models.get("b") for _ in range(5)))
        assert len({id(one) for one in found}) == 1

    asyncio.run(go())
    assert shelf.opened == ["a", "b"]
    shelf.models.close()


def test_a_folder_stands_for_the_models_in_it(tmp_path: Path):
    for name in ("one", "two"):
        tiny_directory(tmp_path / "models" / name)
    (tmp_path / "models" / "three.gguf").touch()
    (tmp_path / "models" / "notes.txt").touch()
    folder = tmp_path / "models"
    assert listed([str(folder)]) == {
        "one": str(folder / "one"),
        "three": str(folder / "three.gguf"),
        "two": str(folder / "two"),
    }
    assert listed([str(folder / "one"), "smollm2"]) == {"one": str(folder / "one"), "smollm2": "smollm2"}
    with pytest.raises(UsageError, match="Two models are called 'one'"):
        listed([str(folder), str(folder / "one")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is no model and holds none"):
        listed([str(tmp_path / "empty")])


def test_keys_have_names_and_are_read_again(tmp_path: Path, model: Model, caplog: Any):
    path = tmp_path / "keys"
    path.write_text("# who may ask\nann: first-key\nbob: second-key\n")
    caplog.set_level("INFO", "glassformer.serve")
    with running(model, policy=Policy(keys=KeyFile(path))) as server:

        def ask(key: str) -> int:
            return httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

        assert [ask("first-key"), ask("second-key"), ask("third"), ask("x")] == [200, 200, 401, 401]
        assert [record.fields["key"] for record in caplog.records if "key" in record.fields] == ["ann", "bob"]
        path.write_text("cid: a-longer-third-key\n")
        assert [ask("first-key"), ask("a-longer-third-key")] == [401, 200]
        path.write_text("broken")
        assert ask("a-longer-third-key") == 200  # what the file last said holds
        assert "first-key" not in caplog.text


@pytest.mark.parametrize(
    ("text", "said"), [("", "holds none"), ("ann", "line 1"), ("ann: ", "line 1"), ("a: é", "line 1")]
)
def test_a_file_of_keys_that_is_none(tmp_path: Path, text: str, said: str):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UsageError, match=said):
        KeyFile(tmp_path / "keys")
    with pytest.raises(UsageError, match="cannot be read"):
        KeyFile(tmp_path / "none")


def test_metrics_can_be_left_open(model):
    open_paths = frozenset({"/healthz", "/metrics"})
    with running(model, policy=Policy(key="k", open_paths=open_paths)) as server:
        assert httpx.get(f"{server.url}/metrics").status_code == 200
        assert httpx.get(f"{server.url}/v1/models").status_code == 401


def test_guessing_ahead_changes_no_answer(model):
    body = {"prompt": TEXT * 4, "max_tokens": 20, "temperature": 0}
    texts = []
    for lookup in (False, True):
        with running(model, lookup=lookup) as server:
            texts.append(httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"])
    assert texts[0] == texts[1]
