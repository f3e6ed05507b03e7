"""Designs validate themselves; places are named once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.errors import ConfigError, SiteError
from glassformer.model.config import Attention, Config, FeedForward, Norm, Position, RopeScaling
from glassformer.model.sites import SITES, canonical, names, site_of
from tests.strategies import configs

SMALL = Config(10, 8, 2, 16, Attention(2, 1, 4), FeedForward(8))


@given(configs())
def test_designs_survive_json(config: Config) -> None:
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


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
        ({"attention": 7}, "config.attention must be an object of named fields, not int"),
        ({"feed_forward": {"d_ff": 8, "activation": "gelo"}}, "Activation 'gelo' is unknown.*Did you mean"),
        ({"norm": {"kind": "layer", "one_plus": True}}, "1 \\+ weight exists for rms norms only"),
        ({"position": {"kind": "learned", "fraction": 0.5}}, "Learned positions take no rotary settings"),
        ({"position": {"kind": "rotary", "fraction": 0.3}}, "Rotary positions turn pairs"),
        ({"parallel": True, "norm": {"post": True}}, "Parallel blocks with post-norms"),
    ],
)
def test_contradictions_are_named(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_dict({**SMALL.to_dict(), **change})


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
        "embed", "pos_embed", "resid_pre", "ln1.scale", "ln1.normed", "attn.q", "attn.k", "attn.v",
        "attn.rot_q", "attn.rot_k", "attn.scores", "attn.pattern", "attn.z", "attn.out", "resid_mid",
        "ln2.scale", "ln2.normed", "mlp.pre", "mlp.pre_linear", "mlp.post", "mlp.out", "resid_post",
        "final.scale", "final.normed", "logits.precap", "logits",
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
        ("pos_embed", "its positions are rotary"),
    ],
)
def test_wrong_names_say_what_to_do(name: str, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        canonical(name, SMALL)


def test_absences_of_other_designs() -> None:
    other = Config(
        10, 8, 2, 16, Attention(2, 1, 4), FeedForward(8, gated=False), Norm("layer"), Position("learned"), parallel=True
    )
    for name, why in (
        ("blocks.0.resid_mid", "side by side"),
        ("blocks.0.mlp.pre_linear", "not gated"),
        ("blocks.0.attn.rot_q", "use attn.q"),
    ):
        with pytest.raises(SiteError, match=why):
            canonical(name, other)
