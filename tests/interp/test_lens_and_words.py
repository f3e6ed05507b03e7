"""The lens ends in the model's answer; words gather tokens; a cell's steps give each other."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import ShapeError, TextError, UsageError
from glassformer.interp import edits
from glassformer.interp.token_words import Word, mean_by_word, sum_by_word, words
from glassformer.interp.trace import Trace
from glassformer.model.transformer import Transformer
from tests.interp.helpers import Letters, close, model, randomised
from tests.strategies import configs


@settings(max_examples=20, deadline=None)
@given(configs(), st.integers(0, 2**16))
def test_the_last_row_is_the_model_s_output(config, seed):
    transformer = randomised(Transformer(config), seed)
    ids = torch.randint(0, config.vocab_size, (7,), generator=torch.Generator().manual_seed(seed)).tolist()
    found = Trace(transformer, ids).lens(3)
    with torch.no_grad():
        expected = torch.softmax(transformer(torch.tensor([ids]))[0], -1).topk(3)
    assert found.places[-1] == f"blocks.{config.n_layers - 1}.resid_post"
    close(found.probabilities[-1], expected.values)
    assert len(found.places) == 1 + config.n_layers * (1 if config.layers[0].parallel else 2)
    assert found.rank[-1].tolist() == [0] * 7
    assert (found.probabilities.diff(dim=-1) <= 0).all()


def test_rows_are_what_a_shorter_model_would_say():
    transformer = model()
    t = Trace(transformer, [1, 2, 3])
    found = t.lens(40, follow=7)
    for row, place in enumerate(found.places):
        name = "blocks.0.resid_pre" if place == "embed" else place
        p = torch.softmax(transformer.unembed_hidden(transformer.final(t.tensor(name)))[0], -1)
        close(found.chance[row], p[:, 7])
        close(found.entropy[row], -(p * p.log()).sum(-1))
        assert found.rank[row].tolist() == (p > p[:, 7:8]).sum(-1).tolist()
    some = t.lens(2, positions=[-1], layers=[0], halves=False)
    assert some.places == ["blocks.0.resid_post", "blocks.1.resid_post"]
    data = json.loads(json.dumps(some.to_dict(), allow_nan=False))
    assert data["positions"] == [2]
    assert len(data["rows"][0]["cells"][0]["top"]) == 2


def test_a_lens_on_an_edited_model_ends_in_its_answer():
    transformer = model()
    t = Trace(transformer, [1, 2, 3], tap=edits.tap("logits", lambda x, where: x * 3))
    close(t.lens(1).probabilities[-1, :, 0], torch.softmax(t["logits"], -1).max(-1).values)


def test_the_lens_refuses_what_is_not_there():
    t = Trace(model(), [1, 2, 3])
    with pytest.raises(ShapeError, match="no position 5"):
        t.lens(positions=[5])
    with pytest.raises(ShapeError, match="no position of the text's 3"):
        t.lens(positions=[])
    with pytest.raises(UsageError, match="at least 1 token"):
        t.lens(0)
    with pytest.raises(TextError, match="no token 99"):
        t.lens(follow=99)


class Pieces:
    """A vocabulary given by its pieces."""

    def __init__(self, pieces: list[bytes], special: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.pieces, self.special_ids, self.vocab_size = pieces, special, len(pieces)
        self.token_ids = range(len(pieces))

    def token_bytes(self, id: int) -> bytes:
        return self.pieces[id]

    def token_text(self, id: int) -> str:
        return self.pieces[id].decode("utf-8", "replace")

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"The", b" sh", b"rew", b" mole", b"."], ["The", "shrew", "mole", "."]),
        ([b"don", b"'t", b" stop"], ["don't", "stop"]),
        ([b"Hi", b" ", b" you"], ["Hi", "you"]),
        ([b"a", b"\n", b"b"], ["a", "\n", "b"]),
        ([b" \xf0\x9f", b"\x98\x80", b"!"], ["😀", "!"]),
        ([b"caf\xc3", b"\xa9", b" noir"], ["café", "noir"]),
        ([b"end.", b" Next"], ["end.", "Next"]),
        ([b"end", b". N", b"ext"], ["end", ". Next"]),
        ([b"\xff", b"x"], ["\ufffd", "x"]),
    ],
)
def test_words_of_tokens(pieces, expected):
    found = words(range(len(pieces)), Pieces(pieces))
    assert [w.text for w in found] == expected
    assert [p for w in found for p in w.positions] == list(range(len(pieces)))


def test_special_tokens_stand_alone():
    found = words([0, 1, 2], Pieces([b"<s>", b"a", b"b"], {0}))
    assert found == [Word("<s>", (0,), special=True), Word("ab", (1, 2))]
    assert [w.text for w in words([4, 5], None)] == ["<4>", "<5>"]


@given(st.lists(st.binary(min_size=1, max_size=5), min_size=1, max_size=12))
def test_every_token_belongs_to_one_word(pieces):
    found = words(range(len(pieces)), Pieces(pieces))
    assert sorted(p for w in found for p in w.positions) == list(range(len(pieces)))


def test_sums_and_averages_by_word():
    by = [Word("a", (0, 1)), Word("b", (2,))]
    x = torch.tensor([[1.0, 2.0, 3.0]])
    assert sum_by_word(x, by).tolist() == [[3.0, 3.0]]
    assert mean_by_word(x, by).tolist() == [[1.5, 3.0]]
    t = Trace(model(), [1, 2, 30, 31], vocabulary=Letters(40))
    assert len(t.words) == 3
    z = t["blocks.0.mlp.out"]
    close(t.by_word(z, 0, "mean")[0], z[:2].mean(0))


@settings(max_examples=20, deadline=None)
@given(configs(), st.integers(0, 2**16))
def test_a_cell_s_steps_give_each_other(config, seed):
    transformer = randomised(Transformer(config), seed).double()
    ids = torch.randint(0, config.vocab_size, (8,), generator=torch.Generator().manual_seed(seed)).tolist()
    t = Trace(transformer, ids)
    layer, head = config.n_layers - 1, config.n_heads(0) - 1
    for key in (0, 4, 6, 7):
        cell = t.cell(layer, head, 6, key)
        assert float(cell.products.sum()) == pytest.approx(cell.dot)
        score = cell.dot * cell.scale
        if cell.softcap is not None:
            score = cell.softcap * math.tanh(score / cell.softcap)
        window = cell.window if cell.window is not None else 99
        assert cell.visible == (key <= 6 and key > 6 - window)
        assert cell.score == pytest.approx(score if cell.visible else -math.inf)
        assert cell.weight == pytest.approx(math.exp(cell.score - cell.log_normaliser))
        close(cell.handed, cell.weight * cell.value, tolerance=1e-12)
        close(cell.write, t.contributions(layer, head, 6)[key], tolerance=1e-9)
        assert cell.effect == pytest.approx(float(cell.effects.sum()))
        found = t.why(cell.target.way.token, position=6, words=0, parts=0).parts
        same = (found.of("head", layer))[head * 7 + key] if key <= 6 else None
        claimed = 0.0 if same is None else float(found.claimed[same])
        assert cell.effect == pytest.approx(claimed, abs=1e-9)
        json.dumps(cell.to_dict(), allow_nan=False)


def test_a_cell_explains_another_position_as_nothing():
    t = Trace(model(), [1, 2, 3, 4])
    assert t.cell(0, 0, 2, 1, position=3).effect == 0.0
    assert t.cell(0, 3, 2, 1).kv_head == 1
    turns = t.cell(0, 0, 3, 1).turns
    assert turns[0] == pytest.approx(2.0)
