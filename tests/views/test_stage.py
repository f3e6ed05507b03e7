"""The stage's numbers are the trace's: vectors to half a scale, arcs and neurons above the threshold, all of them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from glassformer.errors import ShapeError, TextError, UsageError
from glassformer.views import stage as stage_views
from glassformer.views.stage import quantised
from tests.views.helpers import TEXT, numbers


def vectors(small: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers that 8 bits stand for, and how far off each may be."""
    scale = numbers(small["scale"])[..., None]
    return numbers(small["q"]) * scale, scale / 2 * 1.001 + 1e-7


def near(small: dict[str, Any], exact: Any) -> None:
    found, error = vectors(small)
    assert found.shape == tuple(exact.shape)
    assert (np.abs(found - np.asarray(exact)) <= error).all()


def test_vectors_are_the_traces_to_half_a_scale(model: Any, session: Any):
    found = session.view("stage", {"text": TEXT, "cells": 16})
    json.dumps(found, allow_nan=False)
    trace, dims = model.trace(TEXT), found["dims"]
    assert len(dims) == 16
    assert dims == sorted(set(dims))
    near(found["embedding"], trace["embed"][:, dims])
    places = [trace["blocks.0.resid_pre"]]
    added = []
    for layer in range(model.config.n_layers):
        places += [trace[f"blocks.{layer}.resid_mid"], trace[f"blocks.{layer}.resid_post"]]
        added.append(torch.stack([trace[f"blocks.{layer}.attn.out"], trace[f"blocks.{layer}.mlp.out"]]))
    near(found["lanes"], torch.stack(places)[..., dims])
    near(found["added"], torch.stack(added)[..., dims])
    assert np.allclose(numbers(found["lanes"]["norm"]), torch.stack(places).norm(dim=-1), rtol=1e-4)
    assert np.allclose(numbers(found["added"]["norm"]), torch.stack(added).norm(dim=-1), rtol=1e-4)
    near(found["final"], trace["final.normed"][-1, dims])


