"""RelP's rules of single parts, against their formulas."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from glassformer.interp.edge_graph import FEED
from glassformer.interp.edge_relevance import of_layer
from glassformer.model import uniform
from glassformer.model.choices import Experts
from glassformer.model.config import Attention, FeedForward


def test_a_shifted_half_has_a_share_without_what_was_added_to_it():
    """gpt-oss multiplies an activation by up + 1, cut before: a half near zero is no divisor."""
    dense = FeedForward(3, clamp=0.5, linear_shift=1.0)
    experts = Experts(2, 1, 3, clamp=0.5, linear_shift=1.0, shared=dense)
    config = uniform(9, 8, 2, 8, Attention(2, 2, 4), experts)
    for part in ("mlp.", "mlp.shared_"):
        act = {a.site.removeprefix("blocks.1." + part): a.action for a in of_layer(config, 1, FEED)}
        pre = torch.tensor([0.7, -1.2, 2.0], dtype=torch.float64, requires_grad=True)
        up = torch.tensor([1e-9, -0.4, 2.0], dtype=torch.float64, requires_grad=True)
        where: Any = None
        act["pre"]("", pre, where)
        act["pre_linear"]("", up, where)
        post = F.silu(pre.clamp(max=0.5)) * (up.clamp(-0.5, 0.5) + 1)
        shared = act["post"]("", post, where)
        assert shared is not None
        torch.testing.assert_close(shared, post)
        by_pre, by_up = torch.autograd.grad(shared.sum(), (pre, up))
        gate = F.silu(torch.tensor([0.5, -1.2, 0.5], dtype=torch.float64))
        torch.testing.assert_close(by_up, gate / 2 * torch.tensor([1.0, 1.0, 0.25], dtype=torch.float64))
        torch.testing.assert_close(by_pre, (post / pre / 2).detach())
