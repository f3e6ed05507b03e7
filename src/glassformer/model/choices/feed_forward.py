"""The feed-forward part as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from glassformer.errors import ConfigError, near
from glassformer.model.choices.common import Component, above_zero, positive
from glassformer.model.choices.norm import Norm

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu2", "quick_gelu", "xielu"]
ACTIVATIONS: tuple[str, ...] = ("gelu", "gelu_tanh", "silu", "relu", "relu2", "quick_gelu")

# Numbers that xIELU (arXiv:2411.13010) learns or keeps in each layer.
LEARNED: tuple[str, ...] = ("alpha_p", "alpha_n", "beta", "eps")


def known_activation(name: str) -> None:
    """Raise ConfigError for an activation that there is not."""
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"Activation {name!r} is unknown; known are {', '.join(ACTIVATIONS)}." + near(name, ACTIVATIONS)
        )


@dataclass(frozen=True)
class FeedForward:
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated.

    Args:
        d_ff: neurons.
        activation: of each.
        gated: with a linear half that the activated one multiplies.
        bias: biases on the matrices.
        clamp: gates are cut to at most this, linear halves to between its negative and it; None for no cut.
        linear_shift: added to the linear half.
        sparsity: about this share of gates is off: what multiplies is how far a gate stands above their mean
            and as many deviations as cut this share off a normal distribution (Gemma 3n); 0 for none.
        out_norm: a norm over what the neurons give, before the down projection (BitNet), or None.
        pre_scale: multiplies what the activation reads (Falcon-H1).
        out_scale: multiplies what the part adds.
    """

    kind: ClassVar[str] = "dense"
    prefix: ClassVar[str] = "mlp"

    d_ff: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    clamp: float | None = None
    linear_shift: float = 0.0
    out_norm: Norm | None = None
    pre_scale: float = 1.0
    out_scale: float = 1.0
    sparsity: float = 0.0

    def __post_init__(self) -> None:
        positive("feed_forward", d_ff=self.d_ff)
        if not self.gated and (self.clamp is not None or self.linear_shift):
            raise ConfigError("Only a gated part has a clamp and a shift of the linear half.")
        above_zero("feed_forward", clamp=self.clamp)
        if self.pre_scale == 0 or self.out_scale == 0:
            raise ConfigError("feed_forward.pre_scale and out_scale must not be 0.")
        if not 0 <= self.sparsity < 1:
            raise ConfigError(f"feed_forward.sparsity must be at least 0 and below 1; got {self.sparsity}.")
        if self.activation == "xielu" and not self.gated:
            return
        known_activation(self.activation)

    @property
    def neurons(self) -> int:
        """Neurons: rows of the up projection."""
        return self.d_ff

    @property
    def active_neurons(self) -> int:
        """Neurons that one token meets: all."""
        return self.d_ff

    def components(self, d_model: int) -> dict[str, Component]:
        """Its parameters by key within the part, in the order of the computation."""
        found: dict[str, Component] = {}
        sizes = dict.fromkeys(("gate", "up") if self.gated else ("up",), (self.d_ff, d_model))
        for name, shape in {**sizes, "down": (d_model, self.d_ff)}.items():
            if name == "down" and self.out_norm is not None:
                found |= self.out_norm.components("out_norm", self.d_ff)
            found[f"{name}.weight"] = Component(shape, name)
            if self.bias:
                found[f"{name}.bias"] = Component(shape[:1], "biases")
        if self.activation == "xielu":
            found |= {name: Component((1,) if name.startswith("alpha") else (), "biases") for name in LEARNED}
        return found

    def sites(self) -> tuple[str, ...]:
        """Names of its places within the part, in the order the forward reaches them."""
        return ("pre", "pre_linear", "post") if self.gated else ("pre", "post")

    def basis(self) -> tuple[str, ...]:
        """The places that a trace keeps: none, all follow from the stream."""
        return ()
