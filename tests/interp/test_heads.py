"""Heads whose weights were made to do one thing are found where they are, and named."""

from __future__ import annotations

import pytest
import torch

from glassformer.checkpoint import open_checkpoint
from glassformer.errors import SiteError, UsageError
from glassformer.interp.circuits import copying_scores, output_value, query_key, written
from glassformer.interp.edits import ablate
from glassformer.interp.heads import DEFINITIONS, head_scores
from glassformer.interp.trace import Trace
from glassformer.model import Transformer
from glassformer.model.config import Attention, FeedForward, Norm, uniform
from tests.interp.helpers import Letters, model, randomised
from tests.tiny import VARIANTS, tiny_hf, tiny_tokens

VOCAB, CONTEXT = 40, 64
SHARP = 40.0


def inductive() -> Transformer:
    """Two layers written by hand. The stream holds a token (one of VOCAB), its position, and the token before it.

    Layer 0: head 0 finds the same token, head 1 the token before and writes it down, head 2 looks everywhere alike,
    head 3 rests at the first position. Layer 1: head 2 finds whatever came after this token, and says it.
    """
    config = uniform(
        vocab_size=VOCAB,
        d_model=2 * VOCAB + CONTEXT,
        n_layers=2,
        context=CONTEXT,
        mixer=Attention(4, 4, CONTEXT, rotary=None),
        feed_forward=FeedForward(d_ff=8),
        norm=Norm("rms"),
        learned_positions=True,
    )
    t = Transformer(config).requires_grad_(False)
    for name, p in t.named_parameters():
        p.fill_(1.0 if p.ndim == 1 else 0.0)
        del name
    token, place, before = slice(0, VOCAB), slice(VOCAB, VOCAB + CONTEXT), slice(VOCAB + CONTEXT, 2 * VOCAB + CONTEXT)
    t.embed.weight[:, token] = torch.eye(VOCAB)
    t.pos_embed.weight[:, place] = torch.eye(CONTEXT)
    t.unembed.weight[:, token] = torch.eye(VOCAB)

    def head(layer: int, h: int) -> tuple[torch.Tensor, ...]:
        part, rows = t.blocks[layer].attn, slice(h * CONTEXT, (h + 1) * CONTEXT)
        return part.q.weight[rows], part.k.weight[rows], part.v.weight[rows], part.o.weight[:, rows]

    words = torch.eye(VOCAB)
    q, k, _, _ = head(0, 0)
    q[:VOCAB, token], k[:VOCAB, token] = SHARP * words, words
    q, k, v, o = head(0, 1)
    q[:, place] = SHARP * torch.eye(CONTEXT)
    k[1:, place] = torch.eye(CONTEXT)[:-1]
    v[:VOCAB, token], o[before, :VOCAB] = words, words
    q, k, _, _ = head(0, 3)
    q[0, place] = SHARP
    k[0, VOCAB] = 1.0
    q, k, v, o = head(1, 2)
    q[:VOCAB, token], k[:VOCAB, before] = SHARP * words, words
    v[:VOCAB, token], o[token, :VOCAB] = words, words
    return t


def test_an_induction_head_is_found_where_it_is_and_named():
    found = head_scores(inductive(), length=16)
    assert found.length == 16
    assert found.names() == [["duplicate", "previous", None, "first"], [None, None, "induction", None]]
    assert found.ranked("induction", 1)[0] | {"score": 0, "null": 0} == {"layer": 1, "head": 2, "score": 0, "null": 0}
    assert found.scores["induction"][1, 2] > 0.95
    assert found.scores["induction"][1, 2] > 5 * found.null["induction"][1, 2]
    assert found.scores["previous"][0, 1] > 0.99
    assert found.null["previous"][0, 1] > 0.99  # position alone: shuffling takes nothing away
    assert found.scores["first"][0, 3] > 0.99
    assert found.scores["duplicate"][0, 0] == pytest.approx(0.5, abs=0.01)  # itself the other half
    assert found.scores["induction"][0, 2] < 0.1
    assert found.scores["copying"][1, 2] == pytest.approx(1, abs=1e-5)
    assert found.scores["copying"][0, 1] == pytest.approx(0, abs=1e-5)


