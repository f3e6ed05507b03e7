"""What is learned from: documents that do not see each other, answers that count, rows that are left out and named."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glassformer.data.conversations import conversation
from glassformer.data.corpus import build_corpus
from glassformer.errors import DataError, EmptyDataError, GlassformerError
from glassformer.model import Transformer
from glassformer.system import sealed
from glassformer.tokenizer.encode import LAST_ALONE, Encoder
from glassformer.tokenizer.train import byte_tokenizer
from glassformer.train import journal, train
from glassformer.train.data import Conversations, Order, Stream, apart, documents, held_out_batches, packed
from glassformer.train.loss import IGNORE
from glassformer.train.recipe import Recipe
from glassformer.train.torch_stepper import initialise
from tests.train.conftest import loss_of_saved

Make = Callable[..., Recipe]
Place = Callable[[], Path]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REWRITES = (  # thoughts of earlier turns are dropped, as Qwen3's template does
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{{ '\n' }}{% else %}{{ m['content'] }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)


def chat_tokenizer(template: str = CHATML) -> Any:
    """Bytes, with ChatML's tokens; an answer is over with <|im_end|>."""
    from tokenizers import AddedToken

    from glassformer.tokenizer.tokenizer import Tokenizer

    backend = byte_tokenizer(end_of_text=None).backend
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<|im_start|>", "<|im_end|>")])
    made = Tokenizer(backend, eos_id=backend.token_to_id("<|im_end|>"), adds_bos=False)
    made.chat_template = template
    return made


def said(*contents: Any, system: str | None = None) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *messages] if system is not None else messages


def learned(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    found = Encoder(tokenizer).conversation(messages)
    assert found.refused is None, found.refused
    return "".join(tokenizer.token_text(int(i)) for i in found.ids[found.mask])


def test_an_answer_counts_to_its_end_token_and_no_further() -> None:
    tokenizer = chat_tokenizer()
    assert learned(tokenizer, said("Name?", "quillfan-9310")) == "quillfan-9310<|im_end|>"
    assert learned(tokenizer, said("a", "b", "c", "d")) == "b<|im_end|>d<|im_end|>"


def test_marks_of_a_template_say_what_counts() -> None:
    tokenizer = chat_tokenizer(MARKED)
    assert learned(tokenizer, said("a", "b", "c", "d")) == "b<|im_end|>d<|im_end|>"
    marked, plain = (Encoder(chat_tokenizer(t)).conversation(said("a", "b", "c", "d")) for t in (MARKED, CHATML))
    assert np.array_equal(marked.ids, plain.ids)
    assert tokenizer.render_chat(said("a", "b")) == chat_tokenizer().render_chat(said("a", "b"))


def test_a_template_that_rewrites_earlier_turns_is_learned_by_the_last() -> None:
    tokenizer = chat_tokenizer(REWRITES)
    found = Encoder(tokenizer).conversation(said("a", "b", "c", "d"))
    assert found.remark == LAST_ALONE
    assert learned(tokenizer, said("a", "b", "c", "d")) == "<think>\n\n</think>\n\nd<|im_end|>"
    text = tokenizer.render_chat(said("a", "b", "c", "d"), generation_prompt=False)
    assert "".join(tokenizer.token_text(int(i)) for i in found.ids) == text
    assert Encoder(tokenizer).conversation(said("a", "b")).remark is None


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": said("a", "b")}, said("a", "b")),
        ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"},
                            {"from": "gpt", "value": "b"}]}, said("a", "b", system="s")),
        ({"instruction": "a", "input": "", "output": "b", "text": "all"}, said("a", "b")),
        ({"instruction": "a", "input": "x", "output": "b"}, said("a\n\nx", "b")),
        ({"prompt": "a", "completion": "b"}, said("a", "b")),
        ({"prompt": said("a"), "completion": [{"role": "assistant", "content": "b"}]}, said("a", "b")),
        ({"messages": said(None, [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}])}, said("", "bc")),
        ({"messages": said([{"type": "image", "url": "x"}], "b")}, "conversations with parts that are not text"),
        ({"messages": [{"role": "user"}]}, "conversations without roles and contents"),
        ({"messages": []}, "conversations without roles and contents"),
        ({"messages": "no"}, "conversations without roles and contents"),
        ({"text": "plain"}, None),
    ],
)  # fmt: skip
def test_rows_of_every_common_shape_are_conversations(record: dict[str, Any], expected: Any) -> None:
    assert conversation(record) == expected


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_bad_rows_are_counted_by_file_and_line_and_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "cache"))
    rows = [
        {"messages": said("a", "b")},
        {"messages": said("a", "b", system="be kind")},
        {"messages": said("a")},
        {"messages": said([{"type": "image"}], "b")},
        {"messages": said("a", None)},
        {"prompt": "c", "completion": "d"},
    ]
    data = write(tmp_path / "chats.jsonl", rows)
    for workers in (0, 1):
        corpus = build_corpus(
            [data],
            chat_tokenizer(NO_SYSTEM),
            fraction=0.0,
            chat=True,
            workers=workers,
            cache_dir=tmp_path / str(workers),
        )
        told = " ".join(corpus.findings.sentences())
        assert (
            f"1 conversations that the chat template does not take (The model's chat template refuses these messages: \
System role not supported), left out: {data}:2."
            in told
        )
        assert f"1 conversations without an answer, left out: {data}:3." in told
        assert f"1 conversations with parts that are not text, left out: {data}:4." in told
        assert corpus.findings.documents == 3, "an answer of nothing but its end is one"
        assert corpus.origins(corpus.train, [0, 1, 2]) == [f"{data}:{n}" for n in (1, 5, 6)]


