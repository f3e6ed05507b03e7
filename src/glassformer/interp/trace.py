"""A trace: one forward of a text, and everything inside it by name afterwards.

The forward is the ordinary fused one; the trace keeps what grows with the text's length and derives the
rest when asked (`recording`); what it holds is read by name (`traced`), and each analysis is a file of its own. It is
given tokens and, to name them, a vocabulary; it knows no files but its own (`save`), and how a model was loaded is not
its business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import ShapeError, UsageError
from glassformer.interp.recording import Recording
from glassformer.interp.trace_run import Ids, checked, grown, run
from glassformer.interp.traced import Traced
from glassformer.interp.vocabulary import Vocabulary
from glassformer.model import Transformer
from glassformer.model.sites import Tap, canonical

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
    from glassformer.interp.why import Why


class Trace(Traced):
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

    # Attention taken apart

    def head_outputs(
        self, layer: int, head: int | None = None, positions: int | slice | None = None
    ) -> Float[Tensor, "... d_model"]:
        """What each head adds to the residual stream (after a post-norm as run; biases left out): head, query, d_model,
        sliced as `pattern` is."""
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

    def view(self, room: str = "attention", **options: object) -> Any:
        """This trace in Jupyter: its "attention", "depth" or "why"; see `glassformer.notebook.of_trace`."""
        # Drawing stands above this floor: it is found by name when asked for, and nothing here depends on it.
        return import_module("glassformer.notebook").of_trace(self, room, **options)

    def attention(self, **options: object) -> Any:
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