def test_a_head_that_looks_a_fixed_way_back_is_no_induction_head():
    """Its score is as high on shuffled tokens, so it found no content."""
    t, n = inductive(), 16
    part = t.blocks[1].attn
    rows = slice(3 * CONTEXT, 4 * CONTEXT)
    place = slice(VOCAB, VOCAB + CONTEXT)
    part.q.weight[rows, place] = SHARP * torch.eye(CONTEXT)
    part.k.weight[3 * CONTEXT + n - 1 : 4 * CONTEXT, place] = torch.eye(CONTEXT)[: CONTEXT - n + 1]
    found = head_scores(t, length=n)
    assert found.scores["induction"][1, 3] > 0.95
    assert found.null["induction"][1, 3] > 0.95
    assert found.name(1, 3) is None


def test_scores_on_one_s_own_text():
    t = inductive()
    letters = Letters(VOCAB)
    ids = letters.encode("abcdefgabhijklab")
    found = head_scores(t, vocabulary=letters, text=Trace(t, ids), length=12)
    assert found.tokens == 16
    assert set(found.scores) == set(DEFINITIONS)
    assert found.scores["text previous"][0, 1] > 0.99
    assert found.scores["text first"][0, 3] > 0.99
    # a b a b … a b: after the second a the key is the first b; after the third both b's that followed.
    assert found.scores["text induction"][1, 2] > 0.6
    assert found.scores["text induction"][1, 2] > 2 * found.null["text induction"][1, 2]
    assert found.ranked("text induction", 1)[0]["head"] == 2


def test_words_are_the_same_in_any_case_and_spelling():
    class Words(Letters):
        def token_bytes(self, id: int) -> bytes:
            return [b"One", b" mole", b" and", b" Mole", b".", b" mo", b"le"][id]

    t = model()
    ids = [0, 1, 2, 3, 4, 5, 6, 4]  # One mole and Mole. mole.
    grids = Trace(t, ids, vocabulary=Words(40))
    from glassformer.interp.heads import _places

    places = _places(grids)
    assert places["text same"].nonzero().tolist() == [[3, 1], [5, 1], [5, 3], [6, 1], [6, 3]]
    assert places["text induction"].nonzero().tolist() == [[7, 5]]
    assert places["text first"].sum() == places["text previous"].sum() == 7


def test_a_text_in_which_nothing_comes_twice_has_fewer_scores():
    t = model()
    found = head_scores(t, text=Trace(t, [1, 2, 3, 4]))
    assert set(DEFINITIONS) - set(found.scores) == {"text same", "text induction"}
    with pytest.raises(UsageError, match="no score 'text same' here; there are previous, .* nothing comes twice"):
        found.ranked("text same")
    with pytest.raises(UsageError, match="It needs a text"):
        head_scores(t).ranked("text induction")
    with pytest.raises(UsageError, match="There is no score 'sink' here"):
        found.ranked("sink")


def test_sequences_fit_the_window_and_the_context():
    assert head_scores(model(windows=(9, None))).length == 4
    assert head_scores(model(context=20)).length == 10
    assert head_scores(model(context=20), bos=0).length == 9
    with pytest.raises(UsageError, match="sees 3 positions, too few to repeat"):
        head_scores(model(windows=(3, None)))
    with pytest.raises(UsageError, match="at least 2 tokens, and at least 1 shuffle"):
        head_scores(model(), length=1)


def test_heads_under_a_tap_are_those_of_the_changed_model():
    t = inductive()
    off = ablate(layer=0, head=1)  # nobody writes the token before: nothing is left to find
    found = head_scores(t, length=16, tap=off)
    assert found.name(1, 2) is None
    letters = Letters(VOCAB)
    edited = Trace(t, letters.encode("abcabc"), vocabulary=letters, tap=off)
    assert edited.heads(length=16).name(1, 2) is None
    assert Trace(t, letters.encode("abcabc"), vocabulary=letters).heads(length=16).name(1, 2) == "induction"


def test_scores_repeat_to_the_bit():
    t = model()
    one, two = head_scores(t, seed=3), head_scores(t, seed=3)
    assert all(torch.equal(one.scores[k], two.scores[k]) for k in one.scores)
    assert not torch.equal(one.scores["induction"], head_scores(t, seed=4).scores["induction"])


