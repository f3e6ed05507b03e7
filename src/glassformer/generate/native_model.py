"""`NativeModel`: a transformer's weights, packed for the native forward pass, and its key-value cache.

Tokens enter with the slot (sequence) and position they belong to; prefill, decode, batches of sequences at
different positions, and mixtures of them are one call, and a token's logits do not depend on what shares the call.
It computes what `model.Transformer` computes: to float32 rounding with float32 weights, and within each format's
own error otherwise. It knows no requests, no sampling and no text.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from glassformer.checkpoint import raw_blocks, read_config
from glassformer.errors import CheckpointError, MemoryLimitError, ShapeError
from glassformer.generate.quantize import FORMATS, Raw, Weight, stored, weight
from glassformer.kernels import infer_abi
from glassformer.model.config import Config, FeedForward
from glassformer.model.positions import RotaryTable
from glassformer.model.transformer import rotary_kinds

if TYPE_CHECKING:
    from glassformer.model.transformer import Transformer

# Tokens of one native call: enough rows for every weight read to be used often, few enough that
# their activations stay in cache.
ROWS = 256
_ACTIVATION = {"gelu": 0, "gelu_tanh": 1, "silu": 2, "relu": 3, "relu2": 4}  # as the library numbers them
_WIDEST_HEAD = 512
# The cache's capacity is a multiple of the positions that the score kernel takes at a time.
BLOCKED = 32
# What `gf_forward` returns when its buffers cannot be had.
_NO_MEMORY = 4


def refusal(config: Config) -> str | None:
    """What of a design the native forward does not compute, as the end of a sentence; None when it does all."""
    layer = config.alike
    if layer is None or not config.all_softmax:
        return "layers that differ, or are made of other parts than attention and a dense feed-forward"
    a = config.attention(0)
    n, f = config.norm, config.feed_forward(0)
    assert isinstance(f, FeedForward)
    reasons = {
        "norms that are shared or stand after the parts alone": layer.norms not in ("before", "both"),
        "positions that turn by the text's length": config.turns_by_length,
        "norms inside feed-forward parts": f.out_norm is not None,
        "cut or shifted neurons": f.clamp is not None or f.linear_shift != 0,
        "a layer before the final norm": config.head is not None,
        "fixed vectors of positions": config.sinusoids is not None,
        "scaled residuals": layer.residual_scale is not None or layer.averaged is not None or layer.scalar,
        "embeddings of tokens in every layer": layer.embedding is not None,
        "scaled feed-forward parts": isinstance(f, FeedForward) and (f.pre_scale, f.out_scale) != (1, 1),
        "norms without weights or with other biases": not n.weight or n.biased != (n.kind == "layer"),
        "more than two kinds of rotary positions": len(rotary_kinds(config)) > 2,
        "gates, sinks and other forms of attention": a.plain != a,
        "outputs with a bias, a scale or no norm": config.unembed_bias
        or config.logit_scale is not None
        or not config.final_norm
        or config.embedding_norm
        or config.d_embed is not None,
        f"the activation {f.activation}": f.activation not in _ACTIVATION,
        f"heads of {a.d_head} dimensions (up to {_WIDEST_HEAD})": a.d_head > _WIDEST_HEAD,
    }
    return next((reason for reason, there in reasons.items() if there), None)


class NativeModel:
    """A model ready for fast inference on this machine's processor.

    Args:
        config: the design.
        weights: native checkpoint keys -> `Weight` for matrices and float tensors for vectors; a float
            matrix is put into `precision`.
        precision: "float32", "bfloat16", "int8" or "int4", for matrices that come as float tensors.
        slots: sequences that can be held at once.
        capacity: tokens per sequence; the model's context by default.
        cache: "float32" or "bfloat16" keys and values.
        exact: 8- and 4-bit blocks meet float32 activations; False rounds those to 8 bits, which is quicker.
        threads: torch.get_num_threads() by default, asked at every call.
        lib: the native library, where a test wants another than the machine's best.

    Raises:
        NativeUnavailableError: when the library cannot be had.
        CheckpointError: for a missing tensor. MemoryLimitError: when the cache cannot be had.
    """

    def __init__(
        self,
        config: Config,
        weights: Mapping[str, Weight | Tensor],
        *,
        precision: str = "float32",
        slots: int = 1,
        capacity: int | None = None,
        cache: str = "float32",
        exact: bool = False,
        threads: int | None = None,
        lib: ctypes.CDLL | None = None,
    ) -> None:
        self._lib = lib if lib is not None else infer_abi.library()
        self.config, self.slots, self.threads = config, slots, threads
        self.precision = precision
        self.capacity = config.context if capacity is None else capacity
        if slots < 1 or self.capacity < 1:
            raise ShapeError(f"A fast model needs at least one slot of one token; got {slots} of {self.capacity}.")
        if config.learned_positions and self.capacity > config.context:
            raise ShapeError(f"This model has {config.context} trained positions; {self.capacity} were asked for.")
        if (reason := refusal(config)) is not None:
            raise ShapeError(f"The native forward does not compute {reason}.")
        self.cache_dtype = cache
        self.exact = exact
        self.notes: dict[str, str] = {}
        self.weight_bytes = 0
        self._weights = weights
        self._keep: list[Packed | Tensor] = []  # what the library points into
        self._handle = self._create()
        self._weights = {}

    @classmethod
    def from_transformer(cls, transformer: Transformer, precision: str = "float32", **options: Any) -> NativeModel:
        """The model of a `Transformer`'s weights, put into `precision`; options as for the class."""
        names = dict(transformer.named_parameters())
        options.setdefault("cache", "float32" if precision == "float32" else "bfloat16")
        return cls(transformer.config, names, precision=precision, **options)

    @classmethod
    def from_gguf(cls, path: str | Path, *, exact: bool = False, **options: Any) -> NativeModel:
        """The model of a GGUF file's own 4- and 8-bit blocks, which are never made float32 copies.

        With `exact` they meet float32 activations as the float32 numbers they stand for: the same answers as the
        dequantised file in float32, from a sixth of the memory. Otherwise activations are rounded to 8 bits.
        """
        config, raw = read_config(path), raw_blocks(path)
        names = _Stored(raw, exact)
        options.setdefault("cache", "float32" if exact else "bfloat16")
        model = cls(config, names, precision="float32" if exact else "int8", exact=exact, **options)
        if not exact:
            model.precision = names.kinds()
        return model

    # Use

    def forward(
        self, tokens: Sequence[int], slots: Sequence[int], positions: Sequence[int], out: Sequence[int] | None = None
    ) -> Tensor:
        """Let tokens enter, each at its slot and position; float32 logits (len(out), vocab) after those in `out`.

        Args:
            tokens, slots, positions: of the same length. A slot's tokens come in rising positions without gaps,
                counting those of earlier calls; a position given again is overwritten.
            out: which of the tokens' logits are wanted, rising; None for all.

        Raises:
            ShapeError: for positions beyond the capacity, unknown slots or tokens.
        """
        out = range(len(tokens)) if out is None else out
        if not len(tokens) == len(slots) == len(positions):
            raise ShapeError(f"{len(tokens)} tokens, {len(slots)} slots and {len(positions)} positions do not match.")
        if any(a >= b for a, b in pairwise(out)) or (len(out) and not 0 <= out[0] <= out[-1] < len(tokens)):
            raise ShapeError(f"Logits were asked of tokens {list(out)} of {len(tokens)}; name them in rising order.")
        logits = torch.empty(len(out), self.config.vocab_size)
        done = 0
        for at in range(0, len(tokens), ROWS):
            end = min(at + ROWS, len(tokens))
            wanted: list[int] = []
            while done + len(wanted) < len(out) and out[done + len(wanted)] < end:
                wanted.append(out[done + len(wanted)] - at)
            self._call(tokens[at:end], slots[at:end], positions[at:end], wanted, logits[done:])
            done += len(wanted)
        return logits

    def prefill(self, tokens: Sequence[int], slot: int = 0, start: int = 0) -> Tensor:
        """Let a text enter a slot from position `start` on; logits (vocab,) of the token after it."""
        if not len(tokens):
            raise ShapeError("A prefill needs at least one token.")
        n = len(tokens)
        return self.forward(tokens, [slot] * n, range(start, start + n), [n - 1])[0]

    def decode(self, tokens: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Tensor:
        """One more token of each of several slots; logits (batch, vocab)."""
        return self.forward(tokens, slots, positions)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Slot `target` begins with the first `length` tokens of slot `source`."""
        if not (0 <= source < self.slots and 0 <= target < self.slots and 0 <= length <= self.capacity):
            raise ShapeError(f"Cannot copy {length} tokens from slot {source} to {target} of {self.slots} slots.")
        if source != target and length:
            self._lib.gf_copy(self._handle, source, target, length)

    def bytes_per_token(self, position: int = 0, batch: int = 1) -> int:
        """Bytes of weights and cached keys and values one decode step of `batch` sequences reads."""
        a = self.config.attention(0)
        element = 2 if self.cache_dtype == "bfloat16" else 4
        seen = 0
        for i in range(self.config.n_layers):
            window = self.config.window(i)
            seen += position + 1 if window is None else min(window, position + 1)
        return self.weight_bytes + batch * seen * 2 * a.n_kv_heads * a.d_head * element

    @property
    def instructions(self) -> str:
        """The instruction set the kernels use, in words."""
        return infer_abi.instructions(self._lib)

    # Construction

    def _create(self) -> int:
        c, a, f = self.config, self.config.attention(0), self.config.feed_forward(0)
        shape = infer_abi.InferShape(
            vocab=c.vocab_size,
            d_model=c.d_model,
            n_layers=c.n_layers,
            n_heads=a.n_heads,
            n_kv_heads=a.n_kv_heads,
            d_head=a.d_head,
            d_ff=f.d_ff,
            rotary=a.rotary_dims,
            activation=_ACTIVATION[f.activation],
            layer_norm=c.norm.kind == "layer",
            parallel=c.layers[0].parallel,
            slots=self.slots,
            capacity=-(-self.capacity // BLOCKED) * BLOCKED,
            bf16_cache=self.cache_dtype == "bfloat16",
            rows=ROWS,
            narrow=not self.exact and self.precision != "float32",
            eps=c.norm.eps,
            score_scale=a.score_scale,
            score_softcap=a.softcap or 0.0,
            logit_softcap=c.logit_softcap or 0.0,
            embedding_scale=c.embedding_scale or 0.0,
        )
        parts = infer_abi.ModelWeights(embed=self._matrix("embed.weight", read=c.tied), final_norm=self._norm("final"))
        parts.unembed = parts.embed if c.tied else self._matrix("unembed.weight")
        if c.learned_positions:
            parts.pos_embed = self._matrix("pos_embed.weight", read=False)
        kinds = rotary_kinds(c)
        if kinds:
            steps = torch.arange(shape.capacity)[None]
            # one table of angles for each of the (at most two) ways in which layers rotate
            ways = [RotaryTable(r.dims(d_head), r.theta, r.scaling) for r, d_head in (kinds[0], kinds[-1])]
            tables = [way(steps, torch.float32) for way in ways]
            parts.cosines = self._vector(torch.stack([cos.flatten() for cos, _ in tables]))
            parts.sines = self._vector(torch.stack([sin.flatten() for _, sin in tables]))
        layers = (infer_abi.LayerWeights * c.n_layers)()
        for i in range(c.n_layers):
            layers[i] = self._layer(i)
        handle = self._lib.gf_create(ctypes.byref(shape), ctypes.byref(parts), layers)
        if not handle:
            raise MemoryLimitError(
                f"There is no memory for {self.slots} sequences of {self.capacity} tokens; ask for fewer or shorter."
            )
        self._finalizer = weakref.finalize(self, self._lib.gf_destroy, handle)
        return handle

    def _layer(self, i: int) -> infer_abi.LayerWeights:
        c, at = self.config, f"blocks.{i}."
        window = c.window(i)
        a = c.attention(i)
        table = 0 if a.rotary is None else rotary_kinds(c).index((a.rotary, a.d_head))
        layer = infer_abi.LayerWeights(window=window or 0, table=table)
        for name in ("q", "k", "v", "o"):
            setattr(layer, name, self._matrix(f"{at}attn.{name}.weight"))
        for name in ("gate", "up", "down") if c.feed_forward(i).gated else ("up", "down"):
            setattr(layer, name, self._matrix(f"{at}mlp.{name}.weight"))
        for name in c.layers[i].norm_names:
            setattr(layer, name, self._norm(at + name))
        if a.qk_norm:
            layer.q_norm, layer.k_norm = self._norm(f"{at}attn.q_norm"), self._norm(f"{at}attn.k_norm")
        return layer

    def _get(self, name: str) -> Weight | Tensor:
        if name not in self._weights:
            raise CheckpointError(f"The checkpoint lacks {name!r}, which its config asks for.")
        return self._weights[name]

    def _weight(self, name: str) -> Weight:
        value = self._get(name)
        if isinstance(value, Weight):
            return value
        if name == "pos_embed.weight":
            return weight(value, "float32")
        # The embedding rows and the logits suffer most from 4 bits; GGUF files keep them in 8 as well.
        outer = self.precision == "int4" and name in ("embed.weight", "unembed.weight")
        return weight(value, "int8" if outer else self.precision)

    def _matrix(self, name: str, read: bool = True) -> infer_abi.Matrix:
        w = self._weight(name)
        if w.note:
            self.notes[name] = w.note
        if read:
            self.weight_bytes += w.bytes
        bias = self._weights.get(name.removesuffix("weight") + "bias")
        packed = Packed(self._lib, w, self.threads)
        self._keep.append(packed)
        matrix = packed.matrix
        # float32 models meet float32 activations, whatever their weights lie in
        matrix.exact = self.exact or (self.precision == "float32" and w.format in ("F32", "BF16"))
        if bias is not None:
            matrix.bias = self._vector(_floats(bias), pad=32)
        return matrix

    def _norm(self, name: str) -> infer_abi.NormWeights:
        scale = _floats(self._get(name + ".weight"))
        if self.config.norm.one_plus:
            scale = 1.0 + scale
        bias = self._weights.get(name + ".bias")
        return infer_abi.NormWeights(self._vector(scale), None if bias is None else self._vector(_floats(bias)))

    def _vector(self, x: Tensor, pad: int = 1) -> int:
        x = x.detach().float().flatten()
        held = torch.zeros(-(-x.numel() // pad) * pad)
        held[: x.numel()] = x
        self._keep.append(held)
        return held.data_ptr()

    def _call(
        self, tokens: Sequence[int], slots: Sequence[int], positions: Sequence[int], out: Sequence[int], logits: Tensor
    ) -> None:
        arrays = [np.asarray(x, dtype=np.int32) for x in (tokens, slots, positions, out)]
        if len(positions) and not 0 <= int(arrays[2].min()) <= int(arrays[2].max()) < self.capacity:
            raise ShapeError(
                f"Position {int(arrays[2].max())} does not fit: this engine holds {self.capacity} tokens a sequence."
            )
        ids, rows, places, wanted = (x.ctypes.data for x in arrays)
        threads = self.threads or torch.get_num_threads()
        result = self._lib.gf_forward(
            self._handle, len(tokens), ids, rows, places, len(out), wanted, logits.data_ptr(), threads
        )
        if result == _NO_MEMORY:
            raise MemoryLimitError("There is no memory for this model's buffers; free some, or set fewer threads.")
        if result:
            raise ShapeError(
                f"The tokens do not fit: ids must be below {self.config.vocab_size} and slots below {self.slots}."
            )


class Packed:
    """A weight in the kernels' order, in memory of the library's own, freed with this object."""

    def __init__(self, lib: ctypes.CDLL, w: Weight, threads: int | None = None) -> None:
        kind = FORMATS[w.format]
        place = lib.gf_allocate(lib.gf_matrix_bytes(kind, w.rows, w.cols))
        if not place:
            raise MemoryLimitError(f"There is no memory for a weight of {w.rows} × {w.cols}.")
        weakref.finalize(self, lib.gf_free, place)
        data = w.data.contiguous()
        lib.gf_pack(kind, w.rows, w.cols, data.data_ptr(), place, threads or torch.get_num_threads())
        self.matrix = infer_abi.Matrix(kind, w.rows, w.cols, 0, place, None)


class _Stored(Mapping[str, Weight | Tensor]):
    """A GGUF's parameters, one at a time."""

    def __init__(self, raw: Mapping[str, Raw], exact: bool) -> None:
        self._raw, self._exact = raw, exact
        self._bytes: dict[str, int] = {}

    def __getitem__(self, name: str) -> Weight | Tensor:
        value = stored(self._raw[name], self._exact)
        if isinstance(value, Weight):
            self._bytes[value.format] = self._bytes.get(value.format, 0) + value.bytes
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._raw

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def kinds(self) -> str:
        """The formats met, the one with most bytes first: "Q4_1+Q8_0"."""
        return "+".join(sorted(self._bytes, key=lambda kind: -self._bytes[kind]))


def _floats(value: Weight | Tensor) -> Tensor:
    return value.to_float() if isinstance(value, Weight) else value.detach().float()
