"""A mixture of experts as data (arXiv:1701.06538)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from glassformer.errors import ConfigError
from glassformer.model.choices.common import Component, above_zero, positive
from glassformer.model.choices.feed_forward import Activation, FeedForward, known_activation


@dataclass(frozen=True)
class Experts:
    """Many small feed-forward parts, of which a router chooses a few for each token.

    A token's scores are a softmax or a sigmoid of router · x; the experts with the largest scores are chosen, and
    what each of them gives is multiplied by its weight: its score, renormalised over the chosen ones and scaled.

    Args:
        n_experts: how many there are.
        n_active: how many are chosen for a token.
        d_ff: neurons of each.
        activation: of each.
        gated: down(act(gate(x)) · up(x)) instead of down(act(up(x))).
        bias: biases on the experts' matrices.
        latent: the experts read from, and write to, a vector of this width, which a matrix each way joins to the
            stream; None for the stream itself (Nemotron 3).
        latent_bias: biases on these two matrices.
        clamp: gates are cut to at most this, linear halves to between its negative and it (gpt-oss); None for no cut.
        linear_shift: added to the linear half (gpt-oss: 1).
        router_bias: a bias on the scores before softmax or sigmoid.
        router_cap: scores become cap * tanh(score / cap) before softmax or sigmoid; None for no cap.
        on_input: what an expert reads is multiplied by its weight, instead of what it gives (Llama 4).
        scores: "softmax" over all experts, "sigmoid" of each, or "sparse_mixer" (arXiv:2409.12136): of two experts
            chosen one after the other, each has its share of a softmax over the scores that are near it.
        jitter: how near, for "sparse_mixer".
        correction: a stored number for each expert is added to its score where experts are chosen, not in weights.
        correction_of: what the correction is added to: the "scores", or what comes "before" softmax or sigmoid.
        groups: experts stand in this many equal groups, and are chosen from the best ones alone.
        top_groups: how many groups that is.
        group_best: a group is as good as the sum of this many of its best scores.
        renormalise: weights of the chosen sum to one (before `scale`).
        scale: multiplies the weights.
        shared: a feed-forward part that every token passes beside its experts, or None.
        shared_scale: multiplies what it gives.
        shared_gate: what it gives is multiplied by the sigmoid of a projection.
        apart: eps of rms norms that experts and the part beside them have of their own (Gemma 4): the router reads the
            stream divided by its root mean square, times learned numbers over √d_model; experts read the stream through
            a norm; and norms stand after the experts' sum and after the part beside them. None for no such norms.
        sum_bias: a bias on what all experts give together (JetMoE).
        expert_scales: weights are multiplied by a learned number for each expert.
    """

    kind: ClassVar[str] = "experts"
    prefix: ClassVar[str] = "mlp"

    n_experts: int
    n_active: int
    d_ff: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    clamp: float | None = None
    linear_shift: float = 0.0
    router_bias: bool = False
    router_cap: float | None = None
    on_input: bool = False
    scores: Literal["softmax", "sigmoid", "sparse_mixer"] = "softmax"
    jitter: float = 0.01
    correction: bool = False
    correction_of: Literal["scores", "before"] = "scores"
    groups: int = 1
    top_groups: int = 1
    group_best: int = 2
    renormalise: bool = True
    scale: float = 1.0
    shared: FeedForward | None = None
    shared_scale: float = 1.0
    shared_gate: bool = False
    latent: int | None = None
    latent_bias: bool = False
    apart: float | None = None
    expert_scales: bool = False
    sum_bias: bool = False

    def __post_init__(self) -> None:
        positive("experts", n_experts=self.n_experts, n_active=self.n_active, d_ff=self.d_ff)
        positive("experts", groups=self.groups, top_groups=self.top_groups, group_best=self.group_best)
        known_activation(self.activation)
        if self.latent is not None:
            positive("experts", latent=self.latent)
        elif self.latent_bias:
            raise ConfigError("Biases of the matrices to and from a latent need a latent.")
        if not self.gated and (self.clamp is not None or self.linear_shift):
            raise ConfigError("Only gated experts have a clamp and a shift of the linear half.")
        if self.n_active > self.n_experts:
            raise ConfigError(f"{self.n_active} of {self.n_experts} experts cannot be chosen; n_active is too large.")
        if self.scores not in ("softmax", "sigmoid", "sparse_mixer"):
            raise ConfigError(f"experts.scores is softmax, sigmoid or sparse_mixer; got {self.scores!r}.")
        if self.scores == "sparse_mixer" and (self.n_active != 2 or self.groups > 1 or self.correction):
            raise ConfigError("The sparse mixer chooses two experts, without groups and without a correction.")
        if self.correction_of not in ("scores", "before"):
            raise ConfigError(f"experts.correction_of is scores or before; got {self.correction_of!r}.")
        if self.n_experts % self.groups:
            raise ConfigError(f"{self.n_experts} experts cannot stand in {self.groups} equal groups.")
        size = self.n_experts // self.groups
        if self.top_groups > self.groups or (self.groups > 1 and self.group_best > size):
            raise ConfigError(
                f"Groups of {size} experts have no best {self.group_best}, or there are not {self.top_groups} groups."
            )
        if self.n_active > size * self.top_groups:
            raise ConfigError(f"{self.n_active} experts cannot be chosen from {self.top_groups} groups of {size}.")
        above_zero("experts", clamp=self.clamp, jitter=self.jitter, router_cap=self.router_cap, apart=self.apart)
        if self.apart is not None and self.latent is not None:
            raise ConfigError("Experts with norms of their own have no latent.")
        if self.sum_bias and (self.apart is not None or self.latent is not None):
            raise ConfigError("A bias on the experts' sum stands without norms of their own and without a latent.")
        if self.scale == 0:
            raise ConfigError("experts.scale must not be 0.")
        if self.shared is not None and self.shared.out_scale != 1:
            raise ConfigError("What scales the part beside experts is shared_scale, not its own out_scale.")
        if self.shared_gate and self.shared is None:
            raise ConfigError("A gate of the shared part needs a shared part.")

    @property
    def neurons(self) -> int:
        """Neurons of all experts together; expert e's are e · d_ff to (e + 1) · d_ff − 1."""
        return self.n_experts * self.d_ff

    @property
    def active_neurons(self) -> int:
        """Neurons that one token meets, those of the shared part among them."""
        return self.n_active * self.d_ff + (0 if self.shared is None else self.shared.d_ff)

    def components(self, d_model: int) -> dict[str, Component]:
        """Its parameters by key within the part, in the order of the computation; experts' matrices are stacked."""
        found = {"router.weight": Component((self.n_experts, d_model), "router")}
        if self.router_bias:
            found["router.bias"] = Component((self.n_experts,), "biases")
        if self.correction:
            found["correction"] = Component((self.n_experts,), "biases")
        if self.expert_scales:
            found["scales"] = Component((self.n_experts,), "biases")
        if self.apart is not None:
            names = ["router_scale", "ln_in.weight", "ln_out.weight"]
            names += [] if self.shared is None else ["ln_shared.weight"]
            found |= {name: Component((d_model,), "norms") for name in names}
        share = self.n_active / self.n_experts
        if self.latent is not None:
            found["narrow.weight"] = Component((self.latent, d_model), "up")
            found |= {"narrow.bias": Component((self.latent,), "biases")} if self.latent_bias else {}
        each = FeedForward(self.d_ff, "silu", self.gated, self.bias).components(self.latent or d_model)
        for key, one in each.items():
            found[f"experts.{key}"] = Component((self.n_experts, *one.shape), one.counted, share)
        if self.latent is not None:
            found["widen.weight"] = Component((d_model, self.latent), "down")
            found |= {"widen.bias": Component((d_model,), "biases")} if self.latent_bias else {}
        if self.sum_bias:
            found["bias"] = Component((d_model,), "biases")
        if self.shared is not None:
            if self.shared_gate:
                found["shared_gate.weight"] = Component((1, d_model), "router")
            found |= {f"shared.{key}": component for key, component in self.shared.components(d_model).items()}
        return found

    def sites(self) -> tuple[str, ...]:
        """Names of its places within the part, in the order the forward reaches them."""
        inner = ("pre", "pre_linear", "post") if self.gated else ("pre", "post")
        found = ("router", "weights", *(("latent",) if self.latent is not None else ()), *inner)
        if self.shared is None:
            return found
        beside = tuple(f"shared_{site}" for site in self.shared.sites())
        return (*found, *beside, *(("shared_gate",) if self.shared_gate else ()), "shared")

    def basis(self) -> tuple[str, ...]:
        """The places that a trace keeps: who was chosen, and with what weight."""
        return ("weights",)
