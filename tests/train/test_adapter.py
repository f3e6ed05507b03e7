"""Adapters trained alone: peft loads them with equal logits, they resume to the bit, over packed weights as well."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import glassformer as gf
from glassformer.cli.app import main
from glassformer.errors import GlassformerError, SourceError, UsageError
from glassformer.train import adapter, journal, train
from glassformer.train.frozen import Frozen, packed, unpacked
from glassformer.train.memory import estimate
from glassformer.train.plan import plan
from glassformer.train.reading import read_run
from glassformer.train.recipe import AdapterSpec, Recipe
from tests.tiny import gap, reference_logits, tiny_directory, tiny_tokens
from tests.train.conftest import text

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},  # joined and transposed
    "gpt_neox": {},  # joined head by head
    "qwen3": {"tie_word_embeddings": True},
}
EVERY_WAY = ("llama", "gpt2")  # the other families differ in names alone: DoRA asks most of them
WAYS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": "lora"},
    "rslora": {"adapter": "lora", "rank_stable": True},
    "dora": {"adapter": "dora"},
}


@pytest.fixture
def some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recipe]:
    """A recipe of a few steps of an adapter on a tiny model."""
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "cache"))
    words = tmp_path / "words.txt"
    words.write_text(text(60), encoding="utf-8")

    def make(model: Path, **settings: Any) -> Recipe:
        usual: dict[str, Any] = {
            "start": str(model),
            "data": (str(words),),
            "context": 16,
            "steps": 4,
            "batch": 4,
            "precision": "fp32",
            "threads": 1,
            "log_every": 1,
            "eval_every": 0,
            "save_every": 0,
            "eval_tokens": 128,
            "held_out": 0.1,
            "adapter": "lora",
            "rank": 3,
            "alpha": 5,
            "adapter_lr": 0.05,
        }
        return Recipe(name="tiny").with_settings({**usual, **settings})

    return make


def ours(source: Any, **options: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = gf.load(source, device="cpu", dtype="float32", **options).transformer(tiny_tokens())
    return found


def by_peft(base: Path, place: Path) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return reference_logits(PeftModel.from_pretrained(model, place).eval(), tiny_tokens())


@pytest.mark.parametrize(
    ("family", "way"), [(family, way) for family in FAMILIES for way in WAYS if way == "dora" or family in EVERY_WAY]
)
def test_peft_loads_it_with_equal_logits(
    tmp_path: Path, some: Callable[..., Recipe], out: Callable[[], Path], family: str, way: str
) -> None:
    base = tiny_directory(tmp_path / "base", family, **FAMILIES[family])
    result = train(some(base, **WAYS[way]), out=out(), quiet=True)
    place = result.path
    assert place is not None
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {file.name for file in place.iterdir()}
    assert not (place / "glassformer.json").exists()
    found = ours(base, adapter=place)
    assert gap(found, ours(base)) > 1e-3, "it has learned something"
    assert gap(found, by_peft(base, place)) < 1e-5
    assert torch.equal(ours(f"{base}+{place}"), found)
    assert torch.equal(ours(place), found), "the run directory alone means its model with it"


def test_some_matrices_alone(tmp_path: Path, some: Callable[..., Recipe], out: Callable[[], Path]) -> None:
    """Of three that are one in the file, with DoRA: rows of the others keep their lengths."""
    base = tiny_directory(tmp_path / "base", "gpt2")
    place = train(some(base, adapter="dora", targets=("attn.q", "attn.v")), out=out(), quiet=True).path
    assert place is not None
    settings = json.loads((place / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["c_attn"]
    assert set(settings["rank_pattern"].values()) == {6}
    assert gap(ours(base, adapter=place), by_peft(base, place)) < 1e-5


@pytest.mark.parametrize("form", ["q8_0", "q4_0"])
@pytest.mark.parametrize("way", ["lora", "dora"])
def test_over_blocks_of_few_bits(
    tmp_path: Path, some: Callable[..., Recipe], out: Callable[[], Path], form: str, way: str
) -> None:
    """The adapter is the one of the model that the blocks stand for."""
    base = tiny_directory(tmp_path / "base", "llama", hidden_size=64, intermediate_size=64)
    result = train(some(base, adapter=way, base=form, micro_batch=2), out=out(), quiet=True)
    assert result.path is not None
    from glassformer.checkpoint import write_hf

    opened = gf.load(base, device="cpu", dtype="float32")
    with torch.no_grad():
        for name, p in opened.transformer.named_parameters():
            if name.startswith("blocks.") and p.ndim == 2:
                p.copy_(Frozen(p, torch.float32, form).matrix())
    rounded = tmp_path / "rounded"
    tensors = dict(opened.transformer.named_parameters())
    write_hf(rounded, opened.config, tensors, opened.tokenizer, family="llama")
    same = train(some(rounded, adapter=way, micro_batch=2), out=out(), quiet=True)
    assert same.path is not None
    assert gap(ours(rounded, adapter=result.path), ours(rounded, adapter=same.path)) < 1e-3
    losses = [e["loss"] for e in journal.read(result.path / "journal.jsonl") if e["event"] == "step"]
    assert losses[-1] < losses[0]


def test_a_killed_run_goes_on_to_the_bit(
    tmp_path: Path, some: Callable[..., Recipe], out: Callable[[], Path], killed: Callable[..., Any]
) -> None:
    base = tiny_directory(tmp_path / "base", hidden_size=64, intermediate_size=64)
    wanted = some(base, adapter="dora", base="q4_0", precision="bf16", steps=6, save_every=2, micro_batch=3)
    straight = train(wanted, out=out(), quiet=True)
    place = out()
    with killed(3):
        assert train(wanted, out=place, quiet=True).interrupted
    assert train(out=place, resume=True, quiet=True).loss == straight.loss
    assert straight.path is not None
    name = "adapter_model.safetensors"
    assert (place / name).read_bytes() == (straight.path / name).read_bytes()
    notes = [e["text"] for e in journal.read(place / "journal.jsonl") if e["event"] == "note"]
    assert not any("not bit for bit" in note for note in notes)


def test_a_base_that_was_moved_is_told_with_the_command_that_leads_on(
    tmp_path: Path, some: Callable[..., Recipe], out: Callable[[], Path]
) -> None:
    base = tiny_directory(tmp_path / "base")
    straight = train(some(base, steps=6), out=out(), quiet=True)
    place = out()
    train(some(base, steps=6, save_every=2), out=place, quiet=True)
    shutil.rmtree(place / "checkpoints" / "step-000006")
    base.rename(tmp_path / "moved")
    with pytest.raises(SourceError, match="trains an adapter of that model; put it back") as told:
        train(out=place, resume=True, quiet=True)
    command = shlex.split(str(told.value).rpartition("Go on with: glassformer ")[2])
    assert command == ["train", "--resume", "--out", str(place), "--set", "start=MODEL"]
    command[-1] = f"start={tmp_path / 'moved'}"
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 0
    assert train(out=place, resume=True, quiet=True).loss == straight.loss


def test_another_base_is_named_when_it_goes_on(
    tmp_path: Path, some: Callable[..., Recipe], out: Callable[[], Path]
) -> None:
    base = tiny_directory(tmp_path / "base")
    place = out()
    train(some(base), out=place, quiet=True)
    tiny_directory(base, seed=5)
    train(out=place, resume=True, quiet=True, steps=5)
    notes = [e["text"] for e in journal.read(place / "journal.jsonl") if e["event"] == "note"]
    assert any("base digest" in note for note in notes)
    with pytest.raises(SourceError, match="trains an adapter"):
        read_run(place.parent, place.name).weights()


@pytest.mark.parametrize("way", ["lora", "dora"])
@pytest.mark.parametrize("form", ["float", "q8_0", "q4_0"])
def test_gradients_are_those_of_the_whole_matrix(way: str, form: str) -> None:
    """In float64, against autograd through W + scale · B A, its lengths taken for constants as DoRA has it."""
    generator = torch.Generator().manual_seed(0)
    frozen = Frozen(torch.randn(6, 64, generator=generator), torch.float64, form)
    layer = adapter.LowRank(frozen, None, AdapterSpec(adapter=way, rank=3, alpha=5), generator).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.2)
    x = torch.randn(5, 64, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    (layer(x) * weight).sum().backward()
    a, b = (p.detach().clone().requires_grad_() for p in (layer.lora_A, layer.lora_B))
    again = x.detach().clone().requires_grad_()
    whole = frozen.matrix() + layer.scale * b @ a
    if layer.lora_length is not None and layer.own is not None:
        whole = whole * ((layer.own + layer.lora_length.detach()) / whole.norm(dim=1).detach())[:, None]
    (again @ whole.T * weight).sum().backward()
    near = {"rtol": 1e-5, "atol": 1e-5} if way == "dora" else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(layer.lora_A.grad, a.grad, **near)
    torch.testing.assert_close(layer.lora_B.grad, b.grad, **near)
    torch.testing.assert_close(x.grad, again.grad, **near)
    torch.testing.assert_close(layer.weight.double(), whole.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("bits", "least"), [(8, 0.004), (4, 0.07)])
def test_blocks_keep_their_numbers(bits: int, least: float) -> None:
    weight = torch.randn(8, 96, generator=torch.Generator().manual_seed(0))
    weight[0] = 0
    once = unpacked(*packed(weight, bits), bits, torch.float32)
    assert float((once - weight).abs().max() / weight.abs().max()) < least
    torch.testing.assert_close(unpacked(*packed(once, bits), bits, torch.float32), once, rtol=1e-3, atol=1e-6)


def test_the_plan_and_memory_know_it(tmp_path: Path, some: Callable[..., Recipe], out: Callable[[], Path]) -> None:
    base = tiny_directory(tmp_path / "base", hidden_size=64, intermediate_size=64)
    whole, alone = some(base, adapter="none"), some(base)
    found = plan(alone, None, out(), False, {})
    assert 0 < found.trained < found.parameters
    assert "of an adapter" in found.text()
    assert found.exports == ("peft",)
    config = gf.load(base, device="cpu").config
    sizes = [estimate(r, config, torch.float32).weights for r in (whole, alone, some(base, base="q8_0"))]
    assert sizes[0] > 2 * sizes[1]
    result = train(alone, out=out(), quiet=True)
    assert result.path is not None
    start = next(e for e in journal.read(result.path / "journal.jsonl") if e["event"] == "start")
    assert (start["trained"], start["parameters"]) == (found.trained, found.parameters)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"adapter": "qlora"}, "adapter is one of none, lora, dora"),
        ({"start": ""}, "needs start=SOURCE"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"alpha": 0}, "alpha must be above 0"),
        ({"base": "q2_k"}, "base is one of float, q8_0, q4_0"),
        ({"adapter": "none", "base": "q8_0"}, "for an adapter that is trained alone"),
        ({"shard": "full"}, "set shard=none"),
        ({"native": "on"}, "set native=auto"),
        ({"targets": ("attn.x",)}, "no matrix is called so; there are attn.k"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_one_sentence(
    tmp_path: Path, some: Callable[..., Recipe], out: Callable[[], Path], settings: dict[str, Any], sentence: str
) -> None:
    base = tiny_directory(tmp_path / "base")
    with pytest.raises(GlassformerError, match=sentence):
        train(some(base, **settings), out=out(), quiet=True)


def test_an_adapter_on_an_adapter_is_refused(
    tmp_path: Path, some: Callable[..., Recipe], out: Callable[[], Path]
) -> None:
    base = tiny_directory(tmp_path / "base")
    place = train(some(base, steps=1), out=out(), quiet=True).path
    with pytest.raises(UsageError, match="merge it first"):
        train(some(base, start=str(place)), out=out(), quiet=True)
