"""The trace of a text that a server's model reads: the same verbs as `Trace`, each asked of the server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.errors import ShapeError, UsageError
from glassformer.interp.elsewhere import Elsewhere
from glassformer.interp.trace import Trace
from glassformer.remote.asking import asking

if TYPE_CHECKING:
    from glassformer.remote.model import RemoteModel

# Methods that need the weights or what the forward kept; all others compute from these and from what is known here.
VERBS = (
    "at",
    "tensor",
    "mean",
    "cost",
    "pattern",
    "channel_pattern",
    "scores",
    "head_outputs",
    "contributions",
    "weighted",
    "cell",
    "reasons",
    "lens",
    "lens_edit",
    "why",
    "edges",
    "graph",
    "heads",
    "neurons",
    "experts",
    "gradient",
    "gradients",
)


class RemoteTrace(Trace):
    """What one forward computed on a server; `Trace` says what each verb gives.

    Nothing is kept here but the token ids: what is asked for is computed there, where recent traces are kept, and
    tensors come back whole. A `progress` that a verb takes is called with what the server tells.
    """

    def __init__(self, remote: RemoteModel, ids: Any) -> None:
        self.remote, self.ids, self.batched = remote, ids, bool(ids) and isinstance(ids[0], list)
        self.vocabulary, self.model = remote.tokenizer, remote.name
        length = max(map(len, ids)) if self.batched else len(ids)
        weights = remote.transformer
        self._forward: Any = Elsewhere("this trace", transformer=weights, config=weights.config, length=length)

    @property
    def precision(self) -> str:
        """The weights' dtype there."""
        return self.remote.precision

    def grown(self, ids: Sequence[int]) -> Trace:
        """The trace of a longer text; the server keeps what both begin with."""
        if self.batched or self.remote.edits:
            return super().grown(ids)  # the sentence that says why not
        return RemoteTrace(self.remote, self.remote.ids(ids))

    def row(self, row: int) -> Trace:
        """One text of a batch."""
        if not self.batched:
            return super().row(row)
        if not 0 <= row < len(self.ids):
            raise ShapeError(f"The trace holds {len(self.ids)} texts, 0 to {len(self.ids) - 1}; there is no {row}.")
        return RemoteTrace(self.remote, self.ids[row])

    def view(self, room: str = "attention", **options: object) -> Any:
        """Not here: the page draws a model in its own process."""
        raise UsageError("The page draws a model that is in this process; ask the server for a view: inspect(name).")

    def save(self, path: str | Path) -> None:
        """Not here: what a trace keeps stays on the server."""
        raise UsageError("What this trace keeps stays on the server; load the model here to save it.")


for _name in VERBS:
    _method = asking(f"trace.{_name}", getattr(Trace, _name), lambda trace: (trace.remote, {"text": trace.ids}))
    setattr(RemoteTrace, _name, _method)
