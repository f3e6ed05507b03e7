"""A mixture of experts as a module: a router chooses a few small feed-forward parts for each token."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from glassformer.model.choices import Experts, Norm
from glassformer.model.layers import Linear, gate, linear, softcap
from glassformer.model.norms import NormLayer, at_least_float32
from glassformer.model.parts.feed_forward import FeedForwardPart
from glassformer.model.sites import View, see

Product = Callable[[int, Tensor], Tensor]


class Stack(nn.Module):
    """One matrix of every expert: weight (expert, d_out, d_in) and, where the design has one, bias (expert, d_out)."""

    def __init__(self, experts: int, d_in: int, d_out: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, d_out, d_in))
        self.bias = nn.Parameter(torch.empty(experts, d_out)) if bias else None

    def each(self) -> Product:
        """The products of this forward, by the expert's number.

        For gradients the stack is taken apart once, so that they come together once as well, and not as a stack for
        every expert; otherwise only those that are met are read.
        """
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return lambda expert, x: linear(x, self.weight[expert], None if self.bias is None else self.bias[expert])
        weights, biases = self.weight.unbind(0), None if self.bias is None else self.bias.unbind(0)
        return lambda expert, x: linear(x, weights[expert], None if biases is None else biases[expert])


class Stacks(nn.Module):
    """The experts' matrices."""

    def __init__(self, choice: Experts, d_model: int) -> None:
        super().__init__()
        e, f, bias = choice.n_experts, choice.d_ff, choice.bias
        self.gate = Stack(e, d_model, f, bias) if choice.gated else None
        self.up = Stack(e, d_model, f, bias)
        self.down = Stack(e, f, d_model, bias)


