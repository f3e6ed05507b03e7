"""Neurons' shares add up, and one word's vectors start equal and part."""

from __future__ import annotations

import pytest
import torch

import glassformer
from glassformer.checkpoint import open_checkpoint
from glassformer.errors import SiteError, TextError, UsageError
from glassformer.interp.decompose import KINDS
from glassformer.interp.edits import ablate
from glassformer.interp.meaning import find, meaning, nearest
from glassformer.interp.neurons import excited_by, passages, top_neurons, writes
from glassformer.interp.trace import Trace
from glassformer.model import Transformer
from tests.interp.helpers import Letters, model
from tests.tiny import VARIANTS, tiny_directory, tiny_hf, tiny_tokens


def loaded(directory, family, variant="plain"):
    settings = VARIANTS[family].get(variant, {})
    tiny_hf(family, **settings).save_pretrained(directory)
    checkpoint = open_checkpoint(directory)
    return Transformer.empty(checkpoint.config).load(checkpoint.tensors, dtype=torch.float64)


@pytest.mark.parametrize(("family", "variant"), [(family, next(iter(own))) for family, own in VARIANTS.items()])
def test_neurons_shares_add_up_to_the_feed_forward_layers(tmp_path, family, variant):
    run = Trace(loaded(tmp_path, family, variant), tiny_tokens(1, 10)[0].tolist())
    parts = run.why(words=0, parts=0).parts
    claimed = float(parts.claimed[parts.kind == KINDS.index("feed_forward")].sum())
    count = run.config.n_layers * run.config.feed_forward(0).d_ff
    found = top_neurons(run, k=count, words=1)
    assert found.all == pytest.approx(claimed, abs=1e-9)
    assert sum(n["contribution"] for n in found.neurons) == pytest.approx(claimed, abs=1e-9)
    sizes = [abs(n["contribution"]) for n in found.neurons]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("family", sorted(VARIANTS))
def test_what_a_neuron_writes_and_what_excites_it(tmp_path, family):
    t = loaded(tmp_path, family)
    block, one = t.blocks[1], torch.ones(1, dtype=torch.float64)
    column = block.mlp.down.weight[:, 5]
    if block.ln2_post is not None:
        column = block.ln2_post.apply_scale(column, one)
    pushed = t.unembedding @ (t.final.apply_scale(column, one) - t.final.apply_scale(column * 0, one))
    raised, lowered = writes(t, 1, 5, 4)
    assert raised == pushed.argsort(descending=True)[:4].tolist()
    assert lowered == pushed.argsort()[:4].tolist()
    scale = t.config.embedding_scale or 1.0
    outputs = []
    block.mlp.down.register_forward_pre_hook(lambda _, given: outputs.append(given[0]))
    block.mlp(block.ln2(t.embed.weight * scale))
    assert excited_by(t, 1, 5, 6) == outputs[0][:, 5].argsort(descending=True)[:6].tolist()


def test_a_negative_output_raises_what_a_positive_one_lowers():
    found = top_neurons(Trace(model(), [1, 2, 3], vocabulary=Letters(40)), k=48)
    name = Letters(40).token_text
    signs = set()
    for n in found.neurons:
        raised, lowered = ([name(i) for i in ids] for ids in writes(model(), n["layer"], n["index"], 5))
        signs.add(n["activation"] < 0)
        assert (n["raises"], n["lowers"]) == ((lowered, raised) if n["activation"] < 0 else (raised, lowered))
    assert signs == {True, False}


def test_neurons_of_a_layer_that_a_tap_wrote_over_have_no_share():
    found = top_neurons(Trace(model(), [1, 2, 3], tap=ablate(layer=1, part="feed_forward")), k=48)
    assert found.written_over == [1]
    assert all(n["contribution"] == 0 for n in found.neurons if n["layer"] == 1)
    neuron = top_neurons(Trace(model(), [1, 2, 3], tap=ablate(layer=1, neuron=4)), k=48)
    assert neuron.written_over == []
    assert next(n for n in neuron.neurons if (n["layer"], n["index"]) == (1, 4))["contribution"] == 0


