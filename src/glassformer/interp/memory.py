"""What a piece of work will take, and whether it fits: asked before anything large is begun.

Knows shapes and bytes, and how to ask the system what is free. It runs no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from glassformer.errors import MemoryLimitError
from glassformer.model.choices import softmax_of
from glassformer.model.config import Config, Layer
from glassformer.model.sites import axis_sizes, kept_places, site_of
from glassformer.system import hardware

# Work below this size is not worth asking the system about.
SMALL = 64 << 20
# Share of the free memory that one answer may take; the rest is for what else the machine does.
SHARE = 0.9


def available(device: str = "cpu") -> int | None:
    """Bytes that can still be allocated, or None where the system does not say."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return hardware.available_memory()


def human(count: float) -> str:
    """Bytes for people: 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError


@dataclass(frozen=True)
class Cost:
    """What a piece of work takes.

    Attributes:
        what: the work, in words.
        arithmetic: how the bytes come about.
        bytes: memory it adds.
        available: what is free, or None where the system does not say.
    """

    what: str
    arithmetic: str
    bytes: int
    available: int | None

    @property
    def fits(self) -> bool:
        """Whether there is room, with some left for everything else."""
        return self.available is None or self.bytes <= SHARE * self.available

    def __str__(self) -> str:
        free = "" if self.available is None else f"; {human(self.available)} are free"
        return f"{self.what}: {self.arithmetic} = {human(self.bytes)}{free}"

    def require(self, advice: str) -> Cost:
        """Itself, or the refusal.

        Raises:
            MemoryLimitError: with the arithmetic and what to do instead.
        """
        if not self.fits:
            assert self.available is not None
            raise MemoryLimitError(
                f"{self.what} would take {self.arithmetic} = {human(self.bytes)} and {human(self.available)} are free; "
                f"{advice}."
            )
        return self


def numbers(what: str, shape: tuple[int, ...], itemsize: int, device: str = "cpu") -> Cost:
    """The cost of one tensor."""
    count = itemsize
    for size in shape:
        count *= size
    arithmetic = " × ".join(f"{size:,}" for size in shape if size != 1) or "1"
    free = available(device) if count >= SMALL else None
    return Cost(what, f"{arithmetic} numbers × {itemsize} bytes", count, free)


def basis_width(config: Config) -> int:
    """Numbers a trace keeps per token, averaged over layers: each part's basis and what it adds to the stream."""
    total = 0
    for i, layer in enumerate(config.layers):
        for place in kept_places(layer):
            name = f"blocks.{i}.{place}"
            sizes = axis_sizes(name, config)
            total += math.prod(sizes.get(axis, 1) for axis in site_of(name).axes)
    return -(-total // config.n_layers)


def _working(layer: Layer, d_model: int, tokens: int) -> int:
    """Numbers per token at the widest moment of a layer: the feed-forward's hidden numbers (both halves and their
    product), or queries, keys and values repeated for the fused kernel."""
    feed, mixer = layer.feed_forward, layer.mixer
    hidden = 0 if feed is None else (3 if feed.gated else 2) * feed.active_neurons
    mixing = 0 if mixer is None else 5 * mixer.out_size
    capped = 0
    attention = softmax_of(mixer)
    if attention is not None and (attention.softcap is not None or attention.sink or attention.alibi):
        capped = 3 * attention.n_heads * min(tokens, 256)
    return 3 * d_model + max(hidden, mixing) + capped


def graph_numbers(layer: Layer, d_model: int) -> int:
    """Numbers per token that the gradient's graph of a layer keeps."""
    mixing = 0 if layer.mixer is None else 4 * layer.mixer.out_size
    return 10 * d_model + mixing + (0 if layer.feed_forward is None else 4 * layer.feed_forward.active_neurons)


def estimate(config: Config, tokens: int, *, batch: int = 1, itemsize: int = 4, device: str = "cpu") -> Cost:
    """What a trace of `tokens` tokens keeps, and the largest thing its forward holds beside that."""
    width = basis_width(config)
    kept = batch * tokens * (config.n_layers * width + 2 * config.d_model) * itemsize
    work = batch * tokens * max(_working(layer, config.d_model, tokens) for layer in set(config.layers)) * itemsize
    texts = "" if batch == 1 else f"{batch} texts × "
    arithmetic = (
        f"{texts}{tokens:,} tokens × {config.n_layers} layers × {width:,} numbers × {itemsize} bytes, "
        f"and {human(work)} to work in"
    )
    total = kept + work
    return Cost("A trace", arithmetic, total, available(device) if total >= SMALL else None)