class ExpertsPart(nn.Module):
    """Σ over the chosen experts of weight · down(act(gate(x)) · up(x)), and the part that every token passes.

    Without a tap on neurons only chosen experts are computed, each for its tokens at once and one after another,
    so that a token's sum has the same order whoever stands beside it.
    """

    def __init__(self, choice: Experts, d_model: int) -> None:
        super().__init__()
        c = self.choice = choice
        self.router = Linear(d_model, c.n_experts, c.router_bias)
        self.correction = nn.Parameter(torch.empty(c.n_experts)) if c.correction else None
        self.narrow = None if c.latent is None else Linear(d_model, c.latent, c.latent_bias)
        self.experts = Stacks(c, d_model if c.latent is None else c.latent)
        self.widen = None if c.latent is None else Linear(c.latent, d_model, c.latent_bias)
        self.bias = nn.Parameter(torch.empty(d_model)) if c.sum_bias else None
        self.shared_gate = Linear(d_model, 1, False) if c.shared_gate else None
        self.shared = None if c.shared is None else FeedForwardPart(c.shared, d_model, "mlp.shared_")
        self.activation = functools.partial(gate, c.activation)
        self.scales = nn.Parameter(torch.empty(c.n_experts)) if c.expert_scales else None
        self.router_scale = None if c.apart is None else nn.Parameter(torch.empty(d_model))
        self.ln_in = self._norm(d_model)
        self.ln_out = self._norm(d_model)
        self.ln_shared = None if c.shared is None else self._norm(d_model)

    def _norm(self, d_model: int) -> NormLayer | None:
        return None if self.choice.apart is None else NormLayer(d_model, Norm("rms", self.choice.apart))

    def forward(
        self,
        x: Float[Tensor, "*batch d_model"],
        view: View | None = None,
        stream: Float[Tensor, "*batch d_model"] | None = None,
    ) -> Float[Tensor, "*batch d_model"]:
        """What the part gives of the normed stream `x`; `stream` is the stream itself, for norms of its own."""
        weights = see(view, "mlp.weights", self.weights(see(view, "mlp.router", self.scored(x, stream))))
        inner = self.narrowed(self.entering(x, stream))
        if self.narrow is not None:
            inner = see(view, "mlp.latent", inner)
        if view is not None and view.wants("mlp.pre", "mlp.pre_linear", "mlp.post"):
            out = self.written(self.watched(inner, weights, view), weights)
        else:
            out = self.widened(self.routed(inner, weights))
        out = self.summed(out)
        return out if self.shared is None else out + see(view, "mlp.shared", self.beside(x, view))

    # The steps, each a function of its own so that what a trace kept can be taken from the middle

    def scored(
        self, x: Float[Tensor, "*batch d_model"], stream: Float[Tensor, "*batch d_model"] | None = None
    ) -> Float[Tensor, "*batch expert"]:
        """The router's scores."""
        if self.router_scale is not None:
            assert stream is not None
            assert self.ln_in is not None
            wide = at_least_float32(stream)
            divided = (wide / self.ln_in.scale(stream)).to(stream.dtype)
            x = divided * self.router_scale * stream.shape[-1] ** -0.5
        return self.router(x)

    def entering(
        self, x: Float[Tensor, "*batch d_model"], stream: Float[Tensor, "*batch d_model"] | None = None
    ) -> Float[Tensor, "*batch d_model"]:
        """What the experts read: the normed stream, or the stream through a norm of their own."""
        if self.ln_in is None:
            return x
        assert stream is not None
        return self.ln_in(stream)

    def summed(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The experts' sum after a norm or with a bias of its own, where there is one."""
        x = x if self.ln_out is None else self.ln_out(x)
        return x if self.bias is None else x + self.bias

    def weights(self, router: Float[Tensor, "*batch expert"]) -> Float[Tensor, "*batch expert"]:
        """What each expert's output is multiplied by, from the router's scores; 0 for those not chosen."""
        c, wide = self.choice, softcap(at_least_float32(router), self.choice.router_cap)
        if c.scores == "sparse_mixer":
            return _sparse_mixer(wide, c.jitter).to(router.dtype)
        scores = wide.softmax(-1) if c.scores == "softmax" else wide.sigmoid()
        ranked = wide if c.correction_of == "before" else scores
        if self.correction is not None:
            ranked = ranked + at_least_float32(self.correction)
        if c.groups > 1:
            ranked = ranked.masked_fill(~self._in_best_groups(ranked), float("-inf"))
        chosen = ranked.topk(c.n_active, dim=-1).indices
        weights = torch.zeros_like(scores).scatter(-1, chosen, scores.gather(-1, chosen))
        if c.renormalise:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(wide.dtype).tiny)
        weights = weights * c.scale
        return (weights if self.scales is None else weights * self.scales).to(router.dtype)

    def _in_best_groups(self, ranked: Float[Tensor, "*batch expert"]) -> Bool[Tensor, "*batch expert"]:
        c = self.choice
        each = ranked.unflatten(-1, (c.groups, -1))
        best = each.topk(c.group_best, dim=-1).values.sum(-1).topk(c.top_groups, dim=-1).indices
        found = torch.zeros(each.shape[:-1], dtype=torch.bool, device=ranked.device).scatter(-1, best, True)
        return found[..., None].expand(each.shape).flatten(-2)

    def narrowed(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_in"]:
        """What the experts read."""
        return x if self.narrow is None else self.narrow(x)

    def widened(self, y: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_model"]:
        """What the experts' sum adds to the stream."""
        return y if self.widen is None else self.widen(y)

    def routed(
        self, x: Float[Tensor, "*batch d_in"], weights: Float[Tensor, "*batch expert"]
    ) -> Float[Tensor, "*batch d_in"]:
        """The chosen experts' sum."""
        flat, shares = x.reshape(-1, x.shape[-1]), weights.reshape(-1, weights.shape[-1])
        out, up, down = torch.zeros_like(flat), self.experts.up.each(), self.experts.down.each()
        gate = None if self.experts.gate is None else self.experts.gate.each()
        for expert, rows in _meetings(shares):
            share, own = shares[rows, expert, None], flat[rows]
            own = own * share if self.choice.on_input else own
            linear_half = up(expert, own)
            hidden = self.hidden(linear_half) if gate is None else self.hidden(gate(expert, own), linear_half)
            y = down(expert, hidden)
            out.index_add_(0, rows, y if self.choice.on_input else y * share)
        return out.view(x.shape)

    def hidden(self, pre: Tensor, up: Tensor | None = None) -> Tensor:
        """Neurons' outputs before the expert's weight, from their inputs and the linear half."""
        c = self.choice
        if c.clamp is not None and up is not None:
            pre, up = pre.clamp(max=c.clamp), up.clamp(-c.clamp, c.clamp)
        if c.linear_shift and up is not None:
            up = up + c.linear_shift
        return self.activation(pre) if up is None else self.activation(pre, up)

    # The same with every neuron in sight, for taps and traces

    def watched(
        self, x: Float[Tensor, "*own d_in"], weights: Float[Tensor, "*batch expert"], view: View | None
    ) -> Float[Tensor, "*batch d_ff"]:
        """`mlp.post` with the neurons of all experts side by side; those of experts not chosen are 0. Experts read `x`
        of the batch, or each its own along a first axis."""
        if self.experts.gate is None:
            return see(view, "mlp.post", self.post(see(view, "mlp.pre", self.inputs("up", x, weights)), None, weights))
        pre = see(view, "mlp.pre", self.inputs("gate", x, weights))
        up = see(view, "mlp.pre_linear", self.inputs("up", x, weights))
        return see(view, "mlp.post", self.post(pre, up, weights))

    def inputs(
        self, which: str, x: Float[Tensor, "*own d_in"], weights: Float[Tensor, "*batch expert"]
    ) -> Float[Tensor, "*batch d_ff"]:
        """`mlp.pre` or `mlp.pre_linear`, through the matrices "gate" or "up"."""
        shares = weights.reshape(-1, weights.shape[-1])
        apart = x.shape[: x.ndim - weights.ndim].numel()
        flat = x.reshape(apart, len(shares), x.shape[-1])  # (1 or expert, token, d_in)
        out = flat.new_zeros(len(shares), self.choice.n_experts, self.choice.d_ff)
        matrices: Product = getattr(self.experts, which).each()
        for expert, rows in _meetings(shares):
            own = flat[expert if len(flat) > 1 else 0, rows]
            out[rows, expert] = matrices(expert, own * shares[rows, expert, None] if self.choice.on_input else own)
        return out.view(*weights.shape[:-1], -1)

    def post(
        self,
        pre: Float[Tensor, "*batch d_ff"],
        up: Float[Tensor, "*batch d_ff"] | None,
        weights: Float[Tensor, "*batch expert"],
    ) -> Float[Tensor, "*batch d_ff"]:
        """`mlp.post` from neurons' inputs."""
        return self.hidden(pre, up) * self.outer(weights).repeat_interleave(self.choice.d_ff, dim=-1)

    def outer(self, weights: Float[Tensor, "*batch expert"]) -> Float[Tensor, "*batch expert"]:
        """What each expert's output is multiplied by: its weight, or 1 where that is on its input."""
        return (weights != 0).to(weights.dtype) if self.choice.on_input else weights

    def written(
        self, post: Float[Tensor, "*batch d_ff"], weights: Float[Tensor, "*batch expert"]
    ) -> Float[Tensor, "*batch d_model"]:
        """What the experts add together, from `mlp.post`."""
        flat, shares = post.reshape(-1, post.shape[-1]), weights.reshape(-1, weights.shape[-1])
        per_expert = flat.unflatten(-1, (self.choice.n_experts, -1))
        out = flat.new_zeros(len(flat), self.experts.down.weight.shape[1])
        bias = self.experts.down.bias
        for expert in (flat.view(per_expert.shape) != 0).any(-1).any(0).nonzero()[:, 0].tolist():
            out = out + linear(per_expert[:, expert], self.experts.down.weight[expert])
        if bias is not None:
            out = out + self.outer(shares) @ bias
        return self.widened(out.view(*post.shape[:-1], -1))

    def beside(self, x: Float[Tensor, "*batch d_model"], view: View | None = None) -> Float[Tensor, "*batch d_model"]:
        """What the part that every token passes gives, its gate in it."""
        assert self.shared is not None
        out = self.scaled(self.shared(x, view))
        if self.shared_gate is not None:
            out = out * see(view, "mlp.shared_gate", self.shared_share(x))
        return out if self.ln_shared is None else self.ln_shared(out)

    def scaled(self, shared: Tensor) -> Tensor:
        """The output of the part that every token passes, times the design's number."""
        return shared if self.choice.shared_scale == 1 else shared * self.choice.shared_scale

    def shared_share(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """What multiplies the output of the part that every token passes."""
        assert self.shared_gate is not None
        return torch.sigmoid(self.shared_gate(x))

    @property
    def columns(self) -> Float[Tensor, "d_model d_ff"]:
        """What each neuron writes, the experts' side by side."""
        columns = self.experts.down.weight.transpose(0, 1).flatten(1)
        return columns if self.widen is None else self.widen.weight @ columns

    def expert_vectors(
        self, post: Float[Tensor, " d_ff"], weights: Float[Tensor, " expert"]
    ) -> dict[int, Float[Tensor, " d_model"]]:
        """What each chosen expert adds for one token, biases in it, by number."""
        per_expert, down = post.unflatten(-1, (self.choice.n_experts, -1)), self.experts.down
        outer = self.outer(weights)
        found: dict[int, Tensor] = {}
        for expert in ((weights != 0) | (per_expert != 0).any(-1)).nonzero()[:, 0].tolist():
            own = down.weight[expert].to(post) @ per_expert[expert]
            own = own if down.bias is None else own + outer[expert] * down.bias[expert].to(post)
            found[expert] = own if self.widen is None else self.widen.weight.to(post) @ own
        return found


def _meetings(weights: Float[Tensor, "token expert"]) -> list[tuple[int, Tensor]]:
    """Each expert that somebody chose, in order, and the rows of the tokens that did."""
    pairs = (weights.detach() != 0).t().nonzero()
    counts = torch.bincount(pairs[:, 0], minlength=weights.shape[1]).tolist()
    rows = pairs[:, 1].split(counts)
    return [(expert, rows[expert]) for expert, count in enumerate(counts) if count]


def _sparse_mixer(router: Float[Tensor, "*batch expert"], jitter: float) -> Float[Tensor, "*batch expert"]:
    """Weights of two experts chosen one after the other (arXiv:2409.12136), as in inference."""
    weights, left = torch.zeros_like(router), router
    for _ in range(2):
        best, expert = left.max(-1, keepdim=True)
        far = (best - router) / torch.maximum(router.abs(), best) > 2 * jitter
        near = left.masked_fill(far, float("-inf")).softmax(-1)
        weights = weights.scatter(-1, expert, near.gather(-1, expert))
        left = left.scatter(-1, expert, float("-inf"))
    return weights
