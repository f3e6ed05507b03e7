"""Layers of any mixture: every way of running one gives the same numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from glassformer.errors import ShapeError
from glassformer.model import Cache, Config, Transformer
from glassformer.model.choices import recurrence_of
from glassformer.model.sites import Where, names
from glassformer.train.recipe import Recipe
from tests.mixers import attentions, differentials, latents
from tests.strategies import stacks

# A failing stack is small enough to read as it was drawn; making it smaller takes minutes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


def drawn(config: Config, seed: int = 0) -> Transformer:
    """A model with random parameters of every kind, in float64."""
    torch.manual_seed(seed)
    transformer = Transformer(config).double().requires_grad_(False)
    for name, p in transformer.named_parameters():
        p.normal_(0.0, 0.4)
        if p.ndim == 1 and name.endswith("weight"):
            p.add_(0.0 if config.norm.one_plus else 1.0)
    return transformer.eval()


def tokens(config: Config, batch: int = 2, length: int = 20) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


class Everything:
    """A tap that looks at all places and changes nothing, so that the visible paths are taken."""

    def __init__(self, config: Config) -> None:
        self.reads = frozenset(names(config))
        self.writes: frozenset[str] = frozenset()
        self.seen: dict[str, torch.Tensor] = {}

    def __call__(self, site: str, x: torch.Tensor, where: Where) -> None:
        self.seen[site] = x


@given(stacks())
@settings(max_examples=60, phases=PHASES)
def test_parameters_are_those_of_the_config(config: Config) -> None:
    held = {name: tuple(p.shape) for name, p in Transformer.empty(config).named_parameters()}
    assert held == {name: component.shape for name, component in config.components().items()}
    assert Config.from_dict(config.to_dict()) == config


@given(stacks(), st.lists(st.integers(1, 9), min_size=1, max_size=4))
@settings(max_examples=40, phases=PHASES)
def test_cached_padded_and_watched_runs_agree(config: Config, cuts: list[int]) -> None:
    transformer, ids = drawn(config), tokens(config)
    whole = transformer(ids)
    cache, parts, at = Cache(config, 2, dtype=torch.float64), [], 0
    for cut in [*cuts, 20]:
        piece = ids[:, at : at + cut]
        if piece.shape[1]:
            parts.append(transformer(piece, cache))
        at += cut
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-10)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
    mask = torch.arange(23).expand(2, 23) >= 3
    torch.testing.assert_close(transformer(padded, mask=mask)[:, 3:], whole, rtol=1e-9, atol=1e-10)
    tap = Everything(config)
    torch.testing.assert_close(transformer(ids, tap=tap), whole, rtol=1e-9, atol=1e-10)
    assert set(tap.seen) == set(names(config))


SOFTMAX = st.one_of(attentions(), latents(), differentials(), st.none())


@given(stacks(mixers=SOFTMAX), st.lists(st.integers(1, 9), min_size=1, max_size=4))
@settings(max_examples=40, phases=PHASES)
def test_documents_in_one_row_are_as_if_alone(config: Config, lengths: list[int]) -> None:
    transformer, ids = drawn(config), tokens(config, 1, sum(lengths))
    if not config.packs:
        with pytest.raises(ShapeError, match="Several documents"):
            transformer(ids, lengths=lengths)
        return
    alone = torch.cat([transformer(part) for part in ids.split(lengths, 1)], 1)
    torch.testing.assert_close(transformer(ids, lengths=lengths), alone, rtol=1e-9, atol=1e-10)
    tap = Everything(config)
    torch.testing.assert_close(transformer(ids, lengths=lengths, tap=tap), alone, rtol=1e-9, atol=1e-10)


def test_documents_have_to_fill_their_row() -> None:
    config = Recipe().with_settings({"layers": 1, "width": 8, "heads": 1}).config(20)
    transformer = drawn(config)
    for ids, lengths in (
        (tokens(config, 1, 9), [4, 4]),
        (tokens(config, 2, 8), [4, 4]),
        (tokens(config, 1, 8), [8, 0]),
    ):
        with pytest.raises(ShapeError, match="do not fill one row"):
            transformer(ids, lengths=lengths)
    with pytest.raises(ShapeError, match="without cache"):
        transformer(tokens(config, 1, 8), Cache(config, 1, dtype=torch.float64), lengths=[4, 4])


@given(stacks(), st.data())
@settings(max_examples=40, phases=PHASES)
def test_a_restart_in_mid_depth_is_the_same_forward(config: Config, data: st.DataObject) -> None:
    transformer, ids = drawn(config), tokens(config)
    layer = data.draw(st.integers(0, config.n_layers - 1))
    tap = Everything(config)
    logits = transformer(ids, tap=tap)
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    shared = {}
    for i in range(layer):
        prefix = f"blocks.{i}.attn."
        if prefix + "k" in tap.seen:  # as if a later layer used them
            keys = tap.seen.get(prefix + "rot_k", tap.seen[prefix + "k"])
            shared[i] = keys.transpose(1, 2), tap.seen[prefix + "v"].transpose(1, 2)
    own = {i: tap.seen[f"blocks.{i}.ple.input"] for i, x in enumerate(config.layers) if x.embedding is not None}
    x = tap.seen[f"blocks.{layer}.resid_pre"]
    x = transformer.stream(x, positions, layers=range(layer, config.n_layers), shared=shared, inputs=own)
    torch.testing.assert_close(transformer.unembed_hidden(transformer.normed(x)), logits, rtol=1e-9, atol=1e-10)


@given(stacks())
@settings(max_examples=40, phases=PHASES)
def test_attention_rows_and_implied_grids_are_what_was_computed(config: Config) -> None:
    """Rows of weights sum to one with the sink; a recurrence's grid times its values is what it read."""
    transformer, tap = drawn(config), Everything(config)
    transformer(tokens(config), tap=tap)
    for i in range(config.n_layers):
        prefix = f"blocks.{i}."
        if prefix + "attn.pattern" in tap.seen:
            total = tap.seen[prefix + "attn.pattern"].sum(-1).transpose(1, 2)
            if config.attention(i).sink:
                total = total + tap.seen[prefix + "attn.sink"]
            torch.testing.assert_close(total, torch.ones_like(total))
        own = recurrence_of(config.layers[i].mixer)
        if own is not None:
            prefix += f"{own.prefix}."
            kept = {place: tap.seen[prefix + place] for place in own.basis() if place != "z"}
            read = getattr(transformer.blocks[i], own.prefix).remix(kept, tap.seen[prefix + "pattern"])
            torch.testing.assert_close(read, tap.seen[prefix + "mixed"], rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@given(stacks(max_layers=2))
@settings(max_examples=15, phases=PHASES)
def test_gradients_are_those_of_differences(config: Config) -> None:
    transformer, ids = drawn(config), tokens(config, 1, 7)
    chosen = list(dict(transformer.named_parameters()))[::3]
    parameters = dict(transformer.named_parameters())

    def loss(*values: torch.Tensor) -> torch.Tensor:
        replaced = {**parameters, **dict(zip(chosen, values, strict=True))}
        return torch.func.functional_call(transformer, replaced, (ids,)).square().mean()

    inputs = tuple(parameters[name].detach().clone().requires_grad_() for name in chosen)
    grads = torch.autograd.grad(loss(*inputs), inputs, materialize_grads=True)
    step = 1e-6
    generator = torch.Generator().manual_seed(3)
    for value, grad in zip(inputs, grads, strict=True):
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        at = [v.detach() for v in inputs]
        index = next(i for i, v in enumerate(inputs) if v is value)
        up, down = list(at), list(at)
        up[index], down[index] = at[index] + step * direction, at[index] - step * direction
        measured = float(loss(*up) - loss(*down)) / (2 * step)
        assert abs(measured - float((grad * direction).sum())) <= 1e-4 * max(1.0, abs(measured))
