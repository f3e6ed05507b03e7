"""The verbs of a model that look inside it, one method each.

What a model brings (weights, tokenizer, edits) is declared here; the analyses are this package's other files, loaded
when they are asked for.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from glassformer.errors import ContextLengthError, TextError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.interp.circuit_edit import RunCircuit
    from glassformer.interp.circuit_search import Circuit
    from glassformer.interp.direction import Direction
    from glassformer.interp.heads import Heads
    from glassformer.interp.meaning import Meaning
    from glassformer.interp.moved import Moved
    from glassformer.interp.patching import Patching
    from glassformer.interp.readout import Readout
    from glassformer.interp.taps import Bound
    from glassformer.interp.trace import Trace
    from glassformer.model.config import Config
    from glassformer.model.sites import Tap
    from glassformer.model.transformer import Transformer
    from glassformer.tokenizer.tokenizer import Tokenizer


class LooksInside(ABC):
    """A model that can be looked into.

    Attributes:
        tokenizer, name: as every answer states them; taps: its edits, in order.
    """

    tokenizer: Tokenizer
    name: str
    taps: tuple[Tap, ...]

    @property
    @abstractmethod
    def transformer(self) -> Transformer:
        """The definition in torch."""

    @property
    @abstractmethod
    def config(self) -> Config:
        """The design."""

    @abstractmethod
    def logits(self, text: str | Sequence[int], bos: bool | None = None) -> Tensor:
        """Logits of every position."""

    # Text in, text out

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        """Token ids of a text, with the beginning-of-text token as the tokenizer says (or `bos` does)."""
        return self.tokenizer.encode(text, bos)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(ids)

    def ids(self, text: str | Sequence[int], bos: bool | None = None) -> list[int]:
        """Checked token ids of a text or of ids.

        Raises:
            TextError: for an empty text, unknown ids, or more tokens than the context.
        """
        if isinstance(text, str):
            if not text:
                raise TextError("The text is empty; give at least one word.")
            ids = self.encode(text, bos)
        else:
            ids = [int(i) for i in text]
        if not ids:
            raise TextError("The text holds no token; give at least one word.")
        for i in ids:
            if not 0 <= i < self.config.vocab_size:
                raise TextError(f"Token id {i} is not in this model's vocabulary of {self.config.vocab_size}.")
        if len(ids) > self.config.context:
            raise ContextLengthError(
                f"The text is {len(ids)} tokens long and {self.name} reads at most {self.config.context}; shorten it."
            )
        return ids

    # Inside

    def trace(
        self, text: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]], bos: bool | None = None
    ) -> Trace:
        """One forward of a text (or of several), and everything inside it by name; see `glassformer.Trace`.

        Raises:
            TextError: for an empty text, unknown ids, or more tokens than the context.
            MemoryLimitError: when it would not fit, with the arithmetic.
        """
        from glassformer.interp.trace import Trace

        ids = self._ids_of_all(text, bos)
        return Trace(self.transformer, ids, tap=self.bound_tap(), vocabulary=self.tokenizer, model=self.name)

    def _ids_of_all(self, text: Any, bos: bool | None) -> Any:
        """Token ids of one text, or a list of those of several."""
        if isinstance(text, str) or (len(text) > 0 and isinstance(text[0], int)):
            return self.ids(text, bos)
        if len(text) == 0:
            raise TextError("A trace needs a text, token ids, or a list of either; the list is empty.")
        return [self.ids(one, bos) for one in text]

    def heads(self, text: str | Sequence[int] | None = None, **options: Any) -> Heads:
        """What every attention head does, by definition, evidence and null; see `interp.heads`."""
        from glassformer.interp.heads import head_scores

        bos = self.tokenizer.bos_id if self.tokenizer.adds_bos else None
        trace = None if text is None else self.trace(text)
        options = {"tap": self.bound_tap(), **options}
        return head_scores(self.transformer, vocabulary=self.tokenizer, bos=bos, text=trace, **options)

    def meaning(self, word: str, texts: Sequence[str], **options: Any) -> Meaning:
        """One word's vector in several texts, layer by layer; see `interp.meaning`."""
        from glassformer.interp.meaning import meaning

        return meaning(word, [self.trace(text) for text in texts], **options)

    def patch(self, pairs: Sequence[tuple[str, str]], what: Any = "stream", **options: Any) -> Patching:
        """Which places carry what makes (clean, corrupted) prompts end differently; see `interp.patching`."""
        from glassformer.interp.patching import patch

        return patch([(self.trace(clean), self.trace(corrupted)) for clean, corrupted in pairs], what, **options)

    def direction(
        self, name: str, positive: Sequence[str], negative: Sequence[str], layer: int, **options: Any
    ) -> Direction:
        """The direction of a layer's stream from some texts to others, with how far to trust it; see
        `interp.directions`. `gf.steer` takes it."""
        from glassformer.interp.directions import direction

        one, other = ((self.trace(text) for text in texts) for texts in (positive, negative))
        return direction(name, one, other, layer, **options)

    def load_direction(self, path: str | Path) -> Direction:
        """A direction that was saved, of this model.

        Raises:
            CheckpointError: it is none, is broken, or is of another model.
        """
        from glassformer.interp.direction import Direction

        return Direction.load(path, self.transformer)

    def readout(self, text: str | Sequence[int], kind: str = "tuned", **options: Any) -> Readout:
        """A lens fitted to a text of any length, "tuned", "jacobian" or "relevance"; see `interp.fitting`.
        `trace.lens(through=…)` reads through it.

        Raises:
            UsageError: too little text, or an edited model.
        """
        from glassformer.interp.fitting import fit

        if self.taps:
            raise UsageError("A readout is fitted to the model as it is; fit it without edits.")
        ids = self.encode(text) if isinstance(text, str) else list(text)
        return fit(self.transformer, ids, kind, model=self.name, **options)

    def load_readout(self, path: str | Path) -> Readout:
        """A readout that was saved, of this model.

        Raises:
            CheckpointError: it is none, is broken, or is of another model.
        """
        from glassformer.interp.readout import Readout

        return Readout.load(path, self.transformer)

    def moved(self, text: str | None = None, k: int = 10) -> Moved:
        """What this model's edits move on a text that is not about them; a plain passage where none is given.

        Raises:
            UsageError: the model is not edited.
        """
        from glassformer.interp.moved import NEUTRAL, moved

        if not self.taps:
            raise UsageError("The model is not edited, so nothing moves: model.edited(...).moved().")
        plain = copy.copy(self)
        plain.taps = ()
        ids = self.encode(NEUTRAL)[: self.config.context] if text is None else self.ids(text)
        return moved(plain.logits(ids), self.logits(ids), self.tokenizer.token_text, k)

    def load_circuit(self, path: str | Path) -> RunCircuit:
        """A circuit that was saved, of this model; `edited` takes it.

        Raises:
            CheckpointError: it is none, is broken, or is of another model.
        """
        from glassformer.interp.circuit_edit import RunCircuit

        return RunCircuit.load(path, self.transformer)

    def circuit(self, pairs: Sequence[tuple[str, str]], faithfulness: float = 0.9, **options: Any) -> Circuit:
        """The smallest set of edges that carries the difference of (clean, corrupted) prompts; `options` go to
        `interp.edges.edges`. See `interp.circuit_search`."""
        from glassformer.interp.circuit_search import circuit
        from glassformer.interp.edges import edges

        found = edges([(self.trace(clean), self.trace(corrupted)) for clean, corrupted in pairs], **options)
        return circuit(found, faithfulness, progress=options.get("progress"))

    def edited(self, *taps: Tap) -> Self:
        """This model with taps put in: a view that shares the weights.

        Raises:
            SiteError: for a place, layer or head that the model does not have.
            UsageError: for a circuit of another model.
        """
        for tap in taps:
            getattr(tap, "require_of", lambda transformer: None)(self.transformer)
        view = copy.copy(self)
        view.taps = self.taps + taps
        view.bound_tap()  # checks every name now
        return view

    def bound_tap(self) -> Bound | None:
        """What puts the edits into a forward, bound to this design; None without any."""
        if not self.taps:
            return None
        from glassformer.interp.taps import compose

        return compose(*self.taps, config=self.config)
