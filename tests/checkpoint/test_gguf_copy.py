"""The cache of dequantised copies: made once, found again, never half there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from glassformer.checkpoint import open_checkpoint
from glassformer.checkpoint.gguf_header import read_gguf_header
from tests.tiny import tiny_gguf


def test_a_copy_is_made_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = tiny_gguf(tmp_path)
    steps: list[tuple[int, int]] = []
    cache = tmp_path / "cache"
    first = open_checkpoint(file, cache=cache, progress=lambda done, total: steps.append((done, total)))
    assert not first.at_hand
    assert not steps  # nothing is dequantised before something asks for it
    assert first.tensors["embed.weight"].dtype == torch.float32
    assert steps[-1][0] == steps[-1][1] > 0
    assert [s[0] for s in steps] == sorted(s[0] for s in steps)
    monkeypatch.setattr("glassformer.checkpoint.gguf_copy._make", lambda *a: pytest.fail("dequantised twice"))
    again = open_checkpoint(file, cache=cache)
    assert again.at_hand
    assert again.config == first.config
    assert again.metadata == first.metadata
    assert all(torch.equal(first.tensors[key], tensor) for key, tensor in again.tensors.items())
    assert [p.suffix for p in cache.iterdir() if p.suffix != ".lock"] == [".safetensors"]


@pytest.mark.parametrize("damage", ["cut", "emptied", "other keys"])
def test_a_damaged_copy_is_made_again(tmp_path: Path, damage: str) -> None:
    file, _ = tiny_gguf(tmp_path)
    cache = tmp_path / "cache"
    whole = {key: tensor.clone() for key, tensor in open_checkpoint(file, cache=cache).tensors.items()}
    (copy,) = cache.glob("*.safetensors")
    data = copy.read_bytes()
    copy.unlink()  # the mapping of the first opening stays whole
    copy.write_bytes({"cut": data[:-5], "emptied": b"", "other keys": data.replace(b"embed.w", b"embed.v")}[damage])
    again = open_checkpoint(file, cache=cache).tensors
    assert all(torch.equal(again[key], tensor) for key, tensor in whole.items())


def test_another_file_under_the_same_name_is_another_copy(tmp_path: Path) -> None:
    file, _ = tiny_gguf(tmp_path)
    cache = tmp_path / "cache"
    before = open_checkpoint(file, cache=cache).tensors["embed.weight"].clone()
    data = bytearray(file.read_bytes())
    start = read_gguf_header(file).tensors["token_embd.weight"].start
    data[start : start + 4] = np.float32(7).tobytes()
    file.write_bytes(bytes(data))
    after = open_checkpoint(file, cache=cache).tensors["embed.weight"]
    assert after[0, 0] == 7
    assert before[0, 0] != 7


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_copy_in_half_precision(tmp_path: Path, dtype: str) -> None:
    file, _ = tiny_gguf(tmp_path)
    full = open_checkpoint(file, cache=tmp_path).tensors["embed.weight"]
    half = open_checkpoint(file, cache=tmp_path, dtype=dtype).tensors["embed.weight"]
    assert torch.equal(half, full.to(getattr(torch, dtype)))


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    import subprocess
    import sys

    file, _ = tiny_gguf(tmp_path)
    code = (
        "import sys; from pathlib import Path; from glassformer.checkpoint import open_checkpoint\n"
        "made = []\n"
        "c = open_checkpoint(sys.argv[1], cache=Path(sys.argv[2]), progress=lambda *a: made.append(a))\n"
        "total = float(c.tensors['embed.weight'].sum())\n"
        "print(bool(made), total)"
    )
    command = [sys.executable, "-c", code, str(file), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[0].split() for process in running]
    assert sorted(made for made, _ in said) == ["False", "False", "True"]
    assert len({total for _, total in said}) == 1


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = tiny_gguf(tmp_path)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_checkpoint(file, cache=tmp_path / "cache", progress=stop).tensors["embed.weight"]
    assert [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"] == []


def test_without_room_for_a_copy_weights_are_dequantised_where_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    file, _ = tiny_gguf(tmp_path)
    whole = dict(open_checkpoint(file, cache=tmp_path / "cache").tensors)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    tensors = open_checkpoint(file, cache=tmp_path / "other").tensors
    with pytest.warns(UserWarning, match=r"llama\.gguf in float32 takes .* GLASSFORMER_CACHE_LIMIT give it more room"):
        embedding = tensors["embed.weight"]
    other = whole["embed.weight"]
    ids = torch.tensor([[3, 300, 3], [0, 1, 2]])
    assert torch.equal(torch.nn.functional.embedding(ids, embedding), torch.nn.functional.embedding(ids, other))
    assert torch.equal(embedding[-2], other[-2])
    assert torch.equal(embedding.t() @ embedding, other.t() @ other)
    assert torch.equal(embedding.double(), other.double())
    with torch.inference_mode():
        assert torch.equal(embedding.t().flatten(), other.t().flatten())
    assert torch.equal(tensors["final.weight"], whole["final.weight"])
    assert not (tmp_path / "other").exists()
