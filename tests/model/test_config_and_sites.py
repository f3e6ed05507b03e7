"""Designs validate themselves; places are named once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.errors import ConfigError, SiteError
from glassformer.model.config import Attention, Config, FeedForward, Norm, RopeScaling, Rotary, uniform
from glassformer.model.site_table import SITES
from glassformer.model.sites import canonical, names, site_of
from tests.strategies import configs

SMALL = uniform(10, 8, 2, 16, Attention(2, 1, 4), FeedForward(8))


@given(configs())
def test_designs_survive_json(config: Config) -> None:
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# What the first format wrote of the same design: one attention and one feed-forward part for all layers.
FIRST: dict[str, Any] = {
    "vocab_size": 10,
    "d_model": 8,
    "n_layers": 2,
    "context": 16,
    "attention": {"n_heads": 2, "n_kv_heads": 1, "d_head": 4, "windows": []},
    "feed_forward": {"d_ff": 8},
    "norm": {"kind": "rms", "eps": 1e-5, "one_plus": False, "post": False},
    "position": {"kind": "rotary", "theta": 10000.0, "fraction": 1.0, "scaling": None, "local_theta": None},
    "parallel": False,
    "tied": False,
}


def test_the_first_format_is_still_read() -> None:
    assert Config.from_dict(json.loads(json.dumps(FIRST))) == SMALL
    full = Config.from_dict(
        {
            **FIRST,
            "attention": {**FIRST["attention"], "qk_norm": True, "windows": [3, None]},
            "norm": {"kind": "rms", "post": True},
            "position": {"theta": 500.0, "local_theta": 20.0},
        }
    )
    near, far = full.attention(0), full.attention(1)
    assert (near.window, near.rotary, far.window, far.rotary) == (3, Rotary(20.0), None, Rotary(500.0))
    assert full.layers[0].norms == "both"
    assert near.qk_norm == "head"


def test_equal_layers_are_written_once() -> None:
    (written,) = SMALL.to_dict()["layers"]
    assert written["count"] == 2
    assert written["mixer"]["kind"] == "attention"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "model.vocab_size must be a whole number of at least 1; got 0"),
        ({"vocab_size": 2.5}, r"config.vocab_size must be int; got 2.5"),
        ({"d_modle": 8}, "config has no field 'd_modle'. Did you mean d_model?"),
        ({"logit_softcap": -1.0}, "logit_softcap must be above 0"),
        ({"logit_softcap": float("nan")}, "config.logit_softcap must be float"),
        ({"attention": {"n_heads": 3, "n_kv_heads": 2, "d_head": 4}}, "3 query heads cannot share 2"),
        (
            {"attention": {"n_heads": 2, "n_kv_heads": 2, "d_head": 4, "windows": [1]}},
            "names 1 layers, the model has 2",
        ),
        ({"attention": 7}, "must be objects of named fields"),
        ({"feed_forward": {"d_ff": 8, "activation": "gelo"}}, "Activation 'gelo' is unknown.*Did you mean"),
        ({"position": {"kind": "rotary", "fraction": 0.3}}, "Rotary positions turn pairs"),
        ({"parallel": True, "norm": {"post": True}}, "Parallel parts with norms 'both'"),
    ],
)
def test_contradictions_of_the_first_format_are_named(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_dict({**FIRST, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixer": {"kind": "attention", "n_heads": 3, "n_kv_heads": 2, "d_head": 4}}, "3 query heads cannot share 2"),
        (
            {"mixer": {"kind": "atention"}},
            r"config.layers\[0\].mixer.kind 'atention' is unknown.*Did you mean attention",
        ),
        ({"mixer": None, "feed_forward": None}, "needs a mixer or a feed-forward part"),
        ({"norms": "befor"}, "'befor' is none of these. Did you mean before"),
        ({"norms": "shared"}, "run side by side; set parallel"),
        ({"count": 0}, "count must be a whole number"),
        ({"count": 20_000}, "at most 10,000 layers"),
        ({"heads": 3}, r"config.layers\[0\] has no field 'heads'"),
        (
            {"mixer": {"kind": "attention", "n_heads": 2, "n_kv_heads": 1, "d_head": 4, "keys_from": 1}},
            "shares the keys",
        ),
    ],
)
def test_contradictions_of_layers_are_named(change: dict, message: str) -> None:
    data = SMALL.to_dict()
    data["layers"][0] |= change
    with pytest.raises(ConfigError, match=message):
        Config.from_dict(data)


def test_missing_fields_are_named() -> None:
    data = SMALL.to_dict()
    del data["d_model"]
    with pytest.raises(ConfigError, match="config lacks the field 'd_model'"):
        Config.from_dict(data)
    with pytest.raises(ConfigError, match="needs original_context"):
        RopeScaling("yarn", factor=2.0)


def test_site_names_are_public_api() -> None:
    """Tools and saved traces use these names: changing one breaks them."""
    assert [site.name for site in SITES] == [
        "embed", "pos_embed", "resid_pre", "resid_active", "ln1.scale", "ln1.normed", "attn.q", "attn.k", "attn.v",
        "attn.rot_q", "attn.rot_k", "attn.index_q", "attn.index_k", "attn.index_weights",
        "attn.scores", "attn.sink", "attn.pattern", "attn.router", "attn.gate", "attn.pair_scale", "attn.z_scale",
        "attn.z",
        "attn.out",
        "delta.gate", "delta.q", "delta.k", "delta.v", "delta.beta", "delta.decay", "delta.decays", "delta.pattern",
        "delta.mixed",
        "delta.z", "delta.out",
        "ssm.gate", "ssm.x", "ssm.b", "ssm.c", "ssm.dt", "ssm.pattern", "ssm.mixed", "ssm.z", "ssm.out",
        "mamba.gate", "mamba.x", "mamba.b", "mamba.c", "mamba.dt", "mamba.pattern", "mamba.mixed", "mamba.z",
        "mamba.out",
        "mlstm.gate", "mlstm.q", "mlstm.k", "mlstm.v", "mlstm.input", "mlstm.decay", "mlstm.pattern", "mlstm.mixed",
        "mlstm.z", "mlstm.out",
        "linear.gate", "linear.q", "linear.k", "linear.v", "linear.pattern", "linear.mixed", "linear.z", "linear.out",
        "lru.gate", "lru.gate_in", "lru.decay", "lru.v", "lru.pattern", "lru.mixed", "lru.z", "lru.out",
        "conv.gate", "conv.gate_in", "conv.v", "conv.pattern", "conv.mixed", "conv.z", "conv.out", "mix.pattern",
        "mix.z", "mix.out", "laurel.out", "resid_mid",
        "ln2.scale", "ln2.normed", "mlp.router", "mlp.weights", "mlp.latent", "mlp.pre", "mlp.pre_linear", "mlp.post",
        "mlp.shared_pre", "mlp.shared_pre_linear", "mlp.shared_post", "mlp.shared_gate", "mlp.shared", "mlp.out",
        "resid_late", "ple.input", "ple.pre", "ple.post", "ple.out", "resid_post",
        "head.scale", "head.normed", "head.pre", "final.scale", "final.normed", "logits.precap", "logits",
    ]  # fmt: skip
    assert all(site.meaning.endswith(".") for site in SITES)


@given(configs(), st.data())
def test_every_name_is_canonical_and_has_an_entry(config: Config, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(names(config)))
    assert canonical(name, config) == name
    assert site_of(name) in SITES


def test_aliases_and_negative_layers() -> None:
    assert canonical("blocks.1.attn.hook_pattern", SMALL) == "blocks.1.attn.pattern"
    assert canonical("blocks.-1.hook_resid_post", SMALL) == "blocks.1.resid_post"
    assert canonical("ln_final.hook_normalized", SMALL) == "final.normed"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.0.attn.patern", "There is no site 'blocks.0.attn.patern'. Did you mean blocks.0.attn.pattern"),
        ("blocks.7.attn.pattern", "the model has 2 layers, blocks.0 to blocks.1"),
        ("attn.pattern", "name the layer, as in blocks.0.attn.pattern"),
        ("logits.precap", "its logits are not soft-capped; use logits"),
        ("pos_embed", "no vectors are added"),
    ],
)
def test_wrong_names_say_what_to_do(name: str, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        canonical(name, SMALL)


def test_absences_of_other_designs() -> None:
    other = uniform(
        10,
        8,
        2,
        16,
        Attention(2, 1, 4, rotary=None),
        FeedForward(8, gated=False),
        Norm("layer"),
        learned_positions=True,
        parallel=True,
    )
    for name, why in (
        ("blocks.0.resid_mid", "side by side"),
        ("blocks.0.mlp.pre_linear", "not gated"),
        ("blocks.0.attn.rot_q", "use attn.q"),
    ):
        with pytest.raises(SiteError, match=why):
            canonical(name, other)
