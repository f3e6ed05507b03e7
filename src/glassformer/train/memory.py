"""How much memory a training step takes, from the design alone, and how many rows fit.

An estimate, on the safe side, checked against measured peaks in the benchmarks; it allocates nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from glassformer.count import count
from glassformer.errors import MemoryLimitError
from glassformer.model.config import Config
from glassformer.train.loss import chunk_rows
from glassformer.train.recipe import Recipe


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step.

    Attributes:
        weights: masters, working copies, gradients and optimiser state.
        row: activations kept for the gradient, for one row.
        logits: of one chunk, with what is derived from them.
    """

    weights: int
    row: int
    logits: int

    def total(self, rows: int) -> int:
        """With this many rows at once."""
        return self.weights + self.row * rows + self.logits


def estimate(recipe: Recipe, config: Config, compute: torch.dtype, shards: int = 1) -> StepMemory:
    """What one step needs, on one process of `shards` that share the weights."""
    counted = count(config)
    parameters = counted.parameters
    size = 2 if compute == torch.bfloat16 else 4
    state = counted.optimizer_bytes["muon" if recipe.optimizer.kind == "muon" else "adamw"]
    weights = 4 * parameters + 4 * parameters + state
    if size == 2:
        weights += 2 * 2 * parameters
    length = recipe.model.context
    a, f = config.attention, config.feed_forward
    inner, shared = a.n_heads * a.d_head, a.n_kv_heads * a.d_head
    # per token and layer: streams and norms (float32 inside), q k v before and after norm and rotation, feed-forward
    norms = config.d_model * (4 * size + 2 * 8)
    attention = (inner + shared) * ((4 * size + 8) if a.qk_norm else 3 * size) + (2 * inner + shared) * size
    feed = f.d_ff * size * (4 if f.gated else 3)
    layer = norms + attention + feed
    kept = config.n_layers * config.d_model * size + layer if recipe.loop.recompute else config.n_layers * layer
    rows = recipe.loop.loss_chunk or chunk_rows(config.vocab_size)
    logits = rows * config.vocab_size * 4 * 3
    if shards > 1:
        weights = weights // shards + 2 * size * parameters // max(1, config.n_layers)
    return StepMemory(weights, length * (kept + 2 * config.d_model * 4), logits)


def rows_that_fit(recipe: Recipe, config: Config, compute: torch.dtype, free: int, wanted: int, world: int = 1) -> int:
    """Rows at once within the recipe's share of the free memory, at most `wanted`.

    Raises:
        MemoryLimitError: when not even one row fits.
    """
    need = estimate(recipe, config, compute, world if recipe.loop.shard == "full" else 1)
    budget = int(free * recipe.loop.memory)
    if need.total(1) > budget:
        raise MemoryLimitError(
            f"One row of {recipe.model.context} tokens needs about {need.total(1) / 1e9:.1f} GB with weights and "
            f"optimiser, and {budget / 1e9:.1f} GB may be used (memory={recipe.loop.memory} of {free / 1e9:.1f} GB "
            "free); take a smaller model or context, or set recompute=true."
        )
    return max(1, min(wanted, (budget - need.weights - need.logits) // max(1, need.row)))