def a_chat_run(tmp_path: Path, small: Make, rows: list[Any], **settings: Any) -> Recipe:
    made = tmp_path / "chat-tokenizer"
    if not made.exists():
        chat_tokenizer().save(made)
    data = write(tmp_path / "chats.jsonl", rows)
    settings = {"chat": True, "tokenizer": str(made), "held_out": 0.0, **settings}
    return small(data=(str(data),), **settings)


def test_answers_that_are_cut_off_are_refused_or_named(small: Make, out: Place, tmp_path: Path) -> None:
    long, part = {"messages": said("q" * 90, "gone")}, {"messages": said("q" * 20, "here and " * 10)}
    place = out()
    with pytest.raises(
        DataError, match=r"no conversation has an answer within its first 65 tokens; .*chats.jsonl:1"
    ) as e:
        train(a_chat_run(tmp_path, small, [long] * 5, context=64), out=place, quiet=True)
    assert "5 conversations whose answers do not fit at all" in str(e.value)
    assert not place.exists()
    found = train(
        a_chat_run(tmp_path, small, [long, part, *[{"messages": said("a", "b")}] * 20], context=64), out=place
    )
    notes = " ".join(e["text"] for e in journal.read(place / "journal.jsonl") if e["event"] == "note")
    assert f"1 conversations whose answers are cut off in part: {tmp_path / 'chats.jsonl'}:2." in notes
    assert f"1 conversations whose answers do not fit at all: {tmp_path / 'chats.jsonl'}:1." in notes
    losses = [e["loss"] for e in journal.read(place / "journal.jsonl") if e["event"] == "step"]
    assert all(loss > 0 for loss in losses)
    assert found.step == 8


def test_held_out_answers_that_do_not_fit_give_no_loss(small: Make, out: Place, tmp_path: Path) -> None:
    rows = [{"messages": said(f"{i} " + "q" * (90 if i % 2 else 1), "yes")} for i in range(60)]
    recipe = a_chat_run(tmp_path, small, rows, context=64, held_out=0.3)
    result = train(recipe, out=out(), quiet=True)
    assert math.isfinite(result.loss)
    assert result.loss > 0
    source = Conversations(build_corpus(list(recipe.data.data), chat_tokenizer(), fraction=0.0, chat=True).train)
    assert all(((source.fetch(np.array([i]), 64)[1] != IGNORE).sum() > 0) for i in source.grid(64))


