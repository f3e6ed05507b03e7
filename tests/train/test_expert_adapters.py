"""Adapters of experts and routers trained alone: peft loads them with equal logits, over packed weights as well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glassformer.checkpoint import open_checkpoint
from glassformer.checkpoint.families import named
from glassformer.errors import UnsupportedError
from glassformer.model import Attention, Experts, Norm, uniform
from glassformer.train import journal, train
from glassformer.train.adapter import LowRankStack, RestingStack, adapted, parameters, targets
from glassformer.train.frozen import Frozen
from glassformer.train.memory import estimate
from glassformer.train.plan import plan
from glassformer.train.recipe import AdapterSpec, Recipe
from tests.checkpoint import test_alike
from tests.tiny import VOCAB, gap, tiny_tokenizer
from tests.train.test_adapter import by_peft, ours, some

__all__ = ["some"]

# It looks for the names of parameters' ranks among modules, says so, and uses them.
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")


def directory(place: Path, family: str) -> Path:
    """A tiny model with experts and the tiny tokenizer."""
    test_alike.SETTINGS[f"{family}: adapted"] = {**test_alike.SETTINGS[family], "vocab_size": VOCAB}
    test_alike.reference(f"{family}: adapted").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


# As files have experts: one tensor each, gate and up in turn and turned over, under another name than transformers
# has, without a gate, turned over without telling peft; all in one; and with attention's beside them.
@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "mixtral", "nemotron_h", "llama4_text", "granitemoe", "jetmoe"])
def test_peft_loads_it_with_equal_logits(
    tmp_path: Path, some: Callable[..., Recipe], out: Callable[[], Path], family: str
) -> None:
    base = directory(tmp_path / "base", family)
    wanted = some(base, targets=("mlp.experts.*", "mlp.router", "attn.[qo]"), steps=3, rank_stable=family == "olmoe")
    place = train(wanted, out=out(), quiet=True).path
    assert place is not None
    found = ours(base, adapter=place)
    assert gap(found, ours(base)) > 1e-3, "it has learned something"
    assert gap(found, by_peft(base, place)) < 1e-5
    before, after = open_checkpoint(base), open_checkpoint(base, adapters=[place])
    moved = {key.split(".", 2)[2] for key in after.changed if not torch.equal(after.tensors[key], before.tensors[key])}
    assert moved >= {"mlp.router.weight", "mlp.experts.up.weight", "mlp.experts.down.weight", "attn.q.weight"}


def test_one_of_two_joined_stacks_alone(tmp_path: Path, some: Callable[..., Recipe], out: Callable[[], Path]) -> None:
    base = directory(tmp_path / "base", "gpt_oss")
    place = train(some(base, targets=("mlp.experts.up",)), out=out(), quiet=True).path
    assert place is not None
    settings = json.loads((place / "adapter_config.json").read_text())
    assert [name.rpartition(".")[2] for name in settings["target_parameters"]] == ["gate_up_proj"] * 2
    assert gap(ours(base, adapter=place), by_peft(base, place)) < 1e-5


@pytest.mark.parametrize("form", ["float", "q8_0", "q4_0"])
def test_gradients_are_those_of_whole_matrices(form: str) -> None:
    """In float64, against autograd through W_e + scale · B_e A_e; an expert that nobody chose has none."""
    generator = torch.Generator().manual_seed(0)
    frozen = Frozen(torch.randn(3 * 6, 64, generator=generator), torch.float64, form)
    bias = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    layer = LowRankStack(frozen, bias, AdapterSpec(adapter="lora", rank=2, alpha=5), generator, 3).double()
    with torch.no_grad():
        layer.lora_B.normal_(generator=generator)
    x = torch.randn(5, 64, dtype=torch.float64, generator=generator, requires_grad=True)
    each, times = layer.each(), torch.randn(5, 6, dtype=torch.float64, generator=generator)
    sum((each(expert, x) * times * (expert + 1)).sum() for expert in (0, 2)).backward()  # type: ignore[union-attr]
    a, b = (p.detach().clone().requires_grad_() for p in (layer.lora_A, layer.lora_B))
    again = x.detach().clone().requires_grad_()
    whole = frozen.matrix().view(3, 6, 64) + layer.scale * b @ a
    sum(((again @ whole[e].T + bias[e]) * times * (e + 1)).sum() for e in (0, 2)).backward()  # type: ignore[union-attr]
    near = {"rtol": 1e-10, "atol": 1e-10}
    for one, other in ((layer.lora_A.grad, a.grad), (layer.lora_B.grad, b.grad), (x.grad, again.grad)):
        torch.testing.assert_close(one, other, **near)
    assert not layer.lora_A.grad[1].any()  # type: ignore[index]
    torch.testing.assert_close(layer.weight, whole.detach(), rtol=1e-5, atol=1e-5)


def test_over_blocks_of_four_bits(tmp_path: Path, some: Callable[..., Recipe], out: Callable[[], Path]) -> None:
    """All experts stand in blocks, adapted or not, and the adapter is the one of the model that they stand for."""
    test_alike.SETTINGS["olmoe: wide"] = {
        **test_alike.SETTINGS["olmoe"],
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 64,
    }
    base, rounded = tmp_path / "base", tmp_path / "rounded"
    model = test_alike.reference("olmoe: wide")
    for place in (base, rounded):
        if place is rounded:
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if "layers" in name and p.ndim > 1:
                        flat = p.flatten(0, -2)
                        p.copy_(Frozen(flat, torch.float32, "q4_0").matrix().view_as(p))
        model.save_pretrained(place)
        tiny_tokenizer().save_pretrained(place)
    wanted = some(base, targets=("mlp.experts.up",), base="q4_0", micro_batch=2)
    start = open_checkpoint(base)
    made = adapted(start, start.config, wanted, torch.float32).blocks[0].mlp.experts
    assert isinstance(made.up, LowRankStack)
    assert isinstance(made.down, RestingStack)
    assert (
        made.down.frozen.codes.element_size() * made.down.frozen.codes.numel()
        == start.tensors["blocks.0.mlp.experts.down.weight"].numel() // 2
    )
    result = train(wanted, out=out(), quiet=True)
    same = train(some(rounded, targets=("mlp.experts.up",), micro_batch=2), out=out(), quiet=True)
    assert result.path is not None
    assert same.path is not None
    assert gap(ours(rounded, adapter=result.path), ours(rounded, adapter=same.path)) < 1e-3
    losses = [
        [e["loss"] for e in journal.read(run.path / "journal.jsonl") if e["event"] == "step"]
        for run in (result, same)
        if run.path is not None
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_plan_and_memory_know_experts(tmp_path: Path, some: Callable[..., Recipe], out: Callable[[], Path]) -> None:
    base = directory(tmp_path / "base", "olmoe")
    wanted = some(base, targets=("mlp.experts.*",))
    found = plan(wanted, None, out(), False, {})
    start = open_checkpoint(base)
    made = adapted(start, start.config, wanted, torch.float32)
    assert found.trained == sum(p.numel() for p in made.parameters() if p.requires_grad)
    config = start.config
    sizes = [estimate(r, config, torch.float32).weights for r in (wanted, some(base, targets=("attn.q",)))]
    assert sizes[0] > sizes[1]


def test_what_is_not_adapted_is_said_in_a_sentence() -> None:
    config = uniform(40, 16, 1, 64, Attention(2, 2, 8), Experts(4, 2, 6), Norm("rms"))
    family = named("olmoe")
    every = targets(config, family, AdapterSpec("lora"))
    assert set(every) == {f"blocks.0.attn.{part}.weight" for part in "qkvo"}, "experts only where they are named"
    some_experts = targets(config, family, AdapterSpec("lora", 2, targets=("mlp.experts.up",)))
    assert some_experts == {"blocks.0.mlp.experts.up.weight": (4, 6, 16)}
    assert parameters(some_experts, AdapterSpec("lora", 2)) == 4 * 2 * (6 + 16)
    with pytest.raises(UnsupportedError, match="PEFT has no DoRA of experts and routers; set adapter=lora"):
        targets(config, family, AdapterSpec("dora", targets=("mlp.*",)))
