"""What a trace holds, read by name: its tokens and words, the tensor of any site, grids of attention.

Only what is asked for is computed, and what would not fit is refused before. It knows no analysis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import ShapeError, SiteError, UnsupportedError, UsageError
from glassformer.interp import memory
from glassformer.interp.recorded_layers import grid_site
from glassformer.interp.recording import Recording
from glassformer.interp.select import layers_of
from glassformer.interp.vocabulary import Vocabulary, token_id
from glassformer.model import Config, Transformer
from glassformer.model.parts.channels import ChannelsPart
from glassformer.model.sites import axis_sizes, canonical, site_of
from glassformer.tokenizer.spelling import spelled

if TYPE_CHECKING:
    from glassformer.interp.token_words import Word


class Traced:
    """One forward of a text, or of a batch of texts, and its tensors.

    Attributes:
        ids: token ids, one list for one text, a list of lists for a batch.
        batched: whether it holds a batch.
        vocabulary: names the tokens, where there is one.
    """

    ids: Any
    batched: bool
    vocabulary: Vocabulary | None
    _forward: Recording

    # What it is of

    @property
    def transformer(self) -> Transformer:
        """The model that ran."""
        return self._forward.transformer

    @property
    def config(self) -> Config:
        """The model's design."""
        return self._forward.config

    @property
    def forward(self) -> Recording:
        """The forward itself, where tensors have their batch axis."""
        return self._forward

    @property
    def precision(self) -> str:
        """The weights' dtype: "float32", "bfloat16", …"""
        return str(self.transformer.dtype).removeprefix("torch.")

    @property
    def length(self) -> int:
        """Tokens (slots, for a batch)."""
        return self._forward.length

    def __len__(self) -> int:
        return self.length

    @property
    def tokens(self) -> Any:
        """Each token's text (a list for one text, a list of lists for a batch); ids where no vocabulary is known.

        Tokens that are parts of one character are spelled as that character and which part: "鼹¹⁄₃".
        """
        return [self._texts(ids) for ids in self.ids] if self.batched else self._texts(self.ids)

    def _texts(self, ids: Sequence[int]) -> list[str]:
        if self.vocabulary is None:
            return [self.token_text(i) for i in ids]
        return spelled([self.vocabulary.token_bytes(i) for i in ids])

    def token_text(self, id: int) -> str:
        """A token as text; one that is a part of a character as its bytes."""
        if self.vocabulary is None:
            return f"<{id}>"
        text = self.vocabulary.token_text(id)
        return spelled([self.vocabulary.token_bytes(id)])[0] if "\ufffd" in text else text

    @property
    def words(self) -> list[Word]:
        """The text's words and the positions of their tokens."""
        from glassformer.interp.token_words import words

        return words(self._one("words").ids, self.vocabulary)

    def by_word(self, x: Tensor, axis: int = -1, how: Literal["sum", "mean"] = "sum") -> Tensor:
        """Numbers per token along an axis as numbers per word of `words`: added up, or averaged."""
        from glassformer.interp.token_words import mean_by_word, sum_by_word

        return (sum_by_word if how == "sum" else mean_by_word)(x, self.words, axis)

    def _one(self, what: str) -> Self:
        if self.batched:
            raise UsageError(f"This trace holds {len(self.ids)} texts; ask one of them for {what}: trace.row(0).")
        return self

    def position(self, position: int) -> int:
        """A position as counted from 0; negative ones count from the end.

        Raises:
            ShapeError: when the text has no such position.
        """
        if not -self.length <= position < self.length:
            raise ShapeError(
                f"The text has {self.length} tokens, positions 0 to {self.length - 1}; there is no position {position}."
            )
        return position % self.length

    def token_id(self, token: str | int) -> int:
        """The id of a token given by its exact text or its id.

        Raises:
            TextError: for what is not one token, saying how it splits.
        """
        return token_id(token, self.vocabulary, self.config.vocab_size)

    # Any place by name

    def __getitem__(self, site: str) -> Tensor:
        """A site's tensor, by its name or TransformerLens's.

        Raises:
            SiteError: when the model has no such place, with near matches.
            MemoryLimitError: when it would not fit, with the arithmetic.
        """
        return self._squeezed(self.tensor(site))

    def at(self, site: str, positions: int | slice | Sequence[int]) -> Tensor:
        """A site's tensor at some positions of its query (or key) axis only; only these are computed.

        An integer drops the axis.
        """
        name = canonical(site, self.config)
        index: object
        if isinstance(positions, int):
            index = slice(self.position(positions), self.position(positions) + 1)
        elif isinstance(positions, slice):
            index = positions
        else:
            listed = [self.position(p) for p in positions]
            index = torch.tensor(listed, dtype=torch.long, device=self.transformer.device)
        rows = len(range(*index.indices(self.length))) if isinstance(index, slice) else len(index)
        self.cost(name, rows).require("ask for fewer positions")
        with torch.no_grad():
            x = self._forward.get(name, index)
        if isinstance(positions, int):
            x = x.squeeze(2 if grid_site(name) else 1)
        return self._squeezed(x)

    def tensor(self, site: str) -> Tensor:
        """A site's tensor with its batch axis, whether or not the trace is of a batch."""
        name = canonical(site, self.config)
        self.cost(name).require("ask for one head, some positions or a tile")
        with torch.no_grad():
            return self._forward.get(name)

    def mean(self, site: str) -> Tensor:
        """A site's mean over all positions of all texts, padding left out, with axes of size one for both."""
        x = self.tensor(site)
        mask = self._forward.mask
        if mask is None:
            return x.mean(dim=(0, 1), keepdim=True)
        return x[mask].mean(dim=0)[None, None]

    def _squeezed(self, x: Tensor) -> Tensor:
        return x if self.batched else x[0]

    def cost(self, site: str, count: int | None = None) -> memory.Cost:
        """What asking for a site takes, at all positions or at `count` of them, before it is asked for.

        Raises:
            SiteError: when the model has no such place. ShapeError: a count below 0.
        """
        name = canonical(site, self.config)
        rows = self.length if count is None else count
        if rows < 0:
            raise ShapeError(f"A site is asked for at 0 positions or more; got {rows}.")
        sizes = {
            "batch": len(self.ids) if self.batched else 1,
            "query": rows,
            "key": self.length if grid_site(name) else rows,
            **axis_sizes(name, self.config),
        }
        shape = tuple(sizes[axis] for axis in site_of(name).axes)
        return memory.numbers(name, shape, self._itemsize(), str(self.transformer.device))

    def _itemsize(self) -> int:
        return self.transformer.embed.weight.element_size()

    # Attention

    def pattern(
        self,
        layer: int,
        head: int | None = None,
        queries: int | slice | None = None,
        keys: slice | None = None,
    ) -> Tensor:
        """How much each earlier position gave: of one head or all, some queries, some keys; only these are computed.

        Attention weights, or for a recurrence the grid that its gates imply. Axes (head, query, key); an integer
        `head` or `queries` drops its axis.

        Raises:
            UnsupportedError: the layer has no part that mixes positions.
        """
        layer = self.layer(layer)
        return self._grid(f"{self.forward.prefix(layer)}.pattern", layer, head, queries, keys)

    def channel_pattern(self, layer: int, channel: int, queries: slice | None = None) -> Float[Tensor, "query key"]:
        """One channel's share of each earlier position, with its sign, in a layer where every channel has its own.

        There `pattern` is the mean over channels of the absolute values of these.

        Raises:
            UnsupportedError: the layer's channels share their grid by head.
            SiteError: there is no such channel.
        """
        part, forward = self.forward.mixer(self.layer(layer)), self._one("one channel's shares").forward
        if not isinstance(part, ChannelsPart):
            raise UnsupportedError(f"All channels of a head share one grid in layer {layer}; ask for pattern().")
        if not 0 <= channel < part.choice.width:
            raise SiteError(f"Layer {layer} has channels 0 to {part.choice.width - 1}; there is no {channel}.")
        first, last, _ = (slice(None) if queries is None else queries).indices(self.length)
        with torch.no_grad():
            upto = forward.kept(self.layer(layer), last)
            found = part.shares(upto, first, slice(channel, channel + 1))[0, 0]
        return torch.nn.functional.pad(found, (0, self.length - last))

    def scores(
        self,
        layer: int,
        head: int | None = None,
        queries: int | slice | None = None,
        keys: slice | None = None,
    ) -> Tensor:
        """Attention scores (scaled, soft-capped, minus infinity where hidden), sliced as `pattern` is.

        Raises:
            UnsupportedError: the layer has no softmax attention.
        """
        layer = self.layer(layer)
        head = None if head is None else self.attention_head(head, layer)
        self.config.attention(layer)
        return self._grid("attn.scores", layer, head, queries, keys)

    def _grid(self, part: str, layer: int, head: int | None, queries: int | slice | None, keys: slice | None) -> Tensor:
        layer = self.layer(layer)
        heads = None if head is None else [self.head(head, layer)]
        at = slice(None) if queries is None else queries
        if isinstance(at, int):
            at = slice(self.position(at), self.position(at) + 1)
        keys = slice(None) if keys is None else keys
        shape = (
            len(self.ids) if self.batched else 1,
            axis_sizes(f"blocks.{layer}.{part}", self.config)["head"] if heads is None else 1,
            len(range(*at.indices(self.length))),
            len(range(*keys.indices(self.length))),
        )
        name = f"blocks.{layer}.{part}"
        memory.numbers(name, shape, self._itemsize(), str(self.transformer.device)).require("ask for a tile of it")
        with torch.no_grad():
            x = self._forward.grid(layer, part, heads, at, keys)
        if isinstance(queries, int):
            x = x[:, :, 0]
        if head is not None:
            x = x[:, 0]
        return self._squeezed(x)

    def layer(self, layer: int) -> int:
        """A layer as counted from 0; negative ones count from the last.

        Raises:
            SiteError: when the model has no such layer.
        """
        return layers_of(layer, self.config)[0]

    def head(self, head: int, layer: int) -> int:
        """A checked head number of a layer; negative ones count from the last.

        Raises:
            SiteError: when the layer has no such head.
            UnsupportedError: the layer has no part that mixes positions.
        """
        count = self.config.mixer(layer).n_heads
        if not -count <= head < count:
            raise SiteError(f"There is no head {head}: layer {layer} has {count} heads, 0 to {count - 1}.")
        return head % count

    def attention_head(self, head: int, layer: int) -> int:
        """A checked number of a head of a layer's softmax attention.

        Raises:
            SiteError: when the layer has no such head, or it is one of the recurrence beside attention.
            UnsupportedError: the layer has no softmax attention.
        """
        count, head = self.config.attention(layer).n_heads, self.head(head, layer)
        if head >= count:
            raise SiteError(
                f"Head {head} of layer {layer} is one of the recurrence beside attention, so it has no scores; heads "
                f"0 to {count - 1} have."
            )
        return head
