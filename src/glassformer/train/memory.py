"""How much memory a training step takes, from the design alone, and how many rows fit.

An estimate, on the safe side, checked against measured peaks in the benchmarks; it allocates nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from glassformer.count import count
from glassformer.errors import MemoryLimitError
from glassformer.model.choices import (
    Attention,
    Component,
    Experts,
    GatedDelta,
    GatedLinearRecurrence,
    LinearAttention,
    MatrixMemory,
    SelectiveStateSpace,
    ShortConvolution,
    StateSpace,
    members,
)
from glassformer.model.config import Config, Layer
from glassformer.model.parts.state_space import CHUNK
from glassformer.train.loss import STRIP_BYTES, chunk_rows
from glassformer.train.recipe import AdapterSpec, Recipe

LIBRARIES = 80 << 20
"""What torch takes for itself once it computes, beside what its import takes."""
HEAP = 1.3
"""Blocks that are run as they are written make and forget many tensors; between those kept, holes stay."""
RECOMPUTED = 4.7
"""Bytes over those of a block's input that each block costs where it is computed again (measured)."""
FROZEN = ("query", "key", "value", "output", "up", "down", "gate")
"""Lines of a count whose matrices an adapter stands beside."""
NATIVE_STORE, NATIVE_BLOCK = 192 << 20, 256
"""What the native step stores of a batch before it makes gradients of weights, and rows that it computes at once."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step.

    Attributes:
        weights: masters, working copies, gradients and optimiser state.
        row: activations kept for the gradient, for one row.
        logits: of one chunk, with what is derived from them, and the unembedding's gradient.
        update: what the optimiser makes on the way, when activations and logits are gone.
        fixed: whatever the design is.
        most: activations never take more.
    """

    weights: int
    row: int
    logits: int
    update: int = 0
    fixed: int = LIBRARIES
    most: int | None = None

    def total(self, rows: int) -> int:
        """With this many rows at once."""
        kept = self.row * rows if self.most is None else min(self.row * rows, self.most)
        return self.fixed + self.weights + max(kept + self.logits, self.update)

    def rows(self, budget: int, wanted: int) -> int:
        """Rows at once within a budget, at least 1 and at most `wanted`."""
        if self.total(wanted) <= budget:
            return wanted
        return max(1, min(wanted, (budget - self.fixed - self.weights - self.logits) // max(1, self.row)))


def estimate(
    recipe: Recipe, config: Config, compute: torch.dtype, shards: int = 1, native: bool = False, threads: int = 0
) -> StepMemory:
    """What one step needs, on one process of `shards` that share the weights; `native`: in C++, on `threads`."""
    counted = count(config)
    parameters = counted.parameters
    size = 2 if compute == torch.bfloat16 else 4
    state = counted.optimizer_bytes["muon" if recipe.optimizer.kind == "muon" else "adamw"]
    weights = 4 * parameters + 4 * parameters + state
    if size == 2:
        weights += 2 * 2 * parameters
    alone = recipe.adapter.adapter != "none"
    if alone:
        weights = _frozen(recipe, config, size)
    if native:
        return _native(recipe, config, size, threads or torch.get_num_threads())
    length = recipe.model.context
    # per token and layer: streams and norms (float32 inside), q k v before and after norm and rotation, feed-forward
    layers = [_layer(config.d_model, layer, size) for layer in config.layers]
    layer = sum(layers) / len(layers)
    if alone:
        layer += _beside(recipe, config, size) / config.n_layers
    if config.norm.kind == "rms":
        layer *= HEAP
    kept = int(config.n_layers * layer)
    if recipe.loop.recompute:
        # a block's input, and as measured on a processor's heap nearly four holes of that size; one block being made
        kept = int(config.n_layers * config.d_model * size * RECOMPUTED + 1.2 * layer)
    tokens = max(1, recipe.schedule.batch) * length
    rows = min(recipe.loop.loss_chunk or chunk_rows(tokens, config.vocab_size, config.d_model, size), tokens)
    logits = rows * config.vocab_size * size + 3 * min(STRIP_BYTES, rows * config.vocab_size * 4)
    # its gradient: the sum in float32, one chunk's share, and rounded; tied or not, the embedding has one as well
    if not alone:
        logits += config.vocab_size * config.d_model * (4 + 2 * size)
    update = 0
    if recipe.optimizer.kind == "muon" and not alone:
        # all matrices of one shape at once: direction, orthogonal so far, next, and their products
        stack = config.n_layers * config.d_model * max(_widest(layer) for layer in config.layers)
        update = stack * (4 + 4 * size)
    if shards > 1:
        weights = weights // shards + 2 * size * parameters // max(1, config.n_layers)
    return StepMemory(weights, length * (kept + 2 * config.d_model * 4), logits, update)


def _beside(recipe: Recipe, config: Config, size: int) -> int:
    """Bytes a token that the backward pass needs of an adapter: what stands between its two matrices, and with DoRA
    each product before its rows are scaled."""
    spec, total = recipe.adapter, 0
    for key, component in config.components().items():
        if not _adapted(spec, key, component):
            continue
        if len(component.shape) == 3:
            feed: Any = config.layers[int(key.split(".")[1])].feed_forward
            total += spec.rank * feed.n_active
        else:
            total += spec.rank + (component.shape[0] if spec.adapter == "dora" else 0)
    return total * size


def _packable(key: str, component: Component) -> bool:
    """Whether a matrix is multiplied whole, or is a stack of experts' such."""
    return key.startswith("blocks.") and len(component.shape) > 1 and component.counted in FROZEN


def _adapted(spec: AdapterSpec, key: str, component: Component) -> bool:
    """Whether an adapter stands beside a matrix, as far as the design says."""
    if spec.targets:
        return (_packable(key, component) or component.counted == "router") and spec.names(key)
    return _packable(key, component) and len(component.shape) == 2


def _frozen(recipe: Recipe, config: Config, size: int) -> int:
    """Bytes of a frozen model and of an adapter with its gradients and AdamW's state; every matrix of a block that is
    multiplied whole may be in blocks of fewer bits (their scales come to half a bit a number)."""
    each = {"float": float(size), "q8_0": 8.5 / 8, "q4_0": 4.5 / 8}[recipe.adapter.base]
    total, widest = 0.0, 0
    for key, component in config.components().items():
        count, packs = math.prod(component.shape), _packable(key, component)
        total += count * (each if packs else size)
        if packs:
            widest = max(widest, math.prod(component.shape[-2:]))
        if _adapted(recipe.adapter, key, component):
            *experts, d_out, d_in = component.shape
            trained = recipe.adapter.rank * (d_out + d_in) + (d_out if recipe.adapter.adapter == "dora" else 0)
            total += math.prod(experts) * trained * (16 + (4 if size == 2 else 0))
    # one matrix unpacked, on the way there in float32 twice
    return int(total) + (0 if recipe.adapter.base == "float" else widest * (8 + size))


def _layer(d_model: int, layer: Layer, size: int) -> int:
    """Bytes a token that the backward pass needs of one layer."""
    total = d_model * (4 * size + 2 * 8)
    f = layer.feed_forward
    for a in () if layer.mixer is None else members(layer.mixer):
        total += _mixing(a, size)
    if f is not None:
        total += f.active_neurons * size * (4 if f.gated else 3)
    if isinstance(f, Experts):
        # what each chosen expert read and gave, and the router's scores in float32
        total += 2 * f.n_active * d_model * size + 4 * f.n_experts * 4
    return total


def _mixing(a: object, size: int) -> int:
    """Bytes a token that the backward pass needs of a mixer."""
    total = 0
    if isinstance(a, Attention):
        inner, shared = a.n_heads * a.d_head, a.n_kv_heads * a.d_head
        total += (inner + shared) * ((4 * size + 8) if a.qk_norm else 3 * size) + (2 * inner + shared) * size
        total += 4 * (inner - shared) * size  # keys and values once for every query head, heads before tokens
    elif isinstance(a, GatedDelta):
        total += a.out_size * 8 * size + 3 * sum(a.widths) * size + a.n_heads * CHUNK * 4 * 6
    elif isinstance(a, StateSpace):
        # gate, channels before and after the convolution, the grid of a chunk in float32, what is read and normed
        total += a.out_size * 8 * size + 3 * sum(a.widths) * size + a.n_heads * CHUNK * 4 * 3
    elif isinstance(a, SelectiveStateSpace):
        # channels around the convolution, gate and time steps; states, decays and what enters, twice where stacked
        total += a.width * (8 * size + 3 * 4) + 5 * a.width * a.d_state * 4
    elif isinstance(a, LinearAttention):
        # gate, queries, keys and values around SiLU, the grid of a chunk in float32, what is read and normed
        total += a.out_size * 14 * size + a.n_heads * CHUNK * 4 * 3
    elif isinstance(a, MatrixMemory):
        total += a.out_size * 8 * size + 4 * a.n_heads * a.d_key * size + a.n_heads * CHUNK * 4 * 5
    elif isinstance(a, GatedLinearRecurrence):
        total += a.width * (8 * size + 6 * 4) + 5 * a.width * 4
    elif isinstance(a, ShortConvolution):
        total += 7 * a.width * size
    return total


def _widest(layer: Layer) -> int:
    """Rows of the largest stack of matrices that an update takes at once."""
    f = layer.feed_forward
    feed = 0 if f is None else (2 if f.gated else 1) * f.neurons
    return max(feed, 4 * layer.mixer.out_size if layer.mixer is not None else 0)


def _native(recipe: Recipe, config: Config, size: int, threads: int) -> StepMemory:
    """Of the native step: the weights packed for both directions, a store with an upper bound, a block a thread."""
    parameters = count(config).parameters
    weights = (4 + 4 + 8 + 2 * size) * parameters + (2 * 2 * parameters if size == 2 else 0)
    a, f = config.attention(0), config.feed_forward(0)
    inner, shared = a.n_heads * a.d_head, a.n_kv_heads * a.d_head
    wide = (2 if f.gated else 1) * f.d_ff
    length, outs = recipe.model.context, inner + 2 * shared
    a_layer = (outs + config.d_model) + (config.d_model + inner) + (wide + config.d_model) + (config.d_model + f.d_ff)
    stored = config.d_model * 4 + (config.n_layers * a_layer + config.vocab_size + config.d_model) * size
    block = max(NATIVE_BLOCK, length)
    kept = 2 * config.d_model * 4 + (outs + 2 * f.d_ff + (a.n_heads * length if length <= 128 else 0)) * size
    scratch = threads * block * (config.n_layers * kept + config.vocab_size * (4 + size))
    return StepMemory(weights, length * stored, scratch, most=max(NATIVE_STORE, 4 * block * stored))


def rows_that_fit(
    recipe: Recipe, config: Config, compute: torch.dtype, free: int, wanted: int, world: int = 1, native: bool = False
) -> int:
    """Rows at once within the recipe's share of the free memory, at most `wanted`.

    Raises:
        MemoryLimitError: when not even one row fits.
    """
    need = estimate(recipe, config, compute, world if recipe.loop.shard == "full" else 1, native)
    budget = int(free * recipe.loop.memory)
    if need.total(1) > budget:
        raise MemoryLimitError(
            f"One row of {recipe.model.context} tokens needs about {need.total(1) / 1e9:.1f} GB with weights and "
            f"optimiser, and {budget / 1e9:.1f} GB may be used (memory={recipe.loop.memory} of {free / 1e9:.1f} GB "
            "free); take a smaller model or context, or set recompute=true."
        )
    return need.rows(budget, wanted)
