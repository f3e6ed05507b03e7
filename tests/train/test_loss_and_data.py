"""The chunked loss against the plain one; the order of rows; conversations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import DataError, UsageError
from glassformer.train import loss
from glassformer.train.data import Conversations, Cursor, Order, Stream, held_out_batches
from glassformer.train.loss import IGNORE, chunk_rows, cross_entropy_sum
from glassformer.train.recipe import Recipe


class Array:
    """Tokens in memory, as shards give them."""

    masked = False

    def __init__(self, tokens: list[int], mask: list[bool] | None = None, documents: list[int] | None = None) -> None:
        self.tokens = np.array(tokens, dtype=np.uint16)
        self.mask = np.array(mask or [True] * len(tokens))
        self.documents = np.array(documents or [0, len(tokens)])

    def __len__(self) -> int:
        return len(self.tokens)

    def slice(self, start: int, n: int) -> np.ndarray:
        assert start >= 0
        assert start + n <= len(self)
        return self.tokens[start : start + n]

    def mask_slice(self, start: int, n: int) -> np.ndarray:
        return self.mask[start : start + n]


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 9),
    vocab=st.integers(1, 12),
    chunk=st.integers(1, 10),
    cap=st.sampled_from([None, 2.0]),
    drop=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_chunked_loss_is_the_plain_one(
    rows: int, vocab: int, chunk: int, cap: float | None, drop: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 6, generator=generator).double().float()
    weight = torch.randn(vocab, 6, generator=generator)
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    if drop:
        targets[::2] = IGNORE
    results = []
    for ours in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if ours:
            loss = cross_entropy_sum(h, w, targets, softcap=cap, chunk=chunk)
        else:
            logits = h @ w.T
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            loss = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORE)
        (loss * 0.5).backward()
        results.append((loss.detach(), h.grad, w.grad))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=2e-5), (a, b)


def test_logits_of_a_wide_vocabulary_are_cut() -> None:
    assert chunk_rows(8 * 1024, 50_257, 64) * 50_257 * 4 <= 64 << 20
    assert chunk_rows(8 * 1024, 50_257, 768, size=2) == 1024, "fewer sums of gradients as large as the unembedding"
    assert chunk_rows(1024, 50_257, 768, size=2) == 1024
    assert chunk_rows(1024, 50_257, 384, size=2) == 512, "two of one length, not one and a rest"
    assert chunk_rows(8 * 1024, 65, 384) == 8 * 1024, "all fit"
    assert chunk_rows(640, 10**9, 16) == 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strips_of_a_chunk_give_the_gradient_of_all_rows(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = torch.randn(13, 6).to(dtype), torch.randn(7, 6).to(dtype)
    targets = torch.randint(0, 7, (13,))
    targets[5] = IGNORE
    monkeypatch.setattr(loss, "_strip_rows", lambda logits: 3)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    cross_entropy_sum(h, w, targets, chunk=8).backward()
    assert h.grad is not None
    assert w.grad is not None
    logits = (hidden.double() @ weight.double().T).to(dtype).double().requires_grad_()
    F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORE).backward()
    assert logits.grad is not None
    within = 1e-5 if dtype == torch.float32 else 3e-2
    assert torch.allclose(h.grad.double(), logits.grad @ weight.double(), atol=within, rtol=within)
    assert torch.allclose(w.grad.double(), logits.grad.T @ hidden.double(), atol=within, rtol=within)


def test_without_gradients_nothing_is_kept() -> None:
    hidden, weight = torch.randn(4, 3), torch.randn(5, 3)
    with torch.no_grad():
        loss = cross_entropy_sum(hidden, weight, torch.tensor([0, 1, 2, IGNORE]))
    assert loss.item() == pytest.approx(
        F.cross_entropy(hidden[:3] @ weight.T, torch.arange(3), reduction="sum").item(), rel=1e-5
    )


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_one_order(world: int) -> None:
    source = Stream(Array(list(range(203))))
    alone = Order(source, seed=4)
    shared = [Order(source, seed=4) for _ in range(world)]
    for length in (8, 8, 8, 16, 16):
        tokens, targets = alone.next(5, length)
        assert torch.equal(targets, tokens + 1)
        parts = [order.next(5, length, rank, world)[0] for rank, order in enumerate(shared)]
        together = torch.empty_like(tokens)
        for rank, part in enumerate(parts):
            together[rank::world] = part
        assert torch.equal(together, tokens)


def test_an_epoch_shows_everything_once_and_the_next_is_another() -> None:
    order = Order(Stream(Array(list(range(161)))), seed=1)
    first = torch.cat([order.next(4, 8)[0] for _ in range(4)])
    assert order.epoch == 0
    rest = order.next(3, 8)[0]
    seen = torch.cat([first, rest]).flatten()
    assert len(set(seen.tolist())) == len(seen)
    second = torch.cat([order.next(4, 8)[0] for _ in range(4)])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("sampling", ["epoch", "random"])
def test_a_cursor_continues_the_order(sampling: str) -> None:
    source = Stream(Array(list(range(300))))
    order = Order(source, 2, sampling)
    for _ in range(5):
        order.next(7, 8)
    saved = json.loads(json.dumps(order.cursor.to_dict()))
    expected = order.next(7, 8)[0]
    again = Order(source, 2, sampling, Cursor(**saved))
    assert torch.equal(again.next(7, 8)[0], expected)
    assert not torch.equal(Order(source, 3, sampling, Cursor(**saved)).next(7, 8)[0], expected)


def test_random_rows_start_anywhere() -> None:
    order = Order(Stream(Array(list(range(100)))), 0, "random")
    starts = order.next(400, 10)[0][:, 0]
    assert int(starts.min()) < 3
    assert int(starts.max()) > 86
    assert len(set((starts % 10).tolist())) == 10


@pytest.mark.parametrize("world", [1, 2])
def test_noise_replaces_some_of_the_tokens_read_and_none_of_those_foretold(world: int) -> None:
    shards = Array(list(range(10_000)))
    plain, noisy = (Order(Stream(shards), 3, "random", noise=noise) for noise in (0.0, 0.2))
    x, y = plain.next(64, 100)
    got = [Order(Stream(shards), 3, "random", noise=0.2).next(64, 100, rank, world) for rank in range(world)]
    first, targets = (torch.stack(parts, 1).flatten(0, 1) for parts in zip(*got, strict=True))
    assert torch.equal(targets, y)
    changed = first != x
    assert 0.17 < changed.float().mean() < 0.23
    assert bool(((first >= x[:, :1]) & (first <= x[:, -1:])).all())  # only tokens of the row itself
    assert torch.equal(noisy.next(64, 100)[0], first)
    second = noisy.next(64, 100)[0] != plain.next(64, 100)[0]
    assert (second == changed).float().mean() < 0.8  # other places in every row, and at every step
    assert (changed[0] == changed[1]).float().mean() < 0.9


def test_noise_is_for_plain_text() -> None:
    with pytest.raises(UsageError, match="noise is for plain text"):
        Recipe().with_settings(["noise=0.1", "chat=true"])


def test_too_little_text_is_refused() -> None:
    with pytest.raises(DataError, match="The training text has 5 tokens, fewer than one row of 8 and its next"):
        Order(Stream(Array(list(range(5)))), 0).next(1, 8)


def test_held_out_text_is_measured_end_to_end() -> None:
    batches = list(held_out_batches(Stream(Array(list(range(50)))), 8, 4, 10_000))
    tokens = torch.cat([x for x, _ in batches]).flatten()
    assert tokens.tolist() == list(range(48))


def test_conversations_are_kept_whole_and_only_answers_count() -> None:
    documents = [0, 4, 7, 10, 25]
    mask = [i % 2 == 0 for i in range(25)]
    rows = Conversations(Array(list(range(25)), mask, documents))
    assert len(rows.grid(9)) == 2
    tokens, targets = rows.fetch(rows.grid(9), 9)
    assert tokens[0].tolist() == list(range(9))
    assert targets[0].tolist() == [i if i % 2 == 0 else IGNORE for i in range(1, 10)]
    assert tokens[1].tolist() == list(range(10, 19))
    short = Conversations(Array(list(range(4)), None, [0, 4]))
    tokens, targets = short.fetch(short.grid(9), 9)
    assert tokens[0].tolist() == [0, 1, 2, 0, 0, 0, 0, 0, 0]
    assert targets[0].tolist() == [1, 2, 3, *[IGNORE] * 6]


TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_fine_tuning_on_conversations(
    small: Callable[..., Recipe], out: Callable[[], Path], tmp_path: Path, tokenizer_dir: Path
) -> None:
    from glassformer.tokenizer.tokenizer import Tokenizer
    from glassformer.train import journal, train

    base = train(small(steps=4), out=out(), quiet=True)
    tokenizer = Tokenizer.from_directory(base.path)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save(base.path)
    chats = tmp_path / "chats.jsonl"
    lines = []
    for i in range(120):
        lines.append(
            json.dumps({"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yes!"}]})
        )
    chats.write_text("\n".join(lines) + "\n")
    recipe = small(start=str(base.path), data=(str(chats),), chat=True, context=48, steps=40, batch=8, eval_tokens=4096)
    tuned = train(recipe, out=out(), quiet=True)
    first = next(e for e in journal.read(tuned.path / "journal.jsonl") if e["event"] == "step")
    assert tuned.loss < 0.5 < first["loss"]
    plain = small(start=str(base.path), data=(str(tmp_path / "text.txt"),), chat=True, held_out=0.0)
    with pytest.raises(DataError, match="chat=true needs conversations: rows with"):
        train(plain, out=out(), quiet=True)
