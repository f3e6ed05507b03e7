"""Prefixes in files: what another engine of the same model reads, and what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from glassformer.generate.engine import Engine
from glassformer.generate.prefix_files import PrefixFiles
from glassformer.generate.request import Request
from glassformer.model import Attention, Config, FeedForward, Transformer, uniform

CONFIG = uniform(50, 32, 2, 128, Attention(4, 2, 8), FeedForward(64))
PROMPT = tuple(torch.randint(50, (60,), generator=torch.Generator().manual_seed(3)).tolist())
WAYS = [("exact", None, True), ("exact", 8, True), ("int8", None, True), ("exact", None, False), ("exact", 8, False)]


def random_model(seed: int = 0, config: Config = CONFIG) -> Transformer:
    torch.manual_seed(seed)
    transformer = Transformer(config)
    for p in transformer.parameters():
        p.data.normal_(0, 0.5)
    return transformer.requires_grad_(False)


def answer(
    folder: Path, model: Transformer, ids: tuple[int, ...], *, budget: int = 10**8, precision: str = "exact", **options
) -> tuple[list[tuple[int, float]], int, int]:
    """Tokens and log-probabilities of a new engine's answer, tokens it found in files, and tokens it computed."""
    files = PrefixFiles(folder, budget, model)
    with Engine(model, precision=precision, slots=2, prefix_files=files, **options) as engine:
        assert engine.wait(60)
        computed = 0
        engine._change_runner()
        forward = engine._runner.forward

        def counted(tokens, *given):
            nonlocal computed
            computed += len(tokens)
            return forward(tokens, *given)

        engine._runner.forward = counted
        handle = engine.submit(Request(ids, max_tokens=8, logprobs=0, stop_ids=frozenset()))
        told = [(step.id, step.logprob.logprob) for step in handle]
        return told, handle.cached, computed


@pytest.mark.parametrize(("precision", "bits", "native"), WAYS)
def test_another_engine_does_not_read_a_kept_prefix_again(tmp_path, precision, bits, native):
    model = random_model()
    options = {"precision": precision, "cache_bits": bits, "use_native": native}
    alone, found, computed = answer(tmp_path / "none", model, PROMPT, **options)
    assert (found, computed) == (0, len(PROMPT) + 7)
    first = answer(tmp_path / "kept", model, PROMPT[:50], **options)
    assert first[1] == 0
    again, found, computed = answer(tmp_path / "kept", model, PROMPT, **options)
    assert (found, computed) == (50, 10 + 7)
    if native:
        assert again == alone  # to the bit
    else:  # torch multiplies ten rows in another order than sixty
        assert [i for i, _ in again] == [i for i, _ in alone]
        assert [p for _, p in again] == pytest.approx([p for _, p in alone], abs=1e-4)


def test_other_weights_precisions_and_designs_read_their_own(tmp_path):
    answer(tmp_path, random_model(), PROMPT, use_native=False)
    assert answer(tmp_path, random_model(), PROMPT, use_native=False)[1] == 59
    changed = random_model()
    changed.get_parameter("blocks.1.mlp.down.weight").data[3, 5] += 1e-3  # one number of all
    assert answer(tmp_path, changed, PROMPT, use_native=False)[1] == 0
    assert answer(tmp_path, random_model(), PROMPT, use_native=False, cache_bits=8)[1] == 0
    assert answer(tmp_path, random_model().bfloat16(), PROMPT, use_native=False)[1] == 0
    one, *others = tmp_path.glob("*/*.prefix")
    for other in others:  # put where another model looks, a file is still of its own model
        other.with_name("other.prefix").write_bytes(one.read_bytes())
    assert answer(tmp_path, changed, PROMPT[:55], use_native=False)[1] == 54


def test_a_damaged_file_is_not_used_and_goes(tmp_path):
    model = random_model()
    alone = answer(tmp_path, model, PROMPT, use_native=False)[0]
    for damage in (
        lambda b: b[:-100],
        lambda b: b[:-2000] + b"\0\1\2\3" + b[-1996:],
        lambda b: b"",
        lambda b: b"x" * 99,
    ):
        (path,) = tmp_path.glob("*/*.prefix")
        path.write_bytes(damage(path.read_bytes()))
        again, found, _ = answer(tmp_path, model, PROMPT, use_native=False)
        assert (found, again) == (0, alone)
        assert answer(tmp_path, model, PROMPT, use_native=False)[1] == 59  # it was written anew


def test_files_keep_to_their_budget_and_a_longer_one_takes_a_shorter_ones_place(tmp_path):
    model = random_model()
    answer(tmp_path, model, PROMPT[:40], use_native=False)
    (first,) = tmp_path.glob("*/*.prefix")
    size = first.stat().st_size
    longer = PROMPT[:40] + tuple(i for i, _ in answer(tmp_path, model, PROMPT[:40], use_native=False)[0]) + (7,) * 40
    answer(tmp_path, model, longer, use_native=False)
    (only,) = tmp_path.glob("*/*.prefix")
    assert only != first
    for start in range(5):
        answer(tmp_path, model, ((start,) + PROMPT)[:41], use_native=False, budget=3 * size)
        assert sum(path.stat().st_size for path in tmp_path.glob("*/*.prefix")) <= 3 * size
    assert len(list(tmp_path.glob("*/*.prefix"))) == 2
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_cannot_be_written_costs_no_answer(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert len(answer(tmp_path / "file", random_model(), PROMPT, use_native=False)[0]) == 8