def test_arcs_are_all_that_carry_more_than_the_threshold(model: Any, session: Any):
    found = session.view("stage", {"text": TEXT, "threshold": 0.05})
    trace, arcs = model.trace(TEXT), found["arcs"]
    sent = {
        tuple(int(numbers(arcs[name])[i]) for name in ("layer", "head", "query", "key")): numbers(arcs["share"])[i]
        for i in range(arcs["count"])
    }
    wanted = {}
    for layer in range(model.config.n_layers):
        # From first principles: the weight times the length of the value through the head's output columns.
        a = model.config.attention(layer)
        v = trace[f"blocks.{layer}.attn.v"].repeat_interleave(a.n_heads // a.n_kv_heads, 1)
        o = model.transformer.blocks[layer].attn.o.weight.view(-1, a.n_heads, a.d_head)
        lengths = torch.einsum("khe,dhe->hkd", v, o).norm(dim=-1)
        carried = trace[f"blocks.{layer}.attn.pattern"] * lengths[:, None, :]
        share = carried / carried.sum((0, 2), keepdim=True)
        for head, query, key in (share >= 0.05).nonzero().tolist():
            if query != key:
                wanted[layer, head, query, key] = float(share[head, query, key])
    assert sent.keys() == wanted.keys()
    assert len(sent) > 3
    assert all(abs(sent[at] - wanted[at]) < 1e-5 for at in wanted)
    assert list(sent.values()) == sorted(sent.values(), reverse=True)
    layer, head, query, key = next(iter(sent))
    cells, error = vectors(found["carried"])
    exact = trace.contributions(layer, head, query)[key]
    assert (np.abs(cells[0] - exact[found["dims"]].numpy()) <= error[0]).all()
    assert np.isclose(numbers(found["carried"]["norm"])[0], float(exact.norm()), rtol=1e-4)


def test_too_many_arcs_raise_the_threshold_and_say_so(session: Any, monkeypatch: pytest.MonkeyPatch):
    whole = session.view("stage", {"text": TEXT, "threshold": 0.01})["arcs"]
    monkeypatch.setattr(stage_views, "ARCS", 10)
    few = session.view("stage", {"text": TEXT, "threshold": 0.01})["arcs"]
    assert few["count"] == 10 < whole["count"]
    assert few["asked"] == 0.01 < few["threshold"]
    assert np.array_equal(numbers(few["share"]), numbers(whole["share"])[:10])


def test_neurons_that_stand_out(model: Any, session: Any):
    found = session.view("stage", {"text": TEXT})
    trace, neurons = model.trace(TEXT), found["neurons"]
    sent = {
        tuple(int(numbers(neurons[name])[i]) for name in ("layer", "position", "index")): numbers(neurons["share"])[i]
        for i in range(neurons["count"])
    }
    wanted = {}
    for layer in range(model.config.n_layers):
        columns = model.transformer.blocks[layer].mlp.down.weight
        length = trace[f"blocks.{layer}.mlp.post"].abs() * columns.norm(dim=0)
        share = length / trace[f"blocks.{layer}.mlp.out"].norm(dim=-1, keepdim=True)
        for position, index in (share >= neurons["threshold"]).nonzero().tolist():
            wanted[layer, position, index] = float(share[position, index])
    assert sent.keys() == wanted.keys()
    assert sent
    assert all(abs(sent[at] - wanted[at]) < 1e-4 for at in wanted)


def test_the_answer_is_the_models(model: Any, session: Any):
    found = session.view("stage", {"text": TEXT, "top": 5})
    logits = model.trace(TEXT).logits().double()
    chances = torch.softmax(logits, -1)
    assert [x["id"] for x in found["next"]] == chances.topk(5).indices.tolist()
    assert np.allclose([x["probability"] for x in found["next"]], chances.topk(5).values)
    assert np.allclose(numbers(found["products"]["dot"]), logits.topk(5).values, atol=1e-4)
    assert np.isclose(found["rest"], 1 - float(chances.topk(5).values.sum()))
    for row in found["temperatures"]:
        exact = torch.softmax(logits / row["temperature"], -1)[[x["id"] for x in found["next"]]]
        assert np.allclose(row["probabilities"], exact)


def test_another_position_and_refusals(model: Any, session: Any):
    found = session.view("stage", {"text": TEXT, "position": 2, "top": 1})
    assert found["position"] == 2
    assert found["next"][0]["id"] == int(model.trace(TEXT).logits(2).argmax())
    with pytest.raises(ShapeError):
        session.view("stage", {"text": TEXT, "position": 400})
    with pytest.raises(UsageError):
        session.view("stage", {"text": TEXT, "threshold": 0})


def test_a_vector_whole(model: Any, session: Any):
    found = session.view("vector", {"text": TEXT, "site": "blocks.1.resid_pre", "position": 3})
    assert np.array_equal(numbers(found["values"]), model.trace(TEXT)["blocks.1.resid_pre"][3].numpy())


def test_numbers_in_eight_bits():
    x = torch.tensor([[0.0, 0.0], [1.0, -0.5]])
    q, scale = quantised(x)
    assert q.dtype == torch.int8
    assert q[0].tolist() == [0, 0]
    assert q[1, 0] == 127
    assert ((q * scale[..., None] - x).abs() <= scale[..., None] / 2).all()


def test_what_a_head_carries_adds_up(model: Any, session: Any):
    found = session.view("carry", {"text": TEXT, "layer": 1, "head": 2, "query": 4, "cells": 8})
    json.dumps(found, allow_nan=False)
    trace = model.trace(TEXT)
    exact = trace.contributions(1, 2, 4)[:5]
    near(found["writes"], exact[:, found["dims"]])
    assert np.allclose(numbers(found["weights"]), trace.pattern(1, 2, 4)[:5])
    near(found["sum"], trace.head_outputs(1, 2, 4)[None, found["dims"]])
    near(found["before"], trace["blocks.1.resid_pre"][4:5, found["dims"]])
    near(found["after"], (trace["blocks.1.resid_pre"][4] + trace.head_outputs(1, 2, 4))[None, found["dims"]])
    assert len(found["raises"]) == len(found["lowers"]) == 4


def test_surprise_is_the_negative_log_of_what_came(model: Any, session: Any):
    found = session.view("surprise", {"text": TEXT})
    logprobs = torch.log_softmax(model.logits(TEXT).double(), -1)
    ids = model.ids(TEXT)
    assert np.allclose(found["losses"], [-float(logprobs[i, ids[i + 1]]) for i in range(len(ids) - 1)], atol=1e-5)
    assert np.isclose(found["uniform"], np.log(model.config.vocab_size))
    with pytest.raises(TextError, match="at least two"):
        session.view("surprise", {"text": "a"})


def test_without_a_word_is_the_model_run_with_it_out_of_sight(model: Any, session: Any):
    from glassformer.interp.edits import knockout

    found = session.view("without", {"text": TEXT})
    best = int(model.logits(TEXT)[-1].argmax())
    assert found["id"] == best
    assert [row["source"] for row in found["rows"]] == list(range(len(model.ids(TEXT)) - 1))
    for row in found["rows"]:
        left = torch.softmax(model.edited(knockout(keys=[row["source"]])).logits(TEXT)[-1].double(), -1)
        assert np.isclose(row["after"], float(left[best]), atol=1e-6)
        assert row["instead"]["id"] == int(left.argmax())


@pytest.mark.parametrize("kind", ["mamba", "hybrid"])
def test_a_model_with_other_mixers_has_a_stage(model: Any, kind: str):
    from glassformer.lm import Model
    from glassformer.model import StateSpace, uniform
    from glassformer.views import Session
    from tests.model.test_stacks import drawn

    c = model.config
    recurrent = uniform(c.vocab_size, c.d_model, 2, 64, StateSpace(4, 8, 6, n_groups=2, norm_groups=2), None)
    layers = recurrent.layers if kind == "mamba" else (*recurrent.layers, *c.layers)
    transformer = drawn(dataclasses.replace(recurrent, layers=layers))
    whole = Model(transformer, model.tokenizer, name=kind, source=kind)
    session = Session(whole)
    found = session.view("stage", {"text": TEXT})
    json.dumps(found, allow_nan=False)
    trace = whole.trace(TEXT)
    assert found["arcs"]["heads"][:2] == [4, 4]
    assert found["arcs"]["count"] > 0
    near(found["added"], torch.stack([torch.stack(_halves(trace, i)) for i in range(len(layers))])[..., found["dims"]])
    layer, head, query, key = (int(numbers(found["arcs"][n])[0]) for n in ("layer", "head", "query", "key"))
    exact = trace.contributions(layer, head, query)[key]
    assert np.isclose(numbers(found["carried"]["norm"])[0], float(exact.norm()), rtol=1e-4)
    carried = session.view("carry", {"text": TEXT, "layer": layer, "head": head, "query": query})
    assert np.isclose(numbers(carried["writes"]["norm"])[key], float(exact.norm()), rtol=1e-4)
    assert session.view("without", {"text": TEXT})["rows"]


def _halves(trace: Any, layer: int) -> list[torch.Tensor]:
    choice = trace.config.layers[layer]
    zero = torch.zeros_like(trace["embed"])
    mixed = trace[f"blocks.{layer}.{choice.mixer.prefix}.out"] if choice.mixer else zero
    return [mixed, trace[f"blocks.{layer}.mlp.out"] if choice.feed_forward else zero]


def test_what_words_begin_as_is_what_the_trace_holds_and_needs_none(model: Any, session: Any):
    early = session.view("columns", {"text": TEXT})
    assert not session._traces
    whole = session.view("stage", {"text": TEXT})
    for key in ("model", "position", "layers", "d_model", "vocab", "tokens", "dims", "embedding"):
        assert early[key] == whole[key]
    with pytest.raises(ShapeError, match="no position 99"):
        session.view("columns", {"text": TEXT, "position": 99})


def test_a_text_s_stream_is_added_up_once(model: Any, monkeypatch: pytest.MonkeyPatch):
    """Asked for layer by layer it goes on from where it was: a few sums a layer, not the square of the layers."""
    from glassformer.model.parts.block import Block

    trace, sums, joined = model.trace(TEXT), [0], Block.joined
    whole = dict(trace.forward.walk())

    def counted(self: Block, *given: Any) -> Any:
        sums[0] += 1
        return joined(self, *given)

    monkeypatch.setattr(Block, "joined", counted)
    for layer in range(model.config.n_layers):
        for name in (f"blocks.{layer}.resid_pre", f"blocks.{layer}.resid_mid"):
            assert torch.equal(trace.forward.stream(name), whole[name])
    assert sums[0] <= 3 * model.config.n_layers
    name = "blocks.1.resid_mid"  # an earlier one again, and a part of it
    assert torch.equal(trace.forward.stream(name), whole[name])
    assert torch.equal(trace.forward.stream(name, slice(2, 4)), whole[name][:, 2:4])


def test_what_arcs_carry_is_what_the_trace_says(model: Any):
    from glassformer.interp.head_outputs import handed_over

    trace = model.trace(TEXT)
    whole = trace.contributions(1, 2, 4)
    assert torch.equal(whole[5:], torch.zeros_like(whole[5:]))
    torch.testing.assert_close(handed_over(trace, 1, 2, 4, [3, 0]), whole[[3, 0]], rtol=1e-6, atol=1e-7)
