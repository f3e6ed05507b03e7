"""A model as a runner: texts that take their next token together get the numbers that each would get alone."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.generate import runners
from glassformer.generate.runners import EagerRunner
from glassformer.model import Config, Transformer
from glassformer.model.choices import Attention, FeedForward, Rotary
from glassformer.model.config import uniform
from tests.model.test_stacks import PHASES, drawn
from tests.strategies import stacks


def small(context: int) -> Config:
    return uniform(40, 16, 2, context, Attention(2, 1, 8, rotary=Rotary(1e4)), FeedForward(16))


def passes(transformer: Transformer) -> list[tuple[int, ...]]:
    """The shapes of the tokens of every forward from now on."""
    seen: list[tuple[int, ...]] = []
    transformer.embed.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    return seen


@given(stacks(), st.data())
@settings(max_examples=40, phases=PHASES)
def test_many_texts_get_the_numbers_of_each_alone(config: Config, data: st.DataObject) -> None:
    """Texts of different lengths come, go on in any company, leave and make room for others."""
    transformer = drawn(config)
    runner = EagerRunner(transformer, slots=4, capacity=config.context)
    texts: dict[int, list[int]] = {}
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))

    def more(count: int) -> list[int]:
        return torch.randint(0, config.vocab_size, (count,), generator=generator).tolist()

    for _ in range(data.draw(st.integers(3, 8))):
        tokens, slots, positions, out = [], [], [], []
        for slot in data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True)):
            if data.draw(st.integers(0, 5)) == 0 or len(texts.get(slot, ())) > 12:
                texts[slot] = []
            held = texts.setdefault(slot, [])
            piece = more(1 if held else data.draw(st.integers(1, 6)))
            tokens += piece
            slots += [slot] * len(piece)
            positions += range(len(held), len(held) + len(piece))
            out.append(len(tokens) - 1)
            held += piece
        found = runner.forward(tokens, slots, positions, out)
        for row, index in enumerate(out):
            alone = transformer(torch.tensor([texts[slots[index]]]), last=True)[0, 0]
            torch.testing.assert_close(found[row], alone.float(), rtol=1e-5, atol=1e-6)


def test_a_token_of_each_of_many_texts_is_one_forward(monkeypatch) -> None:
    config = small(600)
    transformer = drawn(config)
    runner = EagerRunner(transformer, slots=3, capacity=600)
    lengths = [3, 5, 520]
    for slot, length in enumerate(lengths):
        runner.forward(list(range(20)) * (length // 20) + list(range(length % 20)), [slot] * length, range(length), [])
    seen = passes(transformer)
    for step in range(runners.GROWTH + 2):  # the room beside each other is full once
        runner.forward([1, 2, 3], [0, 1, 2], [length + step for length in lengths])
    assert set(seen) == {(2, 1), (1, 1)}  # the long text is no company for the short ones
    assert runner._joined[0][1].length < 2 * runners.GROWTH


def test_a_text_cut_back_goes_on_from_there() -> None:
    config = small(64)
    transformer = drawn(config)
    runner = EagerRunner(transformer, slots=2)
    runner.forward([5, 6, 7, 8], [0, 0, 1, 1], [0, 1, 0, 1], [])
    runner.forward([9, 10], [0, 1], [2, 2])
    found = runner.forward([11, 12], [0, 1], [2, 3])  # the first text's last token is taken back
    for row, text in enumerate(([5, 6, 11], [7, 8, 10, 12])):
        alone = transformer(torch.tensor([text]), last=True)[0, 0]
        torch.testing.assert_close(found[row], alone.float(), rtol=1e-5, atol=1e-6)
    runner.copy_prefix(1, 0, 3)
    found = runner.forward([13], [0], [3])
    alone = transformer(torch.tensor([[7, 8, 10, 13]]), last=True)[0, 0]
    torch.testing.assert_close(found[0], alone.float(), rtol=1e-5, atol=1e-6)
