"""Several processes compute what one computes, lose nothing when one is killed, and may be another number later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import glassformer as gf
from glassformer.train import checkpoint, journal, train
from glassformer.train.recipe import Recipe
from glassformer.train.sharded_stepper import shard_rows
from tests.train.conftest import loss_of_saved

Make = Callable[..., Recipe]
Place = Callable[[], Path]
Run = Callable[..., tuple[int, str]]
LOOKS = ("sample", "probe", "eval")
WORKER = Path(__file__).with_name("worker.py")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLASSFORMER_WAIT_MINUTES": "2"}


def torchrun(world: int, *arguments: object, check: bool = True) -> tuple[int, str]:
    """Run the worker in `world` processes on this machine, as a user would: the exit status and what was said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", str(WORKER)]
    done = subprocess.run(
        [*command, *map(str, arguments)], env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def together() -> Iterator[Run]:
    """The same in processes that need no new start (the worker's `launch`)."""
    command = [sys.executable, str(WORKER), "--launch"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdin is not None
        assert launcher.stdout is not None

        def run(world: int, *arguments: object, check: bool = True) -> tuple[int, str]:
            job = {"world": world, "arguments": [*map(str, arguments)], "environment": environment()}
            print(json.dumps(job), file=launcher.stdin, flush=True)
            told = json.loads(launcher.stdout.readline())
            assert not check or told["status"] == 0, told["said"][-4000:]
            return told["status"], told["said"]

        yield run
        launcher.stdin.close()


def losses(directory: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in journal.read(directory / "journal.jsonl") if e["event"] == "step"}


def written(recipe: Recipe, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    file = place.with_suffix(".json")
    file.write_text(json.dumps(recipe.to_dict()))
    return file


@pytest.mark.slow
@pytest.mark.parametrize(("world", "shard"), [(2, "none"), (2, "full"), (4, "none"), (4, "full")])
def test_many_processes_equal_one(together: Run, small: Make, out: Place, world: int, shard: str) -> None:
    # 7 rows do not divide by 2 or 4, 3 rows of a vector not by 4, and 40 columns give matrices of three shapes
    looks = {"sample_every": 5, "sample_tokens": 8, "probe_every": 5, "eval_every": 5}
    recipe = small(steps=10, batch=7, d_ff=40, kv_heads=1, micro_batch=2, seed=3, **looks)
    one, many = out(), out()
    together(1, written(recipe, one), one, one.with_suffix(".grads"))
    together(world, written(recipe.with_settings({"shard": shard}), many), many, many.with_suffix(".grads"))
    a, b = load_file(one.with_suffix(".grads")), load_file(many.with_suffix(".grads"))
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).norm() <= 1e-5 * a[name].norm(), name
    expected, found = losses(one), losses(many)
    assert expected.keys() == found.keys()
    assert all(abs(expected[step] - found[step]) <= 1e-4 for step in expected)
    weights = gf.load(many, device="cpu").transformer.state_dict()
    reference = gf.load(one, device="cpu").transformer.state_dict()
    assert all(torch.allclose(weights[name], reference[name], atol=2e-3) for name in reference)
    same_looks(one, many)


def says_who_is_gone(said: str) -> None:
    """What is left of a job says that it has lost a process, and what to do."""
    assert "Another process of this run is gone or does not answer" in said
    assert "start all of them again with --resume" in said


def same_looks(one: Path, many: Path) -> None:
    """What was sampled, probed and measured on the way is the same, and written once."""
    a, b = ([e for e in journal.read(place / "journal.jsonl") if e["event"] in LOOKS] for place in (one, many))
    assert [(e["event"], e["step"]) for e in a] == [(e["event"], e["step"]) for e in b]
    assert [e["step"] for e in a if e["event"] == "probe"] == [5, 10]
    assert [e["text"] for e in a if e["event"] == "sample"] == [e["text"] for e in b if e["event"] == "sample"]
    for x, y in zip(a, b, strict=True):
        if x["event"] == "eval":
            assert x["held_out"] == pytest.approx(y["held_out"], abs=1e-4)
        if x["event"] != "probe":
            continue
        assert x["next"].keys() == y["next"].keys()
        for prompt, expected in x["next"].items():
            found = dict(y["next"][prompt])
            assert len(found.keys() & dict(expected).keys()) >= 4  # the fifth may be another where two are as likely
            assert all(found[token] == pytest.approx(p, abs=1e-4) for token, p in expected if token in found)
            rows, others = (torch.tensor(e["attention"][prompt]["last"]) for e in (x, y))
            assert torch.allclose(rows, others, atol=5e-4)
        assert x["heads"].keys() == y["heads"].keys()
        for kind, layers in x["heads"].items():
            assert torch.tensor(y["heads"][kind]) == pytest.approx(torch.tensor(layers), abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "full"])
def test_conversations_count_their_answers_over_all_processes(
    together: Run, small: Make, out: Place, tmp_path: Path, shard: str
) -> None:
    # answers of very different lengths: a mean of each process's mean would be another loss
    turns = [("long", "the cat sat on the mat and the dog ran"), ("short", "no"), ("which", "this or that")]
    chats = tmp_path / "chats.jsonl"
    with chats.open("w") as file:
        for i in range(36):
            asked, answer = turns[i % 3]
            messages = [{"role": "user", "content": f"{asked} {i}"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    recipe = small(data=(str(chats),), tokenizer="byte", chat=True, context=64, steps=6, batch=3, held_out=0.2)
    one, many = out(), out()
    train(recipe, out=one, quiet=True)
    together(2, written(recipe.with_settings({"shard": shard}), many), many, "-")
    expected, found = losses(one), losses(many)
    assert expected.keys() == found.keys()
    assert all(abs(expected[step] - found[step]) <= 1e-4 for step in expected)


@pytest.mark.slow
def test_adamw_sharded_equals_one(together: Run, small: Make, out: Place) -> None:
    recipe = small(steps=10, batch=4, kind="adamw", clip=0.5, eps=1e-8)
    one, many = out(), out()
    train(recipe, out=one, quiet=True)
    together(2, written(recipe.with_settings({"shard": "full"}), many), many, "-")
    expected, found = losses(one), losses(many)
    assert all(abs(expected[step] - found[step]) <= 1e-4 for step in expected)


@pytest.mark.slow
def test_the_sharded_held_out_loss_is_of_what_is_saved(
    together: Run, small: Make, out: Place, corpus_file: Path
) -> None:
    place = out()
    together(2, written(small(precision="bf16", steps=8, shard="full", eval_every=8), place), place, "-")
    (measured,) = (e["held_out"] for e in journal.read(place / "journal.jsonl") if e["event"] == "eval")
    assert measured == pytest.approx(loss_of_saved(place, corpus_file), abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then", "shard"), [(2, 4, "full"), (4, 1, "full"), (1, 2, "full"), (2, 1, "none")])
def test_resumed_on_another_number(together: Run, small: Make, out: Place, first: int, then: int, shard: str) -> None:
    recipe = small(steps=10, batch=4, save_every=5, shard=shard)
    straight, place = out(), out()
    train(recipe, out=straight, quiet=True)
    together(first, written(recipe, place), place, "-")
    # forget the second half, as if the run had been cut there
    folder = place / "checkpoints"
    for step, path in checkpoint.all_steps(folder):
        if step > 5:
            path.rename(place / "later")
    before = losses(place)
    together(then, written(recipe, place), place, "-", "--resume")
    after = losses(place)
    assert list(after) == list(range(1, 11))
    assert all(after[step] == before[step] for step in range(1, 6))
    assert all(abs(after[step] - losses(straight)[step]) <= 1e-4 for step in after)
    texts = [e["text"] for e in journal.read(place / "journal.jsonl") if e["event"] == "note"]
    assert any(f"world {first} → {then}" in text for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "full"])
def test_experts_are_trained_and_resumed_by_several_processes(
    together: Run, small: Make, out: Place, shard: str
) -> None:
    recipe = small(design="olmoe-tiny", balance=0.5, kind="adamw", eps=1e-6, steps=6, save_every=2, shard=shard)
    straight, place = out(), out()
    train(recipe, out=straight, quiet=True)
    status, said = together(2, written(recipe, place), place, "-", "--kill", 1, 5, check=False)
    assert status != 0
    says_who_is_gone(said)
    assert checkpoint.newest(place / "checkpoints", print).step in (2, 4)
    together(2, written(recipe, place), place, "-", "--resume")
    found, expected = losses(place), losses(straight)
    assert list(found) == list(range(1, 7))
    assert found == pytest.approx(expected, abs=1e-4)
    assert gf.load(place, device="cpu").config == gf.load(straight, device="cpu").config


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "full"])
def test_a_killed_process_ends_the_job_and_it_resumes(together: Run, small: Make, out: Place, shard: str) -> None:
    if shard == "full":
        together = torchrun
    recipe = small(steps=10, batch=4, save_every=2, shard=shard)
    straight, place = out(), out()
    train(recipe, out=straight, quiet=True)
    status, said = together(2, written(recipe, place), place, "-", "--kill", 1, 7, check=False)
    assert status != 0
    if together is not torchrun:  # which may end the other one before it has spoken
        says_who_is_gone(said)
    saved = checkpoint.newest(place / "checkpoints", print)
    assert saved.step in (4, 6)
    together(2, written(recipe, place), place, "-", "--resume")
    found = losses(place)
    assert list(found) == list(range(1, 11))
    assert all(abs(found[step] - losses(straight)[step]) <= 1e-4 for step in found)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 40])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_rows_are_shared_as_torch_shares_them(rows: int, world: int) -> None:
    pieces = torch.zeros(rows, 1).chunk(world)
    sizes = [len(piece) for piece in pieces] + [0] * (world - len(pieces))
    assert [shard_rows(rows, rank, world) for rank in range(world)] == sizes
