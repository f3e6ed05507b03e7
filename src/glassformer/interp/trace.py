"""A trace: one forward of a text, and everything inside it by name afterwards.

The forward is the ordinary fused one; the trace keeps what grows with the text's length and derives the
rest when asked (`derive`). It is given tokens and, to name them, a vocabulary; it knows no files but its
own (`saving`), and how a model was loaded is not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import ShapeError, SiteError, UnsupportedError, UsageError
from glassformer.interp import memory
from glassformer.interp.recording import Recording, grid_site
from glassformer.interp.select import layers_of
from glassformer.interp.trace_run import Ids, checked, grown, run
from glassformer.interp.vocabulary import Vocabulary, token_id
from glassformer.model import Config, Transformer
from glassformer.model.parts.channels import ChannelsPart
from glassformer.model.sites import Tap, axis_sizes, canonical, site_of
from glassformer.tokenizer.spelling import spelled

if TYPE_CHECKING:
    from glassformer.interp.cell import Cell
    from glassformer.interp.edges import Edges
    from glassformer.interp.experts import Experts
    from glassformer.interp.heads import Heads
    from glassformer.interp.lens import Lens
    from glassformer.interp.lens_edits import LensEdit
    from glassformer.interp.neurons import Neurons
    from glassformer.interp.prediction_graph import PredictionGraph
    from glassformer.interp.reasons import Reasons
    from glassformer.interp.token_words import Word
    from glassformer.interp.why import Why


class Trace:
    """What one forward computed, for one text or a batch of texts.

    `trace["blocks.3.attn.pattern"]` is (head, query, key) for one text; a trace of a list keeps a batch
    axis in front, its shorter texts padded on the left (`trace.row(i)` is one text without padding).

    Attributes:
        ids: token ids, one list for one text, a list of lists for a batch.
        batched: whether it holds a batch.
        precision: the weights' dtype, in which everything was computed.
        model: the model's name, or "".
    """

    def __init__(
        self,
        transformer: Transformer,
        ids: Ids | Tensor,
        *,
        tap: Tap | None = None,
        vocabulary: Vocabulary | None = None,
        model: str = "",
    ) -> None:
        """Run the forward.

        Args:
            ids: of one text, or of several.
            tap: what changes the model meanwhile; the trace is then of the changed model.
            vocabulary: names the tokens; a model's tokenizer.

        Raises:
            TextError: for no tokens, or unknown ones.
            MemoryLimitError: when it would not fit, with the arithmetic.
            SiteError: when the tap names a place, or a position, that this forward does not have.
        """
        rows, self.batched = checked(ids, transformer.config)
        longest = max(map(len, rows))
        self.ids: Any = rows if self.batched else rows[0]
        self.vocabulary = vocabulary
        self.model = model
        self._forward = run(transformer, rows, longest, tap)
        self._rows: dict[int, Trace] = {}

    @classmethod
    def of_forward(
        cls,
        forward: Recording,
        ids: Ids,
        *,
        batched: bool = False,
        vocabulary: Vocabulary | None = None,
        model: str = "",
    ) -> Trace:
        """A trace around a forward that has already run (a saved one, or a row of a batch)."""
        trace = cls.__new__(cls)
        trace.ids, trace.batched, trace.vocabulary, trace.model = ids, batched, vocabulary, model
        trace._forward = forward
        trace._rows = {}
        return trace

    def grown(self, ids: Sequence[int]) -> Trace:
        """The trace of a text whose first tokens may be this one's: those are not computed again where the design
        allows it. Numbers agree with a whole forward's within rounding.

        Raises:
            TextError, MemoryLimitError: as for any trace.
            UsageError: this trace is of a batch, or of a changed model.
        """
        if self.batched or self._forward.edit is not None:
            raise UsageError("Only a trace of one text and of a model without edits grows; trace the longer text anew.")
        rows, _ = checked(ids, self.config)
        shared = next((i for i, (a, b) in enumerate(zip(self.ids, rows[0], strict=False)) if a != b), len(self.ids))
        shared = min(shared, len(rows[0]) - 1)
        forward = grown(self._forward, rows[0], shared) or run(self.transformer, rows, len(rows[0]), None)
        return Trace.of_forward(forward, rows[0], vocabulary=self.vocabulary, model=self.model)

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
        if self.batched:
            return [self.row(i).tokens for i in range(len(self.ids))]
        if self.vocabulary is None:
            return [self.token_text(i) for i in self.ids]
        return spelled([self.vocabulary.token_bytes(i) for i in self.ids])

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

    def row(self, row: int) -> Trace:
        """One text of a batch, without its padding; shares the memory.

        Raises:
            ShapeError: when there is no such text.
        """
        count = len(self.ids) if self.batched else 1
        if not 0 <= row < count:
            raise ShapeError(f"The trace holds {count} texts, 0 to {count - 1}; there is no {row}.")
        if not self.batched:
            return self
        if row not in self._rows:
            self._rows[row] = Trace.of_forward(
                self._forward.row(row), self.ids[row], vocabulary=self.vocabulary, model=self.model
            )
        return self._rows[row]

    def _one(self, what: str) -> Trace:
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
        index: Any
        if isinstance(positions, int):
            index = slice(self.position(positions), self.position(positions) + 1)
        elif isinstance(positions, slice):
            index = positions
        else:
            index = torch.tensor([self.position(p) for p in positions], device=self.transformer.device)
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

    def cost(self, site: str, positions: int | None = None) -> memory.Cost:
        """What asking for a site takes, before it is asked for."""
        name = canonical(site, self.config)
        rows = self.length if positions is None else positions
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

    def head_outputs(
        self, layer: int, head: int | None = None, positions: int | slice | None = None
    ) -> Float[Tensor, "head query d_model"]:
        """What each head adds to the residual stream (after a post-norm as run; biases left out)."""
        from glassformer.interp.head_outputs import head_outputs

        return head_outputs(self, layer, head, positions)

    def contributions(self, layer: int, head: int, query: int = -1) -> Float[Tensor, "key d_model"]:
        """What each source position adds, through one head, to the residual stream at `query`."""
        from glassformer.interp.head_outputs import contributions

        return contributions(self._one("contributions"), layer, head, query)

    def weighted(
        self, layer: int, head: int | None = None, queries: int | slice | None = None, keys: slice | None = None
    ) -> Tensor:
        """Value-weighted attention: the norm of what each source adds, not only the weight it has
        (arXiv:2004.10102); sliced as `pattern` is."""
        from glassformer.interp.head_outputs import weighted

        return weighted(self._one("value-weighted attention"), layer, head, queries, keys)

    def cell(
        self,
        layer: int,
        head: int,
        query: int,
        key: int,
        *,
        token: str | int | None = None,
        against: str | int | None = None,
        position: int | None = None,
    ) -> Cell:
        """One attention cell down to its scalars: products per dimension, score, softmax, value, effect on a logit."""
        from glassformer.interp.cell import cell

        return cell(self._one("a cell"), layer, head, query, key, token=token, against=against, position=position)

    def reasons(self, layer: int, head: int, query: int, key: int | None = None, against: int | None = None) -> Reasons:
        """One attention score as a sum over pairs of earlier parts; see `reasons.reasons`."""
        from glassformer.interp.reasons import reasons

        return reasons(self._one("the reasons of a score"), layer, head, query, key, against)

    # Predictions

    def logits(self, positions: int | slice | Sequence[int] = -1) -> Tensor:
        """Scores of every next token after some positions."""
        return self.at("logits", positions)

    def top(self, position: int = -1, k: int = 10) -> list[tuple[int, str, float]]:
        """The most probable next tokens after a position: id, text, probability."""
        probabilities = torch.softmax(self._one("predictions").logits(position).double(), dim=-1)
        best = probabilities.topk(min(k, len(probabilities)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(i, self.token_text(i), p) for i, p in pairs]

    def view(self, room: str = "attention", **options: Any) -> Any:
        """This trace in Jupyter: its "attention", "depth" or "why"; see `glassformer.notebook.of_trace`."""
        # Drawing stands above this floor: it is found by name when asked for, and nothing here depends on it.
        return import_module("glassformer.notebook").of_trace(self, room, **options)

    def attention(self, **options: Any) -> Any:
        """Every head of this trace in Jupyter; `trace.pattern(layer, head)` gives the numbers."""
        return self.view("attention", **options)

    # Analyses, each in its own file

    def lens(self, k: int = 5, **options: Any) -> Lens:
        """Every layer and position read out as a next-token distribution; see `lens.lens`."""
        from glassformer.interp.lens import lens

        return lens(self._one("the lens"), k, **options)

    def lens_edit(self, layer: int, token: str | int, other: str | int | None = None, **options: Any) -> LensEdit:
        """A token put into a layer's stream along what a lens reads, or swapped with another: what the lens claims and
        what it does; see `lens_edits`."""
        from glassformer.interp.lens_edits import lens_edit

        return lens_edit(self._one("an intervention"), layer, token, other, **options)

    def why(
        self, token: str | int | None = None, against: str | int | None = None, position: int = -1, **options: Any
    ) -> Why:
        """What made the model favour a token after a position; see `why.why`."""
        from glassformer.interp.why import why

        return why(self._one("the reasons"), token, against, position, **options)

    def edges(self, metric: Any = "logit_difference", *, corrupted: Trace, **options: Any) -> Edges:
        """What every edge between parts carries that a corrupted prompt changes; see `edges.edges`."""
        from glassformer.interp.edges import edges

        return edges([(self, corrupted)], metric, **options)

    def graph(
        self, token: str | int | None = None, against: str | int | None = None, position: int = -1, **options: Any
    ) -> PredictionGraph:
        """Which words, heads and neurons made a prediction, and by which ways; see `prediction_graph`."""
        from glassformer.interp.prediction_graph import prediction_graph

        return prediction_graph(self._one("a graph"), token, against, position, **options)

    def heads(self, **options: Any) -> Heads:
        """What every head does, by definition and evidence, this text among it; see `heads.head_scores`."""
        from glassformer.interp.heads import head_scores

        begins = self.vocabulary is not None and self._one("head scores").ids[0] in self.vocabulary.special_ids
        options = {"bos": self.ids[0] if begins else None, "tap": self.forward.edit, **options}
        return head_scores(self.transformer, vocabulary=self.vocabulary, text=self._one("head scores"), **options)

    def neurons(
        self, token: str | int | None = None, against: str | int | None = None, position: int = -1, **options: Any
    ) -> Neurons:
        """The feed-forward neurons behind a prediction; see `neurons.top_neurons`."""
        from glassformer.interp.neurons import top_neurons

        return top_neurons(self._one("neurons"), token, against, position, **options)

    def experts(
        self,
        layer: int,
        token: str | int | None = None,
        against: str | int | None = None,
        position: int = -1,
        **options: Any,
    ) -> Experts:
        """Who was chosen of a layer's experts, with what weight, and what each wrote; see `experts.experts`."""
        from glassformer.interp.experts import experts

        return experts(self._one("experts"), layer, token, against, position, **options)

    def gradient(self, site: str, of: str | int | Callable[[Tensor], Tensor] | None = None, **options: Any) -> Tensor:
        """The gradient of a chosen number at a site; see `gradient.gradients`."""
        from glassformer.interp.gradient import gradients

        name = canonical(site, self.config)
        return self._squeezed(gradients(self, [name], of, **options)[name])

    def gradients(
        self, sites: Sequence[str], of: str | int | Callable[[Tensor], Tensor] | None = None, **options: Any
    ) -> dict[str, Tensor]:
        """The gradients of one number at several sites by one backward pass; see `gradient.gradients`."""
        from glassformer.interp.gradient import gradients

        found = gradients(self, [canonical(site, self.config) for site in sites], of, **options)
        return {name: self._squeezed(x) for name, x in found.items()}

    def save(self, path: str | Path) -> None:
        """Write the trace into a directory: trace.safetensors and trace.json."""
        from glassformer.interp.save import save

        save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, transformer: Transformer, *, vocabulary: Vocabulary | None = None) -> Trace:
        """A saved trace, with the model it was made by, whose weights derive the rest."""
        from glassformer.interp.save import load

        return cls.of_forward(**load(Path(path), transformer), vocabulary=vocabulary)

    def __repr__(self) -> str:
        texts = f"{len(self.ids)} texts, " if self.batched else ""
        return f"<glassformer.Trace of {texts}{self.length} tokens, {self.config.n_layers} layers, {self.precision}>"


def trace(
    transformer: Transformer,
    ids: Ids | Tensor,
    *,
    tap: Tap | None = None,
    vocabulary: Vocabulary | None = None,
    model: str = "",
) -> Trace:
    """Run one forward and keep what everything inside it can be derived from; see `Trace`."""
    return Trace(transformer, ids, tap=tap, vocabulary=vocabulary, model=model)