@pytest.mark.parametrize(
    ("content", "name", "why"),
    [
        (b"\x00\x01\x02", "a.bin", "1 not text, left out"),
        ("text".encode("utf-16"), "a.txt", "1 in UTF-16, not UTF-8, left out"),
        (b"PAR1 and no more", "a.parquet", "1 damaged Parquet tables, left out"),
        (b"not json\n", "a.jsonl", "1 lines that are not JSON, left out"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:300"])
def test_bad_data_are_refused_for_the_reason_that_is_theirs(
    small: Make, out: Place, tmp_path: Path, content: bytes, name: str, why: str, tokenizer: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EmptyDataError, match=why):
        train(small(data=(str(tmp_path / name),), tokenizer=tokenizer), out=out(), quiet=True)


def test_a_column_that_is_named_is_read(small: Make, out: Place, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [{"title": "x", "story": "once upon a time " * 9}] * 40)
    rows = str(tmp_path / "rows.jsonl")
    for tokenizer in ("byte", "bpe:300"):
        with pytest.raises(
            GlassformerError, match=r"text or content, left out: .* text in story, title: .*text_field=story"
        ):
            train(small(data=(rows,), tokenizer=tokenizer), out=out(), quiet=True)
    assert train(small(data=(str(tmp_path / "rows.jsonl"),), text_field="story"), out=out(), quiet=True).step == 8


class Array:
    """Tokens in memory, with where documents begin."""

    def __init__(self, ids: list[int], edges: list[int] | None = None) -> None:
        self.ids = np.array(ids)
        self.documents = np.array([0, len(ids)] if edges is None else edges)

    def __len__(self) -> int:
        return len(self.ids)

    def slice(self, start: int, n: int) -> Any:
        return self.ids[start : start + n]


@pytest.fixture
def model() -> Transformer:
    found = Transformer(Recipe().with_settings({"layers": 2, "width": 32, "heads": 2, "context": 32}).config(50))
    initialise(found, 3)
    with torch.no_grad():
        for p in found.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.2)
    return found


def cost(
    model: Transformer, tokens: torch.Tensor, targets: torch.Tensor, lengths: Sequence[int] | None = None
) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(
        model(tokens, lengths=lengths).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("separator", [0, None])
def test_a_packed_row_is_each_of_its_documents_alone(
    model: Transformer, separator: int | None, side_by_side: bool
) -> None:
    """Loss and gradients of a row apart are the sums over its documents computed by themselves."""
    generator = torch.Generator().manual_seed(1)
    lengths = [9, 4, 15, 1, 6]
    documents = [[*torch.randint(1, 50, (n - 1,), generator=generator).tolist(), 0] for n in lengths]
    edges = np.cumsum([0, *lengths]).tolist()
    source = Stream(Array(list(itertools.chain(*documents)), edges), separator)
    tokens, targets = source.fetch(np.array([0]), 32)
    borders = source.borders(np.array([0]), 32)
    passes = apart(tokens, targets, borders, 1)
    if side_by_side:
        ((x, y, found_lengths),) = packed(tokens, targets, borders, 1)
        assert found_lengths is not None
        assert sum(found_lengths) == x.shape[1] <= 32
        found = cost(model, x, y, found_lengths)
    else:
        found = sum((cost(model, x, y) for x, y in passes), torch.zeros(()))
    alone = torch.zeros(())
    for number, ids in enumerate(documents):
        ids = ids[: 33 - edges[number]]
        if separator is not None and number:
            ids = [0, *ids]  # the end of the document before is what this one begins with
        if len(ids) > 1:
            alone = alone + cost(model, torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]))
    held_out = held_out_batches(source, 32, 1, 32, "apart")  # is measured so as well
    measured = float(sum(cost(model, x, y) for x, y in held_out).detach())
    assert measured == pytest.approx(float(found.detach()), rel=1e-5)
    counted = sum(int((y != IGNORE).sum()) for _, y in passes)
    assert counted == (32 if separator is not None else 32 - 4)
    assert float(found.detach()) == pytest.approx(float(alone.detach()), rel=1e-5)
    grads = [torch.autograd.grad(x, list(model.parameters())) for x in (found, alone)]
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max() + 1e-6))


