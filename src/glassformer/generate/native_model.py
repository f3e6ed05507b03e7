"""`NativeModel`: a transformer's weights, packed for the native forward pass, and its key-value cache.

Tokens enter with the slot (sequence) and position they belong to; prefill, decode, batches of sequences at
different positions, and mixtures of them are one call, and a token's logits do not depend on what shares the call.
It computes what `model.Transformer` computes: to float32 rounding with float32 weights, and within each format's
own error otherwise. It knows no requests, no sampling and no text.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import weakref
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from glassformer.checkpoint import raw_blocks, read_config
from glassformer.errors import CheckpointError, MemoryLimitError, ShapeError
from glassformer.generate.native_layers import attention_settings, feed_settings, refusal, router_settings
from glassformer.generate.packed import Packed, StoredWeights, floats
from glassformer.generate.quantize import FORMATS, Weight, weight
from glassformer.kernels import infer_abi
from glassformer.kernels.variants import sources_digest
from glassformer.model.cache import token_bytes
from glassformer.model.choices import softmax_of
from glassformer.model.config import Attention, Config, Experts, FeedForward, Norm
from glassformer.model.parts.attention import length_scale
from glassformer.model.positions import RotaryTable, SinusoidTable
from glassformer.model.transformer import rotary_kinds

if TYPE_CHECKING:
    from glassformer.model.transformer import Transformer

# Tokens of one native call: enough rows for every weight read to be used often, few enough that
# their activations stay in cache.
ROWS = 256
# The cache's capacity is a multiple of the positions that the score kernel takes at a time.
BLOCKED = 32
# What `gf_forward` returns when its buffers cannot be had.
_NO_MEMORY = 4
# Small matrices that decide much: they lose nothing in any precision.
_WHOLE = ("router.weight", "shared_gate.weight")


class NativeModel:
    """A model ready for fast inference on this machine's processor.

    Args:
        config: the design.
        weights: native checkpoint keys -> `Weight` for matrices and float tensors for vectors; a float
            matrix is put into `precision`. Experts' matrices are read where they lie, so they must not change.
        precision: "float32", "bfloat16", "int8" or "int4", for matrices that come as float tensors.
        slots: sequences that can be held at once.
        capacity: tokens per sequence; the model's context by default.
        cache_bits: of a number of the keys and values: 32, 16, or 8 with one scale for each token and head; None is
            32 where weights are float32 and 16 otherwise.
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
        cache_bits: int | None = None,
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
        if (reason := refusal(config, self.capacity)) is not None:
            raise ShapeError(
                f"The fast engine does not compute {reason}; this model's text is generated through torch in float32 "
                "instead, several times slower."
            )
        self.exact = exact
        self.cache_bits = cache_bits or (32 if exact or precision == "float32" else 16)
        self.notes: dict[str, str] = {}
        self.weight_bytes = 0  # of what every token reads
        self._experts: list[tuple[Experts, int]] = []  # and of all experts' matrices
        self._weights = weights
        self._keep: list[Packed | Tensor] = []  # what the library points into
        self._handle = self._create()
        self._weights = {}

    @classmethod
    def from_transformer(cls, transformer: Transformer, precision: str = "float32", **options: Any) -> NativeModel:
        """The model of a `Transformer`'s weights, put into `precision`; options as for the class."""
        names = dict(transformer.named_parameters())
        return cls(transformer.config, names, precision=precision, **options)

    @classmethod
    def from_gguf(cls, path: str | Path, *, exact: bool = False, **options: Any) -> NativeModel:
        """The model of a GGUF file's own 4- and 8-bit blocks, which are never made float32 copies.

        With `exact` they meet float32 activations as the float32 numbers they stand for: the same answers as the
        dequantised file in float32, from a sixth of the memory. Otherwise activations are rounded to 8 bits.
        """
        config, raw = read_config(path), raw_blocks(path)
        names = StoredWeights(raw, exact)
        model = cls(config, names, precision="float32" if exact else "int8", exact=exact, **options)
        if not exact:
            model.precision = names.kinds()
        return model

    def steered(self, added: Mapping[int, Tensor], capacity: int | None = None) -> NativeModel:
        """This model with a vector (d_model,) added to the stream as it leaves each of some layers: the same packed
        weights, and a cache of its own for one sequence of at most `capacity` tokens."""
        view = copy.copy(self)
        shape, parts, layers = self._made
        view.slots, view.capacity = 1, min(capacity or self.capacity, self.capacity)
        changed = (infer_abi.LayerWeights * len(layers)).from_buffer_copy(layers)
        view._keep = [*self._keep]
        for layer, vector in added.items():
            changed[layer].after = view._vector(vector)
        smaller = infer_abi.InferShape.from_buffer_copy(shape)
        smaller.slots, smaller.capacity = 1, -(-view.capacity // BLOCKED) * BLOCKED
        view._handle = view._opened(smaller, parts, changed)
        return view

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
        self._check_prefix(source, target, length)
        if source != target and length:
            self._lib.gf_copy(self._handle, source, target, length)

    def _check_prefix(self, source: int, target: int, length: int) -> None:
        if not (0 <= source < self.slots and 0 <= target < self.slots and 0 <= length <= self.capacity):
            raise ShapeError(f"Cannot copy {length} tokens from slot {source} to {target} of {self.slots} slots.")

    def prefix(self, slot: int, length: int) -> bytes:
        """What the first `length` tokens left in a slot; `put_prefix` gives it to another run of the same model."""
        self._check_prefix(slot, slot, length)
        size = self._lib.gf_prefix(self._handle, slot, length, None, None)
        kept = ctypes.create_string_buffer(size)
        self._lib.gf_prefix(self._handle, slot, length, kept, None)
        return kept.raw

    def put_prefix(self, slot: int, length: int, kept: bytes) -> None:
        """A slot begins with `length` tokens that `prefix` gave.

        Raises:
            ShapeError: it is not of their size.
        """
        self._check_prefix(slot, slot, length)
        if len(kept) != (size := self._lib.gf_prefix(self._handle, slot, length, None, None)):
            raise ShapeError(f"{length} tokens leave {size} bytes in a slot of this model; {len(kept)} were given.")
        self._lib.gf_prefix(self._handle, slot, length, None, kept)

    @functools.cached_property
    def kind(self) -> str:
        """What must be the same for a prefix to mean the same, the model's weights aside."""
        shape = "exact" if self.exact else self.precision
        return f"{sources_digest()} {self.instructions} {shape} {self.cache_bits}"

    def bytes_per_token(self, position: int = 0, batch: int = 1) -> int:
        """Bytes of weights and cached keys and values one decode step of `batch` sequences reads."""
        found = float(self.weight_bytes)
        for layer in self.config.layers:
            a = softmax_of(layer.mixer)
            found += 0 if a is None else batch * token_bytes(a, self.cache_bits) * a.seen(position)
        for e, size in self._experts:  # those that anybody chose, if all are chosen as often
            found += size * (1 - (1 - e.n_active / e.n_experts) ** batch)
        return round(found)

    @property
    def instructions(self) -> str:
        """The instruction set the kernels use, in words."""
        return infer_abi.instructions(self._lib)

    # Construction

    def _create(self) -> int:
        c = self.config
        shape = infer_abi.InferShape(
            vocab=c.vocab_size,
            d_model=c.d_model,
            n_layers=c.n_layers,
            layer_norm=c.norm.kind == "layer",
            slots=self.slots,
            capacity=-(-self.capacity // BLOCKED) * BLOCKED,
            cache_bits=self.cache_bits,
            rows=ROWS,
            narrow=not self.exact and self.precision != "float32",
            eps=c.norm.eps,
            logit_scale=c.logit_scale or 1.0,
            logit_softcap=c.logit_softcap or 0.0,
            embedding_scale=c.embedding_scale or 0.0,
        )
        parts = infer_abi.ModelWeights(embed=self._matrix("embed.weight", read=c.tied))
        parts.unembed = parts.embed if c.tied else self._matrix("unembed.weight")
        if c.unembed_bias:
            parts.unembed.bias = self._vector(floats(self._get("unembed_bias")), pad=32)
        if c.final_norm:
            parts.final_norm = self._norm("final", c.norm, c.d_model)
        if c.embedding_norm:
            parts.embed_norm = self._norm("embed_norm", c.norm, c.d_model)
        steps = torch.arange(shape.capacity)
        if c.learned_positions:
            parts.pos_embed = self._matrix("pos_embed.weight", read=False)
        elif c.sinusoids is not None:
            fixed = SinusoidTable(c.d_model, c.sinusoids)(steps)
            parts.pos_embed = self._pack(weight(fixed, "float32"))
        angles = [RotaryTable(r.dims(d_head), r.theta, r.scaling) for r, d_head in rotary_kinds(c)]
        short = torch.ones(1, dtype=torch.long)  # no text here is long enough to turn otherwise
        tables = [tuple(self._vector(x) for x in table(steps[None], torch.float32, short)) for table in angles]
        layers = (infer_abi.LayerWeights * c.n_layers)()
        for i in range(c.n_layers):
            layers[i] = self._layer(i, tables, steps)
        return self._opened(shape, parts, layers)

    def _opened(
        self, shape: infer_abi.InferShape, parts: infer_abi.ModelWeights, layers: ctypes.Array[infer_abi.LayerWeights]
    ) -> int:
        self._made = shape, parts, layers
        handle = self._lib.gf_create(ctypes.byref(shape), ctypes.byref(parts), layers)
        if not handle:
            raise MemoryLimitError(
                f"There is no memory for {self.slots} sequences of {self.capacity} tokens; ask for fewer or shorter."
            )
        self._finalizer = weakref.finalize(self, self._lib.gf_destroy, handle)
        return handle

    def _layer(self, i: int, tables: list[tuple[int, ...]], steps: Tensor) -> infer_abi.LayerWeights:
        c, choice, at = self.config, self.config.layers[i], f"blocks.{i}."
        layer = infer_abi.LayerWeights(parallel=choice.parallel, leaving=1.0, source=i)
        layer.keep[:] = [choice.stream_scale(part) for part in (1, 2)]
        layer.scale[:] = [choice.part_scale(part) for part in (1, 2)]
        if choice.scalar:
            layer.leaving = float(floats(self._get(at + "scalar")))
        for name in choice.norm_names:
            setattr(layer, name, self._norm(at + name, c.norm, c.d_model))
        if choice.norms == "shared":
            layer.ln2 = layer.ln1
        if isinstance(choice.mixer, Attention):
            self._attention(layer, choice.mixer, i, at + "attn.", steps)
            if choice.mixer.rotary is not None:
                kind = rotary_kinds(c).index((choice.mixer.rotary, choice.mixer.d_head))
                layer.cosines, layer.sines = tables[kind]
        feed = choice.feed_forward
        if isinstance(feed, FeedForward):
            layer.feed = self._feed(feed, at + "mlp.")
        elif isinstance(feed, Experts):
            self._mixture(layer, feed, at + "mlp.")
        return layer

    def _attention(self, layer: infer_abi.LayerWeights, a: Attention, number: int, at: str, steps: Tensor) -> None:
        norm = self.config.norm
        attention_settings(layer, a, norm, number)
        own = a.keys_from is None
        kept = ("q", *(("k",) if own else ()), *(("v",) if own and not a.values_are_keys else ()), "o")
        for name in kept:
            setattr(layer, name, self._matrix(f"{at}{name}.weight"))
        if a.gate is not None:
            layer.z_gate = self._matrix(f"{at}gate.weight")
            if a.gate_bias:
                bias = floats(self._get(f"{at}gate_bias"))
                bias = bias.repeat_interleave(a.value_size) if a.gate == "element" else bias
                layer.z_gate.bias = self._vector(bias, pad=32)
        if a.qk_norm is not None:
            whole = a.qk_norm == "whole"
            layer.q_norm = self._norm(f"{at}q_norm", a.norm_of(norm), a.d_head * (a.n_heads if whole else 1), a.n_heads)
            if own:
                width = a.d_head * (a.n_kv_heads if whole else 1)
                layer.k_norm = self._norm(f"{at}k_norm", a.norm_of(norm), width, a.n_kv_heads)
        if a.value_norm:
            layer.v_norm = infer_abi.NormWeights(self._vector(torch.ones(a.value_size)), None)
        if a.sink:
            layer.sinks = self._vector(floats(self._get(f"{at}sink")))
        if a.alibi:
            layer.slopes = self._vector(torch.tensor(a.alibi))
        if a.length_scale is not None:
            layer.query_scale = self._vector(length_scale(a, steps))

    def _feed(self, f: FeedForward, at: str) -> infer_abi.FeedWeights:
        found = feed_settings(f)
        for name in ("gate", "up", "down") if f.gated else ("up", "down"):
            setattr(found, name, self._matrix(f"{at}{name}.weight"))
        return found

    def _mixture(self, layer: infer_abi.LayerWeights, e: Experts, at: str) -> None:
        layer.expert, layer.router = feed_settings(e), router_settings(e)
        layer.router.scores = self._matrix(f"{at}router.weight")
        for name, key in (("correction", e.correction), ("scales", e.expert_scales)):
            if key:
                setattr(layer.router, name, self._vector(floats(self._get(at + name))))
        for name in ("gate", "up", "down") if e.gated else ("up", "down"):
            setattr(layer.expert, name, self._stack(f"{at}experts.{name}", e))
        if e.shared is not None:
            layer.feed = self._feed(e.shared, at + "shared.")
            if e.shared_gate:
                layer.router.beside = self._matrix(f"{at}shared_gate.weight")

    def _get(self, name: str) -> Weight | Tensor:
        if name not in self._weights:
            raise CheckpointError(f"The checkpoint lacks {name!r}, which its config asks for.")
        return self._weights[name]

    def _weight(self, name: str) -> Weight:
        value = self._get(name)
        if isinstance(value, Weight):
            return value
        if name == "pos_embed.weight" or name.endswith(_WHOLE):
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
        matrix = self._pack(w, exact=name.endswith(_WHOLE))
        bias = self._weights.get(name.removesuffix("weight") + "bias")
        if bias is not None:
            matrix.bias = self._vector(floats(bias), pad=32)
        return matrix

    def _pack(self, w: Weight, exact: bool = False) -> infer_abi.Matrix:
        packed = Packed(self._lib, w, self.threads)
        self._keep.append(packed)
        packed.matrix.exact = exact or self._meets_floats(w)
        return packed.matrix

    def _meets_floats(self, w: Weight) -> bool:
        """Whether activations are float32: always in a float32 model, whatever its weights lie in."""
        return self.exact or (self.precision == "float32" and w.format in ("F32", "BF16"))

    def _stack(self, name: str, e: Experts) -> infer_abi.Matrix:
        """All experts' matrices where they lie, one below the other: in the file's own blocks where it is mapped."""
        value = self._get(name + ".weight")
        w = value if isinstance(value, Weight) else weight(value.flatten(0, 1), self.precision)
        if w.note:
            self.notes[name + ".weight"] = w.note
        data = w.data.contiguous()
        self._keep.append(data)
        self._experts.append((e, w.bytes))
        matrix = infer_abi.Matrix(FORMATS[w.format], w.rows, w.cols, self._meets_floats(w), data.data_ptr(), None, True)
        if e.bias:
            bias = floats(self._get(name + ".bias"))
            padded = torch.zeros(e.n_experts, -(-bias.shape[1] // 32) * 32)
            padded[:, : bias.shape[1]] = bias
            matrix.bias = self._vector(padded)
        return matrix

    def _norm(self, name: str, norm: Norm, width: int, heads: int = 1) -> infer_abi.NormWeights:
        if not norm.weight:
            return infer_abi.NormWeights(self._vector(torch.ones(width * heads)), None)
        scale = floats(self._get(name + ".weight"))
        if norm.one_plus:
            scale = 1.0 + scale
        bias = self._weights.get(name + ".bias")
        return infer_abi.NormWeights(self._vector(scale), None if bias is None else self._vector(floats(bias)))

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
