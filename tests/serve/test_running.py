"""Several models, named keys, and what a server is started with."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import glassformer
from glassformer.cli.serve import listed, named_adapters
from glassformer.errors import CheckpointError, ServerError, UsageError
from glassformer.generate.drafting import DraftModels
from glassformer.generate.runners import EagerRunner
from glassformer.lm import Model
from glassformer.remote.wire import Wire
from glassformer.serve.admission import AdmissionQueue
from glassformer.serve.models import Models, Served
from glassformer.serve.problems import Refusal
from glassformer.serve.running import tls_context
from glassformer.serve.security import KeyFile, Policy
from glassformer.serve.telemetry import Metrics
from tests.checkpoint.test_adapters import adapter
from tests.serve.running import TEXT, eventually, running, tiny_model
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
        with busy.queue.preparing():
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


def test_a_draft_model_changes_no_answer(model):
    smaller = DraftModels(EagerRunner(model.transformer, slots=2), 2)
    prompts = [f"{TEXT} number {i} goes on" for i in range(5)]
    told = []
    for drafter in (None, smaller):
        with running(model, drafter=drafter, slots=2) as server, ThreadPoolExecutor(5) as pool:

            def ask(prompt: str, url: str = server.url) -> str:
                body = {"prompt": prompt, "max_tokens": 12, "seed": 3, "temperature": 0.8}
                answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
                return str(answer["choices"][0]["text"])

            told.append(list(pool.map(ask, prompts)))
    assert told[0] == told[1]


def test_who_has_priority_waits_less(model):
    with running(model, slots=1) as server, ThreadPoolExecutor(5) as pool:
        begun: list[int] = []
        start = server.queue.engine._start
        server.queue.engine._start = lambda handle, free: (begun.append(handle.request.priority), start(handle, free))
        server.gate.open.clear()

        def ask(priority: int | None) -> None:
            body = {"prompt": TEXT, "max_tokens": 1, "priority": priority}
            assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code == 200

        waits = []
        for number, priority in enumerate([1, 5, None, -3]):
            waits.append(pool.submit(ask, priority))
            eventually(lambda wanted=number + 1: server.queue.taken == wanted and waiting(server) == wanted - 1)
        server.gate.open.set()
        for one in waits:
            one.result(60)
        wrong = httpx.post(f"{server.url}/v1/completions", json={"prompt": TEXT, "priority": "high"})
    assert begun == [1, -3, 0, 5]  # the first had the only slot before the others came
    assert wrong.status_code == 400


def waiting(server: Any) -> int:
    engine = server.queue.engine
    return int(engine.waiting) if engine.active else -1


def test_an_adapter_is_asked_for_by_name_and_shares_the_weights(tmp_path: Path):
    config = {"r": 4, "target_modules": ["q_proj"]}
    base = tiny_directory(tmp_path / "base")
    adapter(base, tmp_path / "tuned", **config)
    model = glassformer.load(base)
    made = model.with_adapter(tmp_path / "tuned", "polite")
    mine, theirs = dict(model.transformer.named_parameters()), dict(made.transformer.named_parameters())
    shared = {key for key in mine if mine[key].data_ptr() == theirs[key].data_ptr()}
    assert len(mine) - len(shared) == 3  # one matrix in each of three layers
    want = glassformer.load(base, adapter=tmp_path / "tuned")
    assert torch.equal(made.logits(TEXT), want.logits(TEXT))
    assert torch.equal(made.adapted(False).logits(TEXT), model.logits(TEXT))
    assert not torch.equal(made.logits(TEXT), model.logits(TEXT))
    with pytest.raises(UsageError, match="put into a model as it was read"):
        made.with_adapter(tmp_path / "tuned")
    assert named_adapters([f"polite={tmp_path / 'tuned'}", str(tmp_path / "tuned")]) == {
        "polite": str(tmp_path / "tuned"),
        "tuned": str(tmp_path / "tuned"),
    }
    with pytest.raises(UsageError, match="is no adapter"):
        named_adapters([str(base)])


def test_models_change_while_answers_run(model):
    shelf = Shelf(model, "ab")
    models = shelf.models
    sources = dict(models._sources)
    old = models.open("b")

    async def go() -> None:
        with old.queue.preparing():  # somebody is being answered by it
            models.reload({name: sources[name] for name in "ab"}, stale={"b"})
            new = await models.get("b")
            assert new is not old
            assert not old.queue.engine._closed
        eventually(lambda: old.queue.engine._closed)

        def broken() -> Served:
            raise CheckpointError("It is damaged.")

        with pytest.raises(CheckpointError):
            models.reload({"a": sources["a"], "b": broken}, stale={"b"})
        assert await models.get("b") is new
        models.reload({"a": sources["a"], "c": sources["a"]})
        assert models.names == ["a", "c"]
        eventually(lambda: new.queue.engine._closed)

    asyncio.run(go())
    assert shelf.opened == ["a", "b", "b"]
    models.close()


def test_what_stands_on_the_first_model_opens_it_when_it_was_let_go(model):
    """An adapter is put into the first model, which may have gone to make room."""
    shelf = Shelf(model, "ab", memory=1.5)
    models, opened = shelf.models, []

    def adapted() -> Served:
        opened.append(models.default.model)
        return Served(model, AdmissionQueue(model.engines.make(native=False, slots=1, capacity=64)), "p")

    models.reload({**models._sources, "p": adapted})

    async def go() -> None:
        await models.get("b")
        assert [card["id"] for card in models.cards() if card["loaded"]] == ["b"]
        async with asyncio.timeout(30):
            assert (await models.get("p")).name == "p"
        assert opened == [model]
        first = await models.get("a")
        await models.get("p")
        models.reload(models._sources, stale={"a", "p"})  # the first anew before what stands on it
        assert opened[-1] is model
        assert models.default is not first

    asyncio.run(go())
    assert shelf.opened == ["a", "b", "a", "a", "a"]
    models.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGHUP is of POSIX")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_the_program_serves_models_and_an_adapter_by_https_within_memory_and_reads_all_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny_model(tmp_path / "shelf")
    adapter(tmp_path / "shelf" / "tiny", tmp_path / "polite", r=4, target_modules=["q_proj", "v_proj"])
    certificate(tmp_path)
    (tmp_path / "keys").write_text("ann: first-key-of-all\n")
    command = ["serve", str(tmp_path / "shelf"), "--port", "0", "--certfile", str(tmp_path / "cert.pem")]
    command += ["--keyfile", str(tmp_path / "key.pem"), "--key-file", str(tmp_path / "keys"), "--context", "256"]
    command += ["--adapter", f"polite={tmp_path / 'polite'}", "--memory", "0.0001", "--prompt-cache", "0.01"]
    process = subprocess.Popen(
        [sys.executable, "-m", "glassformer", *command], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        url = first.split()[-1].replace("127.0.0.1", "localhost")
        assert url.startswith("https://"), first

        def names(key: str) -> Any:
            trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
            with httpx.Client(verify=trusted, headers={"authorization": f"Bearer {key}"}) as client:
                answer = client.get(f"{url}/models", timeout=60)
                return [one["id"] for one in answer.json()["data"]] if answer.is_success else answer.status_code

        def text(name: str, key: str) -> str:
            trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
            asked = {"model": name, "prompt": TEXT, "max_tokens": 6, "temperature": 0, "priority": -1}
            with httpx.Client(verify=trusted, headers={"authorization": f"Bearer {key}"}) as client:
                answer = client.post(f"{url}/completions", json=asked, timeout=60)
                assert answer.status_code == 200, answer.text
                return str(answer.json()["choices"][0]["text"])

        assert names("first-key-of-all") == ["tiny", "polite"]
        said = {name: text(name, "first-key-of-all") for name in ("tiny", "polite")}
        assert said["tiny"] != said["polite"]
        with pytest.raises(ServerError, match="Name its certificate in SSL_CERT_FILE"):
            glassformer.connect(url, key="first-key-of-all")
        with monkeypatch.context() as trusting:
            trusting.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
            remote = glassformer.connect(url, key="first-key-of-all", model="polite")
            given = {"max_tokens": 6, "temperature": 0}
            assert "".join(token.text for token in remote.generate(TEXT, **given)) == said["polite"]
        with pytest.raises(httpx.ConnectError, match="(?i)certificate"):
            httpx.get(f"{url}/models")  # nobody who does not know this certificate
        shutil.copytree(tmp_path / "shelf" / "tiny", tmp_path / "shelf" / "tiny2")
        (tmp_path / "keys").write_text("bob: second-key-of-all\n")
        certificate(tmp_path)
        process.send_signal(signal.SIGHUP)
        told = json.loads(next(line for line in process.stderr if "reload" in line))
        assert told["event"] == "reloaded", told
        assert names("second-key-of-all") == ["tiny", "tiny2", "polite"]
        assert names("first-key-of-all") == 401
        # There is room for one: each lets go of the others, and the adapter opens what it stands on again.
        for name in ("tiny2", "polite", "tiny", "tiny2", "tiny2", "polite"):
            assert text(name, "second-key-of-all") == said[name.removesuffix("2")]
        (tmp_path / "keys").write_text("nothing\n")
        process.send_signal(signal.SIGHUP)
        told = json.loads(next(line for line in process.stderr if "reload" in line))
        assert (told["event"], "written as 'name: key'" in told["reason"]) == ("not reloaded", True)
        assert names("second-key-of-all") == ["tiny", "tiny2", "polite"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def certificate(place: Path) -> None:
    """A certificate for this machine, and its key."""
    wanted = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "2"]
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    where = ["-keyout", str(place / "key.pem"), "-out", str(place / "cert.pem")]
    subprocess.run(["openssl", *made, *wanted, *where], check=True, capture_output=True)


def test_a_certificate_that_is_none_is_said_at_once(tmp_path: Path):
    (tmp_path / "c.pem").write_text("nothing")
    with pytest.raises(UsageError, match="is no certificate with its key"):
        tls_context(str(tmp_path / "c.pem"))
    with pytest.raises(UsageError, match="No such file"):
        tls_context(str(tmp_path / "none.pem"), "k")


def test_a_connection_reads_certificates_once(server, monkeypatch):
    read, real = [], ssl.SSLContext.load_verify_locations
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *told: (read.append(told), real(*told)))
    wire = Wire(server.url, None, 60)
    for _ in range(3):
        assert wire.ask("GET", "/v1/models")["data"][0]["id"] == "tiny"
    assert list(wire.events("/v1/completions", {"prompt": TEXT, "max_tokens": 1, "stream": True}))
    assert len(read) == 1
