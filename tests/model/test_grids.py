"""Grids that recurrences imply: rows against outputs, with every recurrence stepped by hand, position by position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from glassformer.model import Cache, Config, FeedForward, uniform
from glassformer.model.choices import (
    Attention,
    GatedDelta,
    GatedLinearRecurrence,
    LinearAttention,
    MatrixMemory,
    Parallel,
    SelectiveStateSpace,
    ShortConvolution,
    StateSpace,
    recurrence_of,
)
from glassformer.model.parts.channels import ChannelsPart
from glassformer.model.sites import Where
from tests.model.test_stacks import Everything, drawn

LENGTH = 70  # more than one chunk of every scan
Seen = Callable[[str], Tensor]


def gated_delta(part: Any, seen: Seen) -> Tensor:
    """S ← e^decay S; S ← S + beta k (v − Sᵀk)ᵀ; Sᵀq is read."""
    q, k = (seen(name).repeat_interleave(part.heads // part.choice.n_key_heads, 1) for name in "qk")
    v, beta, decay = seen("v"), seen("beta"), seen(part.choice.decay_site)
    state, read = v.new_zeros(part.heads, k.shape[-1], v.shape[-1]), []
    for t in range(len(v)):
        state = state * decay[t].reshape(part.heads, -1, 1).exp()
        wrong = v[t] - (state * k[t][..., None]).sum(1)
        state = state + k[t][..., None] * (beta[t][:, None] * wrong)[:, None]
        read.append((state * q[t][..., None]).sum(1))
    return torch.stack(read)


def state_space(part: Any, seen: Seen) -> Tensor:
    """h ← e^(dt a) h + dt x bᵀ; h c + skip x is read."""
    x, dt = seen("x"), seen("dt")
    b, c = (seen(name).repeat_interleave(part.heads // part.groups, 1) for name in "bc")
    state, read = x.new_zeros(part.heads, x.shape[-1], b.shape[-1]), []
    for t in range(len(x)):
        state = state * (-dt[t] * part.a_log.exp()).exp()[:, None, None]
        state = state + dt[t][:, None, None] * x[t][..., None] * b[t][:, None]
        read.append((state * c[t][:, None]).sum(-1) + part.skip[:, None] * x[t])
    return torch.stack(read)


def selective(part: Any, seen: Seen) -> Tensor:
    """h ← e^(dt a) h + dt b x by channel and number; Σ c h + skip x is read."""
    x, dt, b, c = seen("x")[:, 0], seen("dt")[:, 0], seen("b"), seen("c")
    state, read = x.new_zeros(x.shape[-1], b.shape[-1]), []
    for t in range(len(x)):
        state = state * (-dt[t][:, None] * part.a_log.exp()).exp() + (dt[t] * x[t])[:, None] * b[t]
        read.append((state * c[t]).sum(-1) + part.skip * x[t])
    return torch.stack(read)[:, None]


def linear_recurrence(part: Any, seen: Seen) -> Tensor:
    """h ← e^decay h + v, and is read."""
    v, decay = seen("v"), seen("decay")
    state, read = torch.zeros_like(v[0]), []
    for t in range(len(v)):
        state = state * decay[t].exp() + v[t]
        read.append(state)
    return torch.stack(read)


def linear_attention(part: Any, seen: Seen) -> Tensor:
    """S ← e^−rate S + k vᵀ; Sᵀq is read."""
    q, k, v = (seen(name) for name in "qkv")
    left = torch.tensor([-1.5 * 2 ** (-8 * (head + 1) / part.heads) for head in range(part.heads)], dtype=v.dtype).exp()
    state, read = v.new_zeros(part.heads, k.shape[-1], v.shape[-1]), []
    for t in range(len(v)):
        state = state * left[:, None, None] + k[t][..., None] * v[t][:, None]
        read.append((state * q[t][..., None]).sum(1))
    return torch.stack(read)


def convolution(part: Any, seen: Seen) -> Tensor:
    """The last few values, each times the weight of its distance, and the bias."""
    v, weight = seen("v")[:, 0], part.conv.weight
    read = torch.zeros_like(v) + (0 if part.conv.bias is None else part.conv.bias)
    for back in range(weight.shape[1]):
        read[back:] += v[: len(v) - back] * weight[:, weight.shape[1] - 1 - back]
    return read[:, None]


def matrix_memory(part: Any, seen: Seen) -> Tensor:
    """C ← f C + i k vᵀ, n ← f n + i k; Cᵀq over max(|nᵀq|, 1), all in units of the largest exponential so far."""
    q, k, v, taken, decay = (seen(name) for name in ("q", "k", "v", "input", "decay"))
    q = q * k.shape[-1] ** -0.5
    memory, total = v.new_zeros(part.heads, k.shape[-1], v.shape[-1]), torch.zeros_like(k[0])
    unit, read = torch.full_like(taken[0], float("-inf")), []
    for t in range(len(v)):
        last, unit = unit, torch.maximum(decay[t] + unit, taken[t])
        kept, entering = (decay[t] + last - unit).exp()[:, None], (taken[t] - unit).exp()[:, None]
        memory = kept[..., None] * memory + (entering * k[t])[..., None] * v[t][:, None]
        total = kept * total + entering * k[t]
        whole = torch.maximum((total * q[t]).sum(-1).abs(), (-unit).exp()) + part.choice.eps
        read.append((memory * q[t][..., None]).sum(1) / whole[:, None])
    return torch.stack(read)


STEPPED: dict[str, tuple[Any, Callable[[Any, Seen], Tensor]]] = {
    "Gated DeltaNet": (GatedDelta(4, 2, 3, 4), gated_delta),
    "Kimi delta": (GatedDelta(2, 2, 3, 4, channels=True, rank=2), gated_delta),
    "Kimi delta, bounded": (GatedDelta(2, 2, 3, 4, channels=True, floor=-2.0), gated_delta),
    "Mamba 2": (StateSpace(4, 4, 3, n_groups=2, norm_groups=2), state_space),
    "Mamba 1": (SelectiveStateSpace(6, 3, 2), selective),
    "RG-LRU": (GatedLinearRecurrence(6, 2), linear_recurrence),
    "short convolution": (ShortConvolution(6, 3, True, True), convolution),
    "mLSTM": (MatrixMemory(2, 3, 4, 2.0, 1e-2, 1e-3), matrix_memory),
    "linear attention": (LinearAttention(3, 4, 1.5), linear_attention),
    "beside attention": (Parallel(Attention(2, 1, 4), StateSpace(2, 4, 3)), state_space),
}


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["32", "64"])
@pytest.mark.parametrize("name", STEPPED)
def test_a_grid_times_its_values_is_what_the_recurrence_read(name: str, dtype: torch.dtype, limit: float) -> None:
    mixer, stepped = STEPPED[name]
    config = uniform(40, 16, 1, 96, mixer, FeedForward(8))
    own = recurrence_of(mixer)
    assert own is not None
    transformer, prefix = drawn(config).to(dtype), f"blocks.0.{own.prefix}."
    part: Any = getattr(transformer.blocks[0], own.prefix)
    ids, tap = torch.randint(0, 40, (1, LENGTH), generator=torch.Generator().manual_seed(1)), Everything(config)
    transformer(ids, tap=tap)
    kept = {place: tap.seen[prefix + place] for place in own.basis() if place != "z"}
    values, grid = tap.seen[prefix + own.handed][0], tap.seen[prefix + "pattern"][0]
    exact = {place: x.double() for place, x in kept.items()}
    wanted = stepped(part.double(), lambda place: exact[place][0])
    part.to(dtype)

    def close(found: Tensor) -> None:
        assert float((found.double() - wanted).abs().max() / wanted.abs().max()) <= limit

    close(tap.seen[prefix + "mixed"][0])
    if isinstance(part, ChannelsPart):
        shares = part.shares(kept)[0]
        read = torch.einsum("cqk,kc->qc", shares, values[:, 0])
        close((read if part.constant is None else read + part.constant)[:, None])
        torch.testing.assert_close(grid[0], shares.abs().mean(0))
        later = shares
    else:
        close(torch.einsum("hqk,khd->qhd", grid, values))
        later = grid
    assert not later.triu(1).any()  # nothing comes from a later position


# What Mamba 1's channels hand over chooses b, c and dt as well, so that a change of it moves the grid.
@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in STEPPED if name != "Mamba 1"])
def test_a_grid_says_what_a_changed_value_changes(name: str) -> None:
    """More of one position's value, and every later reading moves by its share: a grid is not only a sum that fits."""
    mixer, _ = STEPPED[name]
    config: Config = uniform(40, 16, 1, 96, mixer, FeedForward(8))
    own = recurrence_of(mixer)
    assert own is not None
    transformer, prefix = drawn(config), f"blocks.0.{own.prefix}."
    ids = torch.randint(0, 40, (1, 20), generator=torch.Generator().manual_seed(1))
    plain, at = Everything(config), 7
    transformer(ids, tap=plain)
    grid, step = plain.seen[prefix + "pattern"][0], 0.25
    part: Any = getattr(transformer.blocks[0], own.prefix)
    if isinstance(part, ChannelsPart):
        kept = {place: plain.seen[prefix + place] for place in own.basis() if place != "z"}
        expected = part.shares(kept)[0, :, :, at].T[:, None] * step
    else:
        expected = grid[:, :, at].T[..., None] * step

    class More:
        """Adds to every number that one position hands over, and reads what is made of it."""

        reads, writes = frozenset({prefix + "mixed"}), frozenset({prefix + own.handed})
        seen: ClassVar[dict[str, Tensor]] = {}

        def __call__(self, site: str, x: Tensor, where: Where) -> Tensor | None:
            if site in self.reads:
                self.seen[site] = x
                return None
            x = x.clone()
            x[:, at] += step
            return x

    tap = More()
    transformer(ids, Cache(config, 1, dtype=torch.float64), tap=tap)
    moved = tap.seen[prefix + "mixed"][0] - plain.seen[prefix + "mixed"][0]
    torch.testing.assert_close(moved, expected.expand_as(moved), rtol=1e-9, atol=1e-10)
