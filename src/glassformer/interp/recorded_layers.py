"""What a traced forward kept, and the parts of the model that ran: what each reads, whose keys it meets, how it scales.

It knows how the numbers of one forward depend on each other, and computes none of them: `recording` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

from jaxtyping import Bool, Int
from torch import Tensor

from glassformer.errors import UnsupportedError
from glassformer.interp.taps import Bound
from glassformer.model import Config, Transformer
from glassformer.model.attention import Visible
from glassformer.model.parts.attention import AttentionPart
from glassformer.model.parts.block import Block, MixerPart
from glassformer.model.parts.channels import ChannelsPart
from glassformer.model.parts.gated_delta import GatedDeltaPart
from glassformer.model.parts.linear_attention import LinearAttentionPart
from glassformer.model.parts.matrix_memory import MatrixMemoryPart
from glassformer.model.parts.parallel import ParallelPart
from glassformer.model.parts.state_space import StateSpacePart
from glassformer.model.site_table import SITES
from glassformer.model.sites import Where, kept_places, site_of

GRIDS = tuple(site.name for site in SITES if site.axes[-1] == "key" or site.name == "attn.sink")


def basis_sites(config: Config) -> list[str]:
    """The sites a trace keeps, in the order the forward reaches them."""
    found = ["embed"] + (["pos_embed"] if config.adds_positions else [])
    for i, layer in enumerate(config.layers):
        found += [f"blocks.{i}.{place}" for place in kept_places(layer)]
    return found


def grid_site(name: str) -> bool:
    """Whether a full site name is a grid of queries and keys."""
    return site_of(name).axes[-1] == "key"


class RecordedLayers:
    """What one traced forward kept, and the parts that ran.

    Args:
        transformer: the model that ran.
        recorded: kept tensors by full site name, batch axis first.
        positions: (batch, query); mask: (batch, query), False on padding, or None.
        edit: the tap the forward ran under, or None.
        whole: the batch that this is a row of, which row, and how many slots of padding it had there; None for a batch.
    """

    def __init__(
        self,
        transformer: Transformer,
        recorded: Mapping[str, Tensor],
        positions: Int[Tensor, "batch query"],
        mask: Bool[Tensor, "batch query"] | None,
        edit: Bound | None = None,
        whole: tuple[Self, int, int] | None = None,
    ) -> None:
        self.whole = whole
        self.transformer = transformer
        self.config = transformer.config
        self.recorded = recorded
        self.positions = positions
        self.mask = mask
        self.edit = edit
        self.where = Where(positions, mask, 0)
        self.visible = Visible(0, mask)

    @property
    def length(self) -> int:
        """Slots along the query axis."""
        return self.positions.shape[1]

    def block(self, layer: int) -> Block:
        """The model's block at this layer."""
        block = self.transformer.blocks[layer]
        assert isinstance(block, Block)
        return block

    def mixer(self, layer: int) -> MixerPart:
        """The part of this layer that mixes positions.

        Raises:
            UnsupportedError: the layer has none.
        """
        self.config.mixer(layer)
        mixer = self.block(layer).mixer
        assert mixer is not None
        return mixer

    def attention(self, layer: int) -> AttentionPart:
        """The softmax attention of this layer.

        Raises:
            UnsupportedError: the layer mixes positions in another way.
        """
        self.config.attention(layer)
        return self.block(layer).attn

    def prefix(self, layer: int) -> str:
        """The prefix of this layer's mixer among the sites, such as "attn" or "ssm"."""
        return self.config.mixer(layer).prefix

    def keys_of(self, layer: int) -> int:
        """The layer whose keys and values a layer's queries meet: its own, or the one it shares with."""
        donor = self.config.attention(layer).keys_from
        return layer if donor is None else donor

    def read_by(self, layer: int, number: int) -> str:
        """The place in the stream that the mixer (1) or the feed-forward part (2) reads."""
        choice = self.config.layers[layer]
        if number == 1 and choice.copies is not None:
            return "resid_active"
        return "resid_pre" if number == 1 or choice.parallel or choice.mixer is None else "resid_mid"

    def recurrence(
        self, layer: int
    ) -> GatedDeltaPart | StateSpacePart | LinearAttentionPart | MatrixMemoryPart | ChannelsPart:
        """The recurrence of this layer."""
        part = self.mixer(layer)
        part = part.parts[1] if isinstance(part, ParallelPart) else part
        assert not isinstance(part, AttentionPart | ParallelPart)
        return part

    def within(self, layer: int, part: int) -> float:
        """What multiplies the stream in a layer from where its mixer (1) or feed-forward part (2) joined on; from the
        layer's beginning with 0."""
        if self.config.copies:
            raise UnsupportedError(
                "This model's stream stands in copies that layers mix, so no one number says what becomes of a part."
            )
        block = self.block(layer)
        if block.after_sum:
            raise UnsupportedError(
                "This model norms the sum of stream and part, so no one number says what becomes of a part."
            )
        times = 1.0 if block.scalar is None else float(block.scalar.double())
        for later in range(part + 1, 3):
            times *= block.choice.stream_scale(later)
        return times

    def carried(self, layer: int, part: int, to: int | None = None) -> float:
        """What multiplies the stream from there (after the layer with 3) until it enters layer `to`; by default, until
        it leaves the last. Layer −1 stands for the embedding."""
        later = range(layer + 1, self.config.n_layers if to is None else to)
        own = 1.0 if layer < 0 or part == 3 else self.within(layer, part)
        return own * math.prod(self.within(i, 0) for i in later)

    def edits_grid(self, layer: int) -> bool:
        """Whether the traced forward changed this layer's scores or pattern."""
        return self.edit is not None and any(f"blocks.{layer}.{g}" in self.edit.writes for g in GRIDS)