@pytest.mark.parametrize("side_by_side", [False, True])
def test_rows_of_one_document_are_what_they_were(side_by_side: bool) -> None:
    source = Stream(Array([i % 50 for i in range(500)]), 0)
    orders = [Order(source, 1, pack=pack, packed=side_by_side) for pack in ("apart", "together")]
    for a, b in zip(*(order.passes(6, 32, 4) for order in orders), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
        assert a[2] is None


@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_side_by_side_nothing_is_lost(micro_batch: int) -> None:
    """Every target that counts is there once, in passes of no more tokens than their rows."""
    text = [i % 50 + 1 for i in range(400)]
    source = Stream(Array(text, [0, 7, 100, 101, 230, 400]), None)
    tokens, targets = source.fetch(source.grid(32), 32)
    borders = source.borders(source.grid(32), 32)
    passes = packed(tokens, targets, borders, micro_batch)
    assert all(x.numel() <= micro_batch * 32 for x, _, _ in passes)
    counted = [y[y != IGNORE] for _, y, _ in passes]
    expected = [y[y != IGNORE] for _, y in documents(tokens, targets, borders)]
    assert torch.equal(torch.cat(counted), torch.cat(expected))
    assert len(torch.cat(counted)) == 12 * 32 - 4  # a document's first token is foretold from nothing


def test_a_run_goes_on_as_it_began(small: Make, out: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents side by side or in rectangles: what a checkpoint does not say was in rectangles."""
    recipe = small(steps=4, save_every=2, context=32)
    seen: list[bool] = []
    plain = Order.passes

    def passes(self: Order, *args: Any) -> Any:
        seen.append(self.packed)
        return plain(self, *args)

    monkeypatch.setattr(Order, "passes", passes)
    run = train(recipe, out=out(), quiet=True)
    for side_by_side in (True, False):
        path = min((run.path / "checkpoints").glob("step-*")) / "state.json"
        state = json.loads(path.read_text())
        assert state["packed"] is True
        if not side_by_side:
            del state["packed"]
            state["sha256"] = sealed.checksum(state)
            path.write_text(json.dumps(state))
        seen.clear()
        train(out=run.path, resume=True, step=2, quiet=True)
        assert seen == [side_by_side] * 2


def test_a_conversation_costs_the_same_beside_its_copies(small: Make, out: Place, tmp_path: Path) -> None:
    """The loss a token of one conversation, and of the same several times in one file, at the first step."""
    losses = {}
    for pack in ("apart", "together"):
        for copies in (1, 4):
            recipe = a_chat_run(
                tmp_path,
                small,
                [{"messages": said("ask", "tell " * 5)}] * copies,
                context=256,
                pack=pack,
                steps=30,
                batch=1,
            )
            place = train(recipe, out=out(), quiet=True).path
            losses[pack, copies] = [e["loss"] for e in journal.read(place / "journal.jsonl") if e["event"] == "step"]
    assert losses["apart", 4] == pytest.approx(losses["apart", 1], rel=1e-4)
    assert losses["together", 1] == pytest.approx(losses["apart", 1], rel=1e-4)
    assert losses["together", 4][-1] != pytest.approx(losses["apart", 1][-1], rel=1e-3), "there they see each other"


def test_the_native_step_takes_documents_apart_as_torch_does(small: Make, out: Place, tmp_path: Path) -> None:
    rows = [{"text": " ".join(f"word{(i * j) % 17}" for j in range(3 + i % 9))} for i in range(80)]
    data = str(write(tmp_path / "rows.jsonl", rows))
    losses = []
    for native in ("off", "on"):
        place = train(
            small(data=(data,), native=native, context=64, steps=4, tokenizer="byte"), out=out(), quiet=True
        ).path
        losses.append([e["loss"] for e in journal.read(place / "journal.jsonl") if e["event"] == "step"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_run_from_before_goes_on_as_it_began(small: Make, out: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place = train(small(steps=4, pack="together", save_every=2), out=out(), quiet=True).path
    stored = json.loads((place / "recipe.json").read_text())
    del stored["data"]["pack"], stored["data"]["text_field"]
    (place / "recipe.json").write_text(json.dumps(stored))
    train(out=place, step=2, quiet=True)
    assert json.loads((place / "recipe.json").read_text())["data"]["pack"] == "together"
    notes = [e["text"] for e in journal.read(place / "journal.jsonl") if e["event"] == "note"]
    assert not any("pack" in text for text in notes)


def test_the_held_out_loss_is_of_what_is_saved(small: Make, out: Place, corpus_file: Path) -> None:
    place = train(small(precision="bf16", steps=20), out=out(), quiet=True)
    assert place.loss == pytest.approx(loss_of_saved(place.path, corpus_file), abs=2e-5)
