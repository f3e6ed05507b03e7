"""What a trace shows is what transformers computes, eagerly, on every family and variant we read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from glassformer.checkpoint import open_checkpoint
from glassformer.interp.trace import Trace
from glassformer.model import Transformer
from tests.interp.helpers import close
from tests.tiny import EVERY, VARIANTS, tiny_hf, tiny_tokens


def loaded(directory: Path, dtype: torch.dtype | None = None) -> Transformer:
    checkpoint = open_checkpoint(directory)
    return Transformer.empty(checkpoint.config).load(checkpoint.tensors, dtype=dtype)


@pytest.mark.parametrize(("family", "variant"), EVERY)
def test_what_a_trace_shows_and_how_an_account_adds_up(tmp_path, monkeypatch, family, variant):
    theirs = tiny_hf(family, **VARIANTS[family][variant])
    theirs.save_pretrained(tmp_path)
    tokens = tiny_tokens(batch=1, length=24)
    scores: list[torch.Tensor] = []
    softmax = torch.nn.functional.softmax

    def listening(x, *args, **kwargs):
        if x.ndim == 4:
            scores.append(x.detach())
        return softmax(x, *args, **kwargs)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "softmax", listening)
        answer = theirs(tokens, output_attentions=True, output_hidden_states=True)
    t = Trace(loaded(tmp_path), tokens[0].tolist())
    layers = t.config.n_layers
    assert len(scores) == layers
    for layer in range(layers):
        close(t.pattern(layer), answer.attentions[layer][0], f"pattern {layer}")
        mine = t.scores(layer)
        hidden = mine == float("-inf")
        assert (scores[layer][0][hidden] < -1e4).all()
        close(mine.masked_fill(hidden, 0), scores[layer][0].masked_fill(hidden, 0), f"scores {layer}")
        close(t[f"blocks.{layer}.resid_pre"], answer.hidden_states[layer][0], f"hidden {layer}")
    close(t["final.normed"], answer.hidden_states[layers][0], "final")
    close(t["logits"], answer.logits[0], "logits")
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        t = Trace(loaded(tmp_path, dtype), tokens[0].tolist())
        assert t.why(words=0, parts=0).residual <= limit
        assert t.why(against=5, position=9, words=0, parts=0).residual <= limit


@pytest.mark.parametrize("family", sorted(VARIANTS))
def test_hidden_states_of_padded_batches(tmp_path, family):
    theirs = tiny_hf(family)
    theirs.save_pretrained(tmp_path)
    rows = [tiny_tokens(1, n, seed=n)[0].tolist() for n in (12, 5)]
    t = Trace(loaded(tmp_path), rows)
    for i, row in enumerate(rows):
        with torch.no_grad():
            answer = theirs(torch.tensor([row]), output_attentions=True, output_hidden_states=True)
        one = t.row(i)
        for layer in range(t.config.n_layers):
            close(one.pattern(layer), answer.attentions[layer][0])
            close(one[f"blocks.{layer}.resid_pre"], answer.hidden_states[layer][0])
