"""Rows of a model that no token has (vocabularies are rounded up): nothing that is drawn or listed is one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import glassformer as gf
from tests.tiny import VOCAB, tiny_hf, tiny_tokenizer

ROWS = VOCAB + 80


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny Llama with 80 rows more than its tokenizer has tokens, and those are what it likes best."""
    folder = tmp_path_factory.mktemp("padded")
    reference = tiny_hf("llama", vocab_size=ROWS)
    with torch.no_grad():
        reference.lm_head.weight[VOCAB:] *= 30
        reference.model.embed_tokens.weight[VOCAB:] *= 30
    reference.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return gf.load(folder, device="cpu", dtype="float32")


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Every tensor of ids that a model is fed."""
    from glassformer.model.layers import Embedding

    seen: list[torch.Tensor] = []
    forward = Embedding.forward

    def spy(self: Any, ids: torch.Tensor) -> Any:
        seen.append(ids)
        return forward(self, ids)

    monkeypatch.setattr(Embedding, "forward", spy)
    return seen


def test_the_ids_that_have_a_token(model: Any) -> None:
    assert model.config.vocab_size == ROWS
    assert model.tokenizer.token_ids == tuple(range(VOCAB))


def test_head_scores_and_their_null_use_tokens_alone(model: Any, fed: list[torch.Tensor]) -> None:
    heads = model.heads("The American shrew mole", length=30, shuffles=2)
    assert heads.scores
    assert len(fed) >= 5
    assert max(int(ids.max()) for ids in fed) < VOCAB


def test_what_training_asks_a_model_uses_tokens_alone(model: Any, fed: list[torch.Tensor]) -> None:
    from glassformer.cli.probes import standard

    assert standard(("The mole",))(model.transformer, model.tokenizer, 0)["heads"]
    assert max(int(ids.max()) for ids in fed) < VOCAB


def test_a_sample_while_training_is_of_tokens_alone(model: Any, fed: list[torch.Tensor]) -> None:
    from glassformer.train.recipe import LoopSpec
    from glassformer.train.samples import sample

    text = sample(model.transformer, model.tokenizer, LoopSpec(sample_prompt="The", sample_tokens=20))
    assert len(text) > len("The")
    assert max(int(ids.max()) for ids in fed) < VOCAB


def test_words_put_in_place_of_others_are_tokens(model: Any) -> None:
    from glassformer.interp.replacement import Alternatives

    drawn = Alternatives(model.tokenizer, ROWS, 0).draw(model.tokenizer.encode("mole"), 200)
    assert max(id for row in drawn for id in row) < VOCAB


def test_tokens_drawn_to_compare_lenses_by_are_tokens(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from glassformer.interp import agreement

    drawn, plain = [], agreement._gradients

    def gradients(*args: Any) -> torch.Tensor:
        drawn.extend(args[-1].tolist())
        return plain(*args)

    monkeypatch.setattr(agreement, "_gradients", gradients)
    agreement.agreement(model.trace("The American shrew mole"), 0, {"plain": None}, samples=8)
    assert len(drawn) == 8
    assert max(drawn) < VOCAB


def test_lists_of_words_by_the_weights_are_of_tokens(model: Any) -> None:
    from glassformer.cli.heads import circuits
    from glassformer.cli.neurons import alone

    names = {model.tokenizer.token_text(id) for id in range(VOCAB)}
    found = alone(model, (1, 3), 12)
    assert all(len(found[key]) == 12 and set(found[key]) <= names for key in ("raises", "lowers", "excited_by"))
    found = circuits(model, (1, 2), " mole", 1, 12)
    for key in ("looks_for", "looks_away_from", "raises", "lowers"):
        assert max(one["id"] for one in found[key]) < VOCAB
    assert max(one.id for one in model.neighbours("mole", k=50).found) < VOCAB


def test_the_padding_of_a_gguf_is_no_token(model: Any, tmp_path: Path) -> None:
    from glassformer.cli.export import export

    export(model.source, "gguf", str(tmp_path / "file.gguf"), "f32")
    again = gf.load(tmp_path / "file.gguf").tokenizer
    assert again.token_ids == tuple(range(VOCAB))
    assert again.encode("[PAD330]", bos=False) == model.tokenizer.encode("[PAD330]", bos=False)
    export(str(tmp_path / "file.gguf"), "hf", str(tmp_path / "back"))
    assert gf.load(tmp_path / "back").tokenizer.token_ids == tuple(range(VOCAB))


@pytest.mark.parametrize("asked", [{"temperature": 0}, {"temperature": 1.5, "seed": 1}, {"top_k": 9, "seed": 2}])
def test_answers_are_made_of_tokens_alone(model: Any, asked: dict[str, Any]) -> None:
    from glassformer.interp.edits import ablate

    class Wrong:
        """Proposes rows that are no token."""

        def draft(self, ids: Any, most: int, sampling: Any, generator: Any) -> list[int]:
            return [VOCAB + 1] * most

    first = int(model.logits("The mole")[-1].argmax())
    assert first >= VOCAB, "the model likes best what is no token"
    for one, more in ((model, {}), (model, {"drafter": Wrong()}), (model.edited(ablate("blocks.0.attn.out")), {})):
        pieces = list(one.generate("The mole", max_tokens=20, alternatives=1, stop=(), **asked, **more))
        assert pieces
        assert max(piece.id for piece in pieces) < VOCAB
        assert pieces[0].alternatives[0].id == first or one is not model, "what the model thinks is told as it is"
