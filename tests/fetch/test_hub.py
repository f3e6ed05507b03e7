"""Models of the hub: what is fetched, what is refused, and what still works when nobody answers."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glassformer.errors import SourceError, UnsafeFileError
from glassformer.fetch import catalogue, hub, store
from glassformer.fetch.catalogue import Entry, OnHub
from glassformer.fetch.sources import resolve, resolve_config
from tests.fetch import loopback
from tests.fetch.loopback import Loopback

WEIGHTS = random.Random(1).randbytes(2_000_000)
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b'{"a": 1}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "README.md": b"words",
    "onnx/model.onnx": b"other",
    "original/consolidated.safetensors": b"other",
}


@pytest.fixture
def model(net: Loopback) -> Loopback:
    net.repos["org/model"] = dict(MODEL)
    return net


def fetched(net: Loopback) -> set[str]:
    """The files of models that were asked for, at least in part."""
    return {path.split("/", 5)[5] for _, path, _ in net.asked("/resolve/")}


def test_a_model_and_nothing_that_does_not_belong_to_it(model: Loopback) -> None:
    reports: list[tuple[int, int | None, str]] = []
    found = resolve("org/model", progress=lambda *report: reports.append(report))
    assert (found.name, found.kind, found.revision) == ("org/model", "hf", model.commit("org/model"))
    wanted = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert fetched(model) == wanted
    assert {path.name for path in found.path.iterdir()} == wanted
    assert (found.path / "model.safetensors").read_bytes() == WEIGHTS
    total = sum(len(MODEL[name]) for name in wanted)
    assert reports[-1] == (total, total, "fetching org/model")
    done = [report[0] for report in reports]
    assert done == sorted(done)


def test_a_config_comes_without_the_weights(model: Loopback) -> None:
    path = resolve_config("org/model")
    assert path.read_bytes() == MODEL["config.json"]
    assert fetched(model) == {"config.json"}
    assert resolve("org/model").path.joinpath("model.safetensors").read_bytes() == WEIGHTS  # not taken for the model
    model.log.clear()
    assert resolve_config("org/model") == resolve("org/model").path
    assert model.log == []


def test_a_model_without_a_config_is_fetched_whole_for_it(net: Loopback) -> None:
    net.repos["org/one-GGUF"] = {"m.Q4_0.gguf": b"GGUF" + WEIGHTS}
    assert resolve_config("org/one-GGUF").name == "m.Q4_0.gguf"


def test_offline_after_the_first_time(model: Loopback, monkeypatch) -> None:
    first = resolve("org/model")
    model.log.clear()
    assert resolve("org/model") == first
    assert resolve("org/model", offline=True) == first
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve("hf:org/model") == first
    assert model.log == []


def test_what_another_program_fetched_is_used_when_nobody_answers(model: Loopback, monkeypatch) -> None:
    from huggingface_hub import snapshot_download

    folder = snapshot_download("org/model", endpoint=model.url, cache_dir=hub._cache())
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve("org/model").path == Path(folder)


def test_half_a_model_in_the_cache_is_no_model(model: Loopback, monkeypatch) -> None:
    path = resolve("org/model").path
    (path / "model.safetensors").unlink()
    model.refuse["org/model"] = 503
    with pytest.raises(SourceError, match=r"the hub's cache on this machine: no whole model there; the hub: .*503"):
        resolve("org/model")
    model.refuse.clear()
    assert (resolve("org/model").path / "model.safetensors").read_bytes() == WEIGHTS


def test_refresh_follows_the_branch(model: Loopback) -> None:
    first = resolve("org/model")
    model.repos["org/model"]["config.json"] = b'{"model_type": "gpt2"}'
    assert resolve("org/model") == first
    second = resolve("org/model", refresh=True)
    assert second.revision == model.commit("org/model") != first.revision
    assert resolve("org/model") == second


def test_a_revision_inline_or_apart(model: Loopback) -> None:
    commit = model.commit("org/model")
    found = resolve(f"org/model@{commit}")
    assert found.revision == commit
    assert resolve("org/model", revision=commit) == found
    with pytest.raises(SourceError, match=r"org/model at revision v9 could not be fetched.*but no revision v9 of it"):
        resolve("org/model@v9")


def test_one_gguf_file(net: Loopback) -> None:
    net.repos["org/one-GGUF"] = {"README.md": b"", "m.Q4_0.gguf": b"GGUF" + WEIGHTS, "mmproj-m.gguf": b"GGUF"}
    found = resolve("org/one-GGUF")
    assert found.kind == "gguf"
    assert found.path.name == "m.Q4_0.gguf"
    assert fetched(net) == {"m.Q4_0.gguf"}


def test_a_model_of_our_own_layout(net: Loopback) -> None:
    net.repos["org/ours"] = {"glassformer.json": b"{}", "model.safetensors": WEIGHTS, "tokenizer.json": b"{}"}
    assert resolve("org/ours").kind == "native"


def test_a_split_file_is_fetched_whole(net: Loopback) -> None:
    parts = [f"Q4/m-Q4-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    net.repos["org/split-GGUF"] = {name: b"GGUF" + name.encode() for name in parts} | {"README.md": b""}
    found = resolve("org/split-GGUF")
    assert (found.kind, found.path.name) == ("gguf", "m-Q4-00001-of-00003.gguf")
    assert fetched(net) == set(parts)
    net.log.clear()
    assert resolve("org/split-GGUF").path == found.path
    assert not fetched(net)
    (found.path.parent / "m-Q4-00002-of-00003.gguf").unlink()
    assert resolve("org/split-GGUF").path == found.path, "what is missing is fetched again"
    assert (found.path.parent / "m-Q4-00002-of-00003.gguf").is_file()


def test_any_part_of_several_split_files_names_one(net: Loopback) -> None:
    names = [f"m-{kind}-{i:05d}-of-00002.gguf" for kind in ("Q4", "Q8") for i in (1, 2)]
    held = {name: b"GGUF" + name.encode() for name in names}
    net.repos["org/splits-GGUF"] = held
    with pytest.raises(SourceError, match=r"holds 2 GGUF files \(m-Q4-00001-of-00002.gguf, m-Q8-00001-of-00002.gguf\)"):
        resolve("org/splits-GGUF")
    assert resolve("org/splits-GGUF/m-Q8-00002-of-00002.gguf").path.name == "m-Q8-00001-of-00002.gguf"
    assert fetched(net) == {"m-Q8-00001-of-00002.gguf", "m-Q8-00002-of-00002.gguf"}


def test_an_adapter_is_fetched_with_the_model_that_it_names(model: Loopback) -> None:
    settings = b'{"peft_type": "LORA", "base_model_name_or_path": "org/model", "revision": null}'
    files = {"adapter_config.json": settings, "adapter_model.safetensors": b"weights of it", "adapter_model.bin": b""}
    model.repos["org/tuned"] = files | {"README.md": b"", "tokenizer.json": b"{}", "training_args.bin": b""}
    for source in ("org/tuned", "org/model+org/tuned"):
        found = resolve(source)
        assert (found.name, found.kind) == ("org/model+org/tuned", "hf")
        assert found.adapter_names == ("org/tuned",)
        (folder,) = found.adapters
        assert sorted(p.name for p in folder.iterdir()) == [
            "adapter_config.json", "adapter_model.safetensors", "tokenizer.json",
        ]  # fmt: skip
        assert found.path == resolve("org/model").path
        model.log.clear()
    assert not fetched(model), "what is there is not fetched again"
    model.repos["org/pickled"] = {"adapter_config.json": settings, "adapter_model.bin": b""}
    with pytest.raises(UnsafeFileError, match="org/pickled keeps its weights only as pickled"):
        resolve("org/model+org/pickled")


def test_several_gguf_files_ask_for_one(net: Loopback) -> None:
    net.repos["org/many-GGUF"] = {f"m.Q{n}.gguf": b"GGUF" for n in (2, 4, 8)}
    with pytest.raises(
        SourceError,
        match=r"holds 3 GGUF files \(m.Q2.gguf, m.Q4.gguf, m.Q8.gguf\); name one, such as org/many-GGUF/m.Q2",
    ):
        resolve("org/many-GGUF")
    assert resolve("org/many-GGUF/m.Q4.gguf").path.name == "m.Q4.gguf"
    assert fetched(net) == {"m.Q4.gguf"}
    with pytest.raises(SourceError, match=r"holds no m\.Q5\.gguf\. Did you mean"):
        resolve("org/many-GGUF/m.Q5.gguf")


def test_pickled_weights_are_refused_unfetched(net: Loopback) -> None:
    net.repos["org/old"] = {"config.json": b"{}", "pytorch_model.bin": WEIGHTS, "tokenizer.json": b"{}"}
    with pytest.raises(UnsafeFileError, match=r"org/old keeps its weights only as pickled PyTorch files.*convert them"):
        resolve("org/old")
    assert fetched(net) == set()


def test_no_model_in_the_repository(net: Loopback) -> None:
    net.repos["org/words"] = {"README.md": b"words"}
    with pytest.raises(SourceError, match="org/words holds no language model that can be read"):
        resolve("org/words")


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["config.json", "model.safetensors", "model.fp16.safetensors"], ["config.json", "model.safetensors"]),
        (
            ["config.json", "consolidated.safetensors", "model.safetensors.index.json"]
            + [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)],
            ["config.json", "model.safetensors.index.json"] + [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)],
        ),
        (["config.json", "weights.safetensors", "a.bin"], ["config.json", "weights.safetensors"]),
        (["config.json", "model.safetensors", "m.gguf"], ["config.json", "model.safetensors"]),
        (["sub/m.gguf", "config.json"], ["sub/m.gguf"]),
        (
            ["config.json", "merges.txt", "vocab.json", "tokenizer.model", "chat_template.jinja", "model.safetensors"],
            ["chat_template.jinja", "config.json", "merges.txt", "tokenizer.model", "vocab.json", "model.safetensors"],
        ),
    ],
)
def test_which_files_make_the_model(files: list[str], chosen: list[str]) -> None:
    assert hub.choose("org/x", files) == chosen


def test_whole_needs_every_shard(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert not hub.whole(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert not hub.whole(tmp_path)
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (tmp_path / "model-1.safetensors").write_bytes(b"")
    assert not hub.whole(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(b"")
    assert hub.whole(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    assert not hub.whole(tmp_path)


def test_a_gated_model_says_what_to_do(model: Loopback) -> None:
    model.refuse["/resolve/"] = 403
    model.say["X-Error-Code"] = "GatedRepo"
    with pytest.raises(
        SourceError, match=r"accept org/model's terms on its page first, and to log in here with `hf auth"
    ):
        resolve("org/model")


@pytest.mark.parametrize(("part", "status"), [("/resolve/", 403), ("/api/", 401), ("/api/", 429), ("/api/", 500)])
def test_any_other_refusal(model: Loopback, part: str, status: int) -> None:
    model.refuse[part] = status
    with pytest.raises(SourceError, match=f"(answered {status}|or it is private)"):
        resolve("org/model")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("org/nothing", "has no org/nothing, or it is private and needs `hf auth login`"),
        ("org/a--b", "is not a name a model can have there"),
    ],
)
def test_no_such_model(net: Loopback, name: str, match: str) -> None:
    with pytest.raises(SourceError, match=match) as caught:
        resolve(name)
    assert str(caught.value).endswith("Check the name and the network, or give the path of a model on this machine.")


def test_nobody_answers_and_nothing_is_said_besides_the_error(net: Loopback, monkeypatch, capfd) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"http://127\.0\.0\.1:9 cannot be reached, or broke off"):
        resolve("org/model")
    assert capfd.readouterr() == ("", "")


def test_the_hub_forbidden_by_its_own_variable(model: Loopback, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE forbids asking it"):
        resolve("org/model")
    assert model.log == []


def test_an_entry_of_the_catalogue_on_the_hub(model: Loopback, monkeypatch) -> None:
    monkeypatch.setitem(catalogue.CATALOGUE, "short", Entry("short", "", "", (OnHub("org/model"),)))
    found = resolve("short")
    assert found.name == "short"
    assert found.path == resolve("org/model").path
    commit = model.commit("org/model")
    assert resolve("short", revision=commit).revision == commit


CHILD = "from glassformer.fetch.sources import resolve; print(resolve('org/model').path)"


def test_a_killed_download_is_taken_up_again(model: Loopback, tmp_path: Path) -> None:
    model.pause = 0.05
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while sum(path.stat().st_size for path in (tmp_path / "hf").rglob("*.partial")) < 500_000:
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert store.read_note("org/model@main") is None
    with pytest.raises(SourceError):
        resolve("org/model", offline=True)
    (partial,) = (tmp_path / "hf").rglob("*.partial")
    had = partial.stat().st_size
    model.pause = 0.0
    model.log.clear()
    assert (resolve("org/model").path / "model.safetensors").read_bytes() == WEIGHTS
    assert [asked[2] for asked in model.asked("model.safetensors")] == [f"bytes={had}-"]
    assert not list((tmp_path / "hf").rglob("*.partial"))


def test_bytes_that_are_not_what_the_hub_says_are_refused(model: Loopback, monkeypatch, tmp_path: Path) -> None:
    real = loopback._large
    monkeypatch.setattr(loopback, "_large", lambda data, key="sha256": real(data[:-1] + b"x", key))
    with pytest.raises(SourceError, match=r"what came as model\.safetensors is not the expected file .* was removed"):
        resolve("org/model")
    assert not [file for file in (tmp_path / "hf").rglob("*") if file.is_file() and file.stat().st_size > 100_000]


def test_two_processes_at_once(model: Loopback) -> None:
    model.pause = 0.01
    both = [
        subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert len(model.asked("model.safetensors")) == 1
    assert (Path(said[0][0].strip()) / "model.safetensors").read_bytes() == WEIGHTS


def test_deleting_a_model_frees_the_hubs_cache(model: Loopback, tmp_path: Path) -> None:
    path = resolve("org/model").path
    (item,) = store.items()
    assert (item.kind, item.name) == ("hub", "org/model")
    assert item.bytes > len(WEIGHTS)
    assert store.delete(item)
    assert not path.exists()
    assert not [file for file in (tmp_path / "hf").rglob("*") if file.is_file() and file.stat().st_size > 1000]
    assert store.items() == []


def test_deleting_leaves_what_lies_elsewhere(net: Loopback, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    hub.delete(tmp_path / "mine")
    hub.delete(tmp_path / "mine" / "config.json")
    assert (tmp_path / "mine" / "config.json").exists()