def test_passages_are_where_the_output_is_largest():
    t, letters = model(), Letters(40)
    runs = [Trace(t, tiny_tokens(1, 20, seed=s)[0].remainder(40).tolist(), vocabulary=letters) for s in range(3)]
    found = passages(iter(runs), 1, 7, 5, around=3)
    every = sorted(
        (abs(float(x)), i, at) for i, run in enumerate(runs) for at, x in enumerate(run["blocks.1.mlp.post"][:, 7])
    )
    assert [(p.text, p.position) for p in found] == [(i, at) for _, i, at in every[::-1][:5]]
    first = found[0]
    tokens = runs[first.text].tokens
    assert first.token == tokens[first.position]
    assert first.before == "".join(tokens[max(0, first.position - 3) : first.position])
    assert first.after == "".join(tokens[first.position + 1 : first.position + 4])


def test_neurons_that_do_not_exist():
    with pytest.raises(SiteError, match=r"There is no neuron 24: layer 0 has 24, 0 to 23\."):
        writes(model(), 0, 24)
    with pytest.raises(SiteError, match="There is no layer 5: the model has 2"):
        excited_by(model(), 5, 0)
    with pytest.raises(UsageError, match="At least one neuron"):
        top_neurons(Trace(model(), [1, 2]), k=0)


# Meaning

TEXTS = ("The American shrew mole is small.", "One mole of carbon dioxide", "Take a biopsy of the mole")


@pytest.mark.parametrize("family", sorted(VARIANTS))
def test_a_word_s_vectors_are_equal_at_the_embedding_and_part(tmp_path, family):
    opened = glassformer.load(tiny_directory(tmp_path, family))
    found = opened.meaning("Mole", TEXTS)
    traces = [opened.trace(text) for text in TEXTS]
    assert found.ids[0] == found.ids[1] == found.ids[2]
    assert found.positions == [find(t, "mole")[-1] for t in traces]
    torch.testing.assert_close(found.similarity[0], torch.ones(3, 3, dtype=torch.float64))
    assert found.mean[-1] < 0.999
    assert len(found.mean) == len(found.places)
    for at, name in enumerate(found.places):
        x = [t.at(name, p).double() for t, p in zip(traces, found.positions, strict=True)]
        assert found.similarity[at, 0, 1] == pytest.approx(float(torch.cosine_similarity(x[0], x[1], dim=0)), abs=1e-6)
    layers = opened.config.n_layers
    learned = opened.config.learned_positions
    assert len(found.places) == 1 + learned + layers * (1 if opened.config.layers[0].parallel else 2)
    start = found.mean[1 if learned else 0]
    assert float(found.parted.nan_to_num().sum()) == pytest.approx(start - found.mean[-1], abs=1e-9)
    data = found.to_dict()
    assert (data["parted"][0][1] is None) is opened.config.layers[0].parallel
    for layer in range(layers):
        size = traces[1].at(f"blocks.{layer}.attn.out", found.positions[1]).norm()
        assert found.added[layer, 1, 0] == pytest.approx(float(size), rel=1e-5)


def test_nearest_contexts_come_by_cosine(tmp_path):
    opened = glassformer.load(tiny_directory(tmp_path))
    example = opened.trace(TEXTS[0])
    found = nearest("mole", example, map(opened.trace, TEXTS), layer=1)
    assert found[0].text == 0
    assert found[0].similarity == pytest.approx(1)
    assert [c.similarity for c in found] == sorted((c.similarity for c in found), reverse=True)
    assert found[0].before == "The American shrew"
    assert found[0].word == " mole"
    assert nearest("nothing", opened.trace("nothing much"), [example]) == []


def test_which_occurrence(tmp_path):
    opened = glassformer.load(tiny_directory(tmp_path))
    run = opened.trace("The mole of the mole")
    assert find(run, " Mole ", 0)[-1] < find(run, "mole", 1)[-1] == find(run, "mole")[-1] == len(run) - 1
    with pytest.raises(TextError, match="'mole' comes 2 times in the text; there is no occurrence 2"):
        find(run, "mole", 2)
    with pytest.raises(
        TextError, match=r"The word 'bank' is not in “The mole of the mole”; its words are The, mole, of"
    ):
        find(run, "bank")
    with pytest.raises(UsageError, match="give at least two"):
        meaning("mole", [run])
    with pytest.raises(UsageError, match="Name the word"):
        meaning(" ", [run, run])
