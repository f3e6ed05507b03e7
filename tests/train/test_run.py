"""A run from text to a model that opens like any other."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import glassformer as gf
from glassformer.errors import DataError, UsageError
from glassformer.train import journal, train
from glassformer.train.recipe import Recipe
from glassformer.train.torch_stepper import TorchStepper


def losses(directory: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in journal.read(directory / "journal.jsonl") if e["event"] == "step"}


def test_a_run_is_a_model(small: Callable[..., Recipe], out: Callable[[], Path]) -> None:
    result = train(small(steps=40, batch=8), out=out(), quiet=True)
    assert result.step == 40
    assert not result.interrupted
    seen = losses(result.path)
    assert seen[1] == pytest.approx(math.log(256), abs=0.02)
    assert result.loss < 0.75 * seen[1]
    assert result.bits_per_byte == pytest.approx(result.loss / math.log(2))
    model = gf.load(result.path, device="cpu")
    assert model.config.n_layers == 2
    distribution = model.next("the c")
    assert distribution.top(3)


def test_the_journal_tells_what_ran(small: Callable[..., Recipe], out: Callable[[], Path]) -> None:
    result = train(
        small(eval_every=4, sample_every=4, probe_every=4, sample_tokens=5),
        out=out(),
        quiet=True,
        probes=[lambda transformer, tokenizer, step: {"width": transformer.config.d_model}],
    )
    events = list(journal.read(result.path / "journal.jsonl"))
    kinds = [e["event"] for e in events]
    assert kinds[0] == "start"
    assert kinds[-1] == "stop"
    start = events[0]
    assert start["parameters"] > 0
    assert start["peak_flops"] > 0
    assert "peak" in start["mfu_formula"]
    assert [e["step"] for e in events if e["event"] == "sample"] == [4, 8]
    assert [(e["step"], e["width"]) for e in events if e["event"] == "probe"] == [(4, 32), (8, 32)]
    measured = next(e for e in events if e["event"] == "eval")
    assert measured["weight_norms"]["blocks.1.mlp"] >= 0
    assert set(measured["gradient_norms"]) == set(measured["weight_norms"])


def test_both_precisions_and_every_design_learn(small: Callable[..., Recipe], out: Callable[[], Path]) -> None:
    for design in ("qwen3", "llama", "gpt2", "relu2"):
        for precision in ("bf16", "fp32"):
            result = train(small(design=design, precision=precision, steps=20, batch=8), out=out(), quiet=True)
            assert result.loss < 4.5, (design, precision)


def test_gradients_accumulate_to_the_same(small: Callable[..., Recipe], out: Callable[[], Path]) -> None:
    whole = train(small(batch=8), out=out(), quiet=True)
    parts = train(small(batch=8, micro_batch=3), out=out(), quiet=True)
    a, b = losses(whole.path), losses(parts.path)
    assert a.keys() == b.keys()
    assert all(a[k] == pytest.approx(b[k], abs=1e-4) for k in a)


def test_recomputing_changes_nothing(small: Callable[..., Recipe], out: Callable[[], Path]) -> None:
    plain = train(small(), out=out(), quiet=True)
    again = train(small(recompute=True), out=out(), quiet=True)
    assert losses(plain.path) == pytest.approx(losses(again.path), abs=1e-5)


def test_schedules_change_rows_and_lengths(
    small: Callable[..., Recipe], out: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    plain = TorchStepper.accumulate

    def accumulate(
        self: TorchStepper, tokens: torch.Tensor, targets: torch.Tensor, scale: float, lengths: None
    ) -> torch.Tensor:
        seen.append(tuple(tokens.shape))
        assert scale == pytest.approx(1 / tokens.numel())
        return plain(self, tokens, targets, scale, lengths)

    monkeypatch.setattr(TorchStepper, "accumulate", accumulate)
    recipe = small(length_stages=[[0.5, 8]], batch_stages=[[0.25, 2]])
    assert train(recipe, out=out(), quiet=True).step == 8
    assert seen == [(2, 8)] * 2 + [(4, 8)] * 2 + [(4, 16)] * 4


def test_tensorboard_shows_what_the_journal_holds(small: Callable[..., Recipe], out: Callable[[], Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(small(tensorboard=True, eval_every=4, sample_every=8, sample_tokens=3), out=out(), quiet=True)
    shown = EventAccumulator(str(result.path / "tensorboard"))
    shown.Reload()
    curve = {e.step: e.value for e in shown.Scalars("step/loss")}
    assert curve == pytest.approx(losses(result.path), rel=1e-6)
    assert [e.step for e in shown.Scalars("eval/held_out")] == [4, 8]
    assert shown.Scalars("eval/weight_norms/blocks.1.mlp")[0].value > 0
    assert "sample/text_summary" in shown.Tags()["tensors"]


def test_without_tensorboard_it_is_said_before_training(
    small: Callable[..., Recipe], out: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        UsageError, match="tensorboard=true needs the package tensorboard; install it with: pip install"
    ):
        train(small(tensorboard=True), out=out(), quiet=True)


def test_an_occupied_directory_is_refused(small: Callable[..., Recipe], out: Callable[[], Path]) -> None:
    place = out()
    train(small(steps=1), out=place, quiet=True)
    with pytest.raises(UsageError, match="holds a run already, of 1 steps; name another place with --out"):
        train(small(steps=1), out=place, quiet=True)
    other = out()
    other.mkdir(parents=True)
    (other / "letter.txt").write_text("x")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        train(small(), out=other, quiet=True)
    with pytest.raises(UsageError, match="There is no run in .* to resume"):
        train(out=out(), resume=True, quiet=True)


def test_training_leaves_the_random_state_alone(small: Callable[..., Recipe], out: Callable[[], Path]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(small(steps=2), out=out(), quiet=True)
    assert torch.equal(torch.rand(3), expected)


def test_few_documents_hold_out_the_end(small: Callable[..., Recipe], out: Callable[[], Path], tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(2):
        (folder / f"{i}.txt").write_text("the cat sat on the mat and the dog ran to the house.\n" * 40)
    result = train(small(data=(str(folder),), held_out=0.2, split="document"), out=out(), quiet=True)
    notes = [e["text"] for e in journal.read(result.path / "journal.jsonl") if e["event"] == "note"]
    assert notes == ["Too few documents to hold whole ones out: the end of the text is held out."]
    assert not math.isnan(result.loss)


def test_reading_is_told_while_it_lasts(
    small: Callable[..., Recipe], out: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int | None]] = []
    monkeypatch.setattr(journal.Journal, "progress", lambda self, *what: told.append((*what, None)[:3]))
    train(small(steps=1, tokenizer="bpe:300"), out=out(), quiet=True)
    assert {stage for stage, _, _ in told} == {"learning a tokenizer", "tokenising"}
    assert told[-1][1] > 0


def test_the_live_line_shows_a_bar_on_a_terminal_and_keeps_quiet_elsewhere() -> None:
    stream = io.StringIO()
    line = journal.LiveLine(10, stream=stream)
    line.progress("tokenising", 5_000_000, 20_000_000)
    assert stream.getvalue() == ""
    line.every = 0.0
    line.progress("tokenising", 5_000_000, 20_000_000)
    line.progress("reading", 5_000_000, None)
    assert stream.getvalue() == f"tokenising  {'━' * 6}{'╌' * 18}  5.0 of 20.0 MB\nreading  5.0 MB\n"
    shown: list[str] = []
    line.interactive = True
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr(line, "_draw", shown.append)
        line._told = 0.0
        line.progress("tokenising", 10, 10)
        line.progress("tokenising", 10, 10)  # too soon after the one before
    assert shown == [f"tokenising  {'━' * 24}  0.0 of 0.0 MB"]


def test_a_model_without_a_template_learns_conversations(
    small: Callable[..., Recipe], out: Callable[[], Path], tmp_path: Path
) -> None:
    chats = tmp_path / "chats.jsonl"
    turn = {"messages": [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "the cat sat"}]}
    chats.write_text((json.dumps(turn) + "\n") * 30)
    first = train(small(steps=4, context=32, tokenizer="byte"), out=out(), quiet=True)
    recipe = small(start=str(first.path), data=(str(chats),), chat=True, steps=60, context=64, held_out=0)
    result = train(recipe, out=out(), quiet=True)
    notes = [e["text"] for e in journal.read(result.path / "journal.jsonl") if e["event"] == "note"]
    assert notes == ["The model has no chat template: a plain one is used (User: …, Assistant: …) and saved."]
    model = gf.load(result.path, device="cpu")
    assert model.config.context == 64, "rows longer than the model was made for make its context longer"
    prompt = model.tokenizer.render_chat([{"role": "user", "content": "say it"}])
    assert prompt == "User: say it\nAssistant:"
    ids = model.tokenizer.encode(prompt, False)
    for _ in range(13):
        ids.append(int(model.transformer(torch.tensor([ids]), last=True)[0, -1].argmax()))
    assert model.decode(ids).removeprefix(prompt).startswith(" the cat sat")
    assert ids[-1] == model.tokenizer.eos_id, "the answer's end is learned too"
    # only answers ask for loss: what the user says is as strange to the model as before
    assert losses(result.path)[60] < 0.2


def test_conversations_are_asked_for_by_name(
    small: Callable[..., Recipe], out: Callable[[], Path], corpus_file: Path
) -> None:
    with pytest.raises(DataError, match=r"There are too few conversations to hold out 0\.1 of them; give more"):
        train(small(chat=True), out=out(), quiet=True)
    with pytest.raises(DataError, match=r"chat=true needs conversations: rows with"):
        train(small(chat=True, held_out=0, tokenizer="byte"), out=out(), quiet=True)