# Circuits


def layernormed() -> Transformer:
    config = uniform(
        vocab_size=40,
        d_model=16,
        n_layers=2,
        context=32,
        mixer=Attention(4, 2, 8, bias=True, out_bias=True, rotary=None),
        feed_forward=FeedForward(d_ff=24, bias=True),
        norm=Norm("layer"),
        learned_positions=True,
    )
    return randomised(Transformer(config), 1)


@pytest.mark.parametrize("t", [model(), model(post=True), model(windows=(5, None)), layernormed()])
def test_copying_is_that_of_the_whole_circuit_s_eigenvalues(t):
    """vocabulary × vocabulary, written out: each norm is linear but for its division."""
    found = copying_scores(t)
    scale = t.config.embedding_scale or 1.0
    one = torch.ones(40, 1, dtype=torch.float64)
    t = t.double()
    for layer in range(2):
        block = t.blocks[layer]
        part = block.attn
        read = block.ln1.apply_scale(t.embed.weight * scale, one)
        read = read - block.ln1.apply_scale(torch.zeros_like(read), one)
        for head in range(4):
            values = read @ part.v.weight[head // 2 * 8 : head // 2 * 8 + 8].T
            out = values @ part.o.weight[:, head * 8 : head * 8 + 8].T
            for norm in (block.ln1_post, t.final):
                if norm is not None:
                    out = norm.apply_scale(out, one) - norm.apply_scale(torch.zeros_like(out), one)
            eigenvalues = torch.linalg.eigvals(out @ t.unembedding.T)
            assert found[layer, head] == pytest.approx(
                float(eigenvalues.real.sum() / eigenvalues.abs().sum()), abs=1e-4
            )


@pytest.mark.parametrize("family", sorted(VARIANTS))
def test_circuits_are_what_the_first_layer_does(tmp_path, family):
    tiny_hf(family).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    t = Transformer.empty(checkpoint.config).load(checkpoint.tensors, dtype=torch.float64)
    ids = tiny_tokens(1, 12)[0].tolist()
    run = Trace(t, ids)
    block, group = t.blocks[0], t.config.attention(0).n_heads // t.config.attention(0).n_kv_heads
    query, key = 9, 5
    for head in range(t.config.attention(0).n_heads):
        scores = run.scores(0, head)
        for offset in (0, 1, query - key):
            mine = query_key(t, 0, head, ids[query], offset, position=query)
            assert float(mine[ids[query - offset]]) == pytest.approx(float(scores[query, query - offset]), abs=1e-9)
        value = run["blocks.0.attn.v"][key, head // group]
        d = t.config.attention(0).d_head
        out = block.attn.o.weight[:, head * d : (head + 1) * d] @ value
        if block.ln1_post is not None:
            out = block.ln1_post.apply_scale(out, torch.ones(1, dtype=out.dtype))
        torch.testing.assert_close(written(t, 0, head, ids[key], key), out)
        # What it adds to the logits, the final norm's division set to one.
        one = torch.ones(1, dtype=out.dtype)
        x = run["blocks.0.resid_pre"][key]
        added = t.unembedding @ (t.final.apply_scale(x + out, one) - t.final.apply_scale(x, one))
        torch.testing.assert_close(output_value(t, 0, head, ids[key], key), added)


def test_what_a_circuit_cannot_be_asked():
    with pytest.raises(SiteError, match=r"There is no head 4: layer 0 has 4 heads, 0 to 3\."):
        query_key(model(), 0, 4, 1, 0)
    with pytest.raises(SiteError, match="There is no layer 2"):
        output_value(model(), 2, 0, 1)
    with pytest.raises(SiteError, match="counts backwards from the query and is 0 or more; got -1"):
        query_key(model(), 0, 0, 1, -1)
    with pytest.raises(SiteError, match=r"Layer 0 sees 5 positions, .*nothing 5 back is seen"):
        query_key(model(windows=(5, None)), 0, 0, 1, 5)
    with pytest.raises(SiteError, match="has 32 trained positions; there is no position 40"):
        query_key(layernormed(), 0, 0, 1, 40)
    with pytest.raises(SiteError, match="Nothing stands 3 positions before position 1"):
        query_key(layernormed(), 0, 0, 1, 3, position=1)
