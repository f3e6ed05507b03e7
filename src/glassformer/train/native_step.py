"""Gradient steps in C++: the same calls as torch's, on the same flat weights.

What it computes is defined by the model and by `optimizer.py`, and tested against both. It knows flat weights, a
design and the library; it chooses nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from glassformer.errors import CheckpointError, MemoryLimitError, ShapeError
from glassformer.kernels import train_abi
from glassformer.model import Config
from glassformer.model.positions import RotaryTable
from glassformer.model.transformer import check_lengths, rotary_kinds
from glassformer.train.dropout import Dropout
from glassformer.train.optimizer import newton_schulz_rules
from glassformer.train.recipe import OptimizerSpec
from glassformer.train.weights import FlatWeights, kind_of


class NativeStep:
    """Loss, gradient and optimiser of one model, on flat weights.

    Args:
        config: a design that `native.refusal` has nothing against.
        weights: float32 masters with gradients, and the working copies that are kept up to date.
        spec: the optimiser's rates.
        extra: compiler flags of the library, beside those of the precision.
        threads: 0 for as many as torch has.

    Raises:
        NativeUnavailableError: where the library cannot be had.
    """

    def __init__(
        self,
        config: Config,
        weights: FlatWeights,
        spec: OptimizerSpec,
        *,
        extra: tuple[str, ...] = (),
        threads: int = 0,
    ) -> None:
        self.config, self.weights, self.spec = config, weights, spec
        bf16 = weights.compute == torch.bfloat16
        self.library = train_abi.LIBRARY.get(*train_abi.flags(bf16), *extra)
        self.first, self.second = torch.zeros_like(weights.master), torch.zeros_like(weights.master)
        self.updates = 0
        self._fresh = True
        rules = [number for rule in newton_schulz_rules(spec.newton_schulz) for number in rule]
        self._rules = train_abi.Rules(
            (ctypes.c_float * len(rules))(*rules),
            *(spec.muon_lr, spec.muon_decay, spec.beta1, spec.beta2, spec.eps, spec.newton_schulz, spec.cautious),
        )
        shape = _shape(config, threads or torch.get_num_threads())
        parameters = [self._parameter(name) for name in weights.shapes]
        cosines, sines = _angles(config)
        buffers = (weights.master, weights.grad, self.first, self.second, weights.working)
        self._model = self.library.gf_create(
            ctypes.byref(shape),
            (train_abi.Parameter * len(parameters))(*parameters),
            len(parameters),
            *(None if x is None else x.data_ptr() for x in (cosines, sines)),
            *(x.data_ptr() for x in buffers),
        )
        if not self._model:
            raise MemoryLimitError("There is not enough memory for the native training step's copies of the weights.")

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.library.gf_destroy(self._model)

    @property
    def arithmetic(self) -> str:
        """How products are computed, in words."""
        name: str = self.library.gf_arithmetic().decode()
        return name

    def zero(self) -> None:
        """Begin a step: the next gradient takes the place of what is there."""
        self._fresh = True

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Sum of −log p(target) over the targets that count; tokens and targets are (batch, query)."""
        x, y, lengths = self._sound(tokens), self._sound(targets), self._lengths(tokens, None)
        return self._found(
            self.library.gf_loss(self._model, x.data_ptr(), y.data_ptr(), lengths.data_ptr(), len(lengths))
        )

    def accumulate(
        self,
        tokens: Tensor,
        targets: Tensor,
        scale: float,
        dropout: Dropout | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """The summed loss of some rows, or of one that holds documents of these lengths; its gradient times `scale` is
        added."""
        x, y, each = self._sound(tokens), self._sound(targets), self._lengths(tokens, lengths)
        call = self.library.gf_gradient
        out, place = train_abi.Dropout(), 0
        if dropout is not None:
            out, place = train_abi.Dropout(dropout.key, dropout.share, dropout.scale), dropout.place
        arrays = (x.data_ptr(), y.data_ptr(), each.data_ptr(), len(each))
        found = call(self._model, *arrays, scale, self._fresh, ctypes.byref(out), place)
        self._fresh = False
        return self._found(found)

    def norm(self) -> float:
        """Of all gradients together."""
        return float(self.library.gf_square(self._model)) ** 0.5

    def step(self, rate: float, momentum: float) -> None:
        """One step of the optimiser at `rate` times each learning rate."""
        self.updates += 1
        rules = ctypes.byref(self._rules)
        if self.library.gf_update(self._model, rules, rate, momentum, self.updates):
            raise MemoryLimitError("There is not enough memory for the native training step.")

    def publish(self) -> None:
        """Take over masters that were written from outside."""
        self.library.gf_publish(self._model)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, by the names that `MuonAdamW.state` gives."""
        return dict(self._states())

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Continue after `steps` steps from what `state` gave.

        Raises:
            CheckpointError: when a tensor is absent or has another shape.
        """
        for name, target in self._states():
            if name not in tensors or tensors[name].shape != target.shape:
                raise CheckpointError(f"The checkpoint lacks {name} with shape {tuple(target.shape)}.")
            target.copy_(tensors[name])
        self.updates = steps

    def _states(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.weights.shapes:
            if self._muon(name):
                yield f"muon.momentum.{name}", self.weights.view(self.first, name)
            else:
                yield f"adamw.exp_avg.{name}", self.weights.view(self.first, name)
                yield f"adamw.exp_avg_sq.{name}", self.weights.view(self.second, name)

    def _sound(self, ids: Tensor) -> Tensor:
        return ids.to(device="cpu", dtype=torch.int64).contiguous()

    def _lengths(self, tokens: Tensor, lengths: Sequence[int] | None) -> Tensor:
        batch, length = tokens.shape
        if lengths is None:
            return torch.full((batch,), length, dtype=torch.int64)
        check_lengths(tokens, lengths)
        return torch.tensor(lengths, dtype=torch.int64)

    def _found(self, loss: float) -> Tensor:
        if loss == -1:
            raise MemoryLimitError("There is not enough memory for the native training step; set native=off.")
        if loss == -2:
            raise ShapeError(
                f"Tokens must be below {self.config.vocab_size}, and at most {self.config.context} in a row."
            )
        return torch.tensor(loss, dtype=torch.float64)

    def _muon(self, name: str) -> bool:
        return self.spec.kind == "muon" and self._kind(name) == "matrix"

    def _kind(self, name: str) -> str:
        return kind_of(name, self.weights.shapes[name], tied=self.config.tied)

    def _parameter(self, name: str) -> train_abi.Parameter:
        pieces = name.split(".")
        layer = int(pieces[1]) if pieces[0] == "blocks" else -1
        role = ".".join(pieces[2:-1]) if layer >= 0 else pieces[0]
        shape = self.weights.shapes[name]
        kind, spec = self._kind(name), self.spec
        rates = {"embed": spec.embed_lr, "head": spec.head_lr, "vector": spec.vector_lr, "matrix": spec.matrix_lr}
        return train_abi.Parameter(
            offset=self.weights.offsets[name],
            role=train_abi.ROLES.index(role),
            layer=layer,
            rows=shape[0] if len(shape) == 2 else 1,
            cols=shape[-1],
            bias=pieces[-1] == "bias",
            muon=self._muon(name),
            lr=rates[kind],
            decay=0.0 if kind == "vector" else spec.adam_decay,
        )


def _shape(config: Config, threads: int) -> train_abi.TrainShape:
    a, f = config.attention(0), config.feed_forward(0)
    return train_abi.TrainShape(
        vocab=config.vocab_size,
        d_model=config.d_model,
        n_layers=config.n_layers,
        n_heads=a.n_heads,
        n_kv_heads=a.n_kv_heads,
        d_head=a.d_head,
        d_ff=f.d_ff,
        context=config.context,
        qk_norm=a.qk_norm is not None,
        layer_norm=config.norm.kind == "layer",
        gated=f.gated,
        activation=train_abi.ACTIVATIONS[f.activation],
        tied=config.tied,
        threads=threads,
        eps=config.norm.eps,
        score_scale=a.score_scale,
    )


def _angles(config: Config) -> tuple[Tensor | None, Tensor | None]:
    """Cosines and sines of every position and pair, float32; None without rotary positions."""
    kinds = rotary_kinds(config)
    if not kinds:
        return None, None
    rotary, d_head = kinds[0]
    table = RotaryTable(rotary.dims(d_head), rotary.theta, rotary.scaling)
    cosines, sines = table(torch.arange(config.context)[None], torch.float32)
    return cosines[0, :, 0].contiguous(), sines[0, :, 0].contiguous()
