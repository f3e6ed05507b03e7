"""The session: models that are open, traces that were just made, and views of them by name."""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from glassformer.errors import GlassformerError, SourceError, UsageError, near
from glassformer.tokenizer.spelling import spelled
from glassformer.views.asks import parsed
from glassformer.views.edits import of_name, taps
from glassformer.views.possible import require_possible
from glassformer.views.registry import VIEWS, Check, Json

if TYPE_CHECKING:
    from glassformer.interp.dictionary import Dictionary
    from glassformer.interp.exciting import Exciting
    from glassformer.interp.prediction_graph import PredictionGraph
    from glassformer.interp.readout import Readout
    from glassformer.interp.trace import Trace
    from glassformer.lm import Model

# Traces kept, in total tokens: SmolLM2's basis is about 1 MB a token.
TRACE_TOKENS = 8192
MODELS_OPEN = 3


class Cancelled(Exception):
    """The one who asked has gone; what was computed so far is dropped."""


Open = Callable[[str], "Model"]


def _never(*_: object) -> None:
    return None


class Session:
    """Open models and their recent traces.

    Args:
        model: the one that is meant when a request names none.
        open_model: opens another by its source; None refuses.
        runs: the folder that holds training runs. lenses: files of fitted lenses, by the names they are asked for by.
        dictionaries: places of features that graphs are laid over with, by name. directions: files of saved directions.
    """

    def __init__(
        self,
        model: Model,
        *,
        open_model: Open | None = None,
        runs: str = "runs",
        lenses: Mapping[str, Path] = MappingProxyType({}),
        dictionaries: Mapping[str, Path] = MappingProxyType({}),
        directions: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        self.current = model.name
        self.runs = runs
        self.lenses, self.dictionaries, self.directions = lenses, dictionaries, directions
        self._open = open_model
        self._models: OrderedDict[str, Model] = OrderedDict({model.name: model})
        self.excited: dict[str, Exciting] = {}  # what excites the neurons of each model, by its name
        self.scored: dict[str, Json] = {}  # what the heads of each model do, by its name
        self.graph: tuple[Json, PredictionGraph] | None = None  # the last one of a prediction, and what was asked
        self._traces: OrderedDict[tuple[Any, ...], Trace] = OrderedDict()
        self._lock = threading.RLock()
        self._opening = threading.Lock()
        self._making: dict[tuple[Any, ...], threading.Lock] = {}

    @property
    def opened(self) -> list[str]:
        """Names of the models that are in memory."""
        with self._lock:
            return list(self._models)

    def model(self, name: str | None = None) -> Model:
        """An open model, opened now when it is not.

        Raises:
            SourceError and the rest of `load`'s: when it cannot be opened.
        """
        name = name or self.current
        if (found := self._held(name)) is not None:
            return found
        with self._opening:  # views come several at once: the first opens, the others find it open
            return self._held(name) or self._opened(name)

    def _held(self, name: str) -> Model | None:
        with self._lock:
            if name in self._models:
                self._models.move_to_end(name)
            return self._models.get(name)

    def _opened(self, name: str) -> Model:
        if name.startswith("run:"):
            from glassformer.views.runs import open_run

            return self.add(open_run(self.runs, name), name)
        if self._open is None:
            raise SourceError(f"{name!r} is not open here; this view has {', '.join(self.opened)}.")
        return self.add(self._open(name), name)

    def add(self, model: Model, name: str | None = None) -> Model:
        """Hold an open model; of the others, the one not used for longest is let go."""
        name = name or model.name
        with self._lock:
            self._models[name] = model
            self._models.move_to_end(name)
            for old in list(self._models):
                if len(self._models) > MODELS_OPEN and old not in (self.current, name):
                    del self._models[old]
                    for key in [key for key in self._traces if key[0] == old]:
                        del self._traces[key]
                    self.graph = None
        return model

    def choose(self, name: str) -> Model:
        """Make a model the one that is meant when none is named."""
        model = self.model(name)
        self.current = name
        return model

    def edited(self, ask: Any) -> Model:
        """The model of a request, with its edits put in."""
        model = self.model(ask.model)
        return model.edited(*taps(ask.edits, model, self.directions)) if ask.edits else model

    def ids(self, ask: Any) -> list[int]:
        """Checked token ids of a request's text."""
        return self.model(ask.model).ids(ask.text, getattr(ask, "bos", None))

    def trace(self, ask: Any) -> Trace:
        """The trace of a request's text under its edits, made once and kept while it is recent."""
        model, ids = self.edited(ask), self.ids(ask)
        key = (ask.model or self.current, tuple(ids), json.dumps([e.model_dump() for e in ask.edits]))
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        # Views of one text come several at once: the first makes the trace, the others wait for it.
        with making:
            with self._lock:
                if key in self._traces:
                    self._traces.move_to_end(key)
                    self._making.pop(key, None)
                    return self._traces[key]
                earlier = None if ask.edits else self._beginning(key[0], ids)
            try:
                return self._kept(key, model.trace(ids) if earlier is None else earlier.grown(ids))
            finally:
                with self._lock:
                    self._making.pop(key, None)

    def _beginning(self, name: str, ids: list[int]) -> Trace | None:
        """The kept trace of the model as it is that shares the longest beginning with a text, if that is half of it."""
        best, most = None, len(ids) // 2
        for (of, others, edits), trace in self._traces.items():
            shared = next((i for i, (a, b) in enumerate(zip(others, ids, strict=False)) if a != b), len(others))
            if of == name and edits == "[]" and shared > most:
                best, most = trace, shared
        return best

    def lens(self, ask: Any) -> Readout | None:
        """The fitted lens that a request names for its model; None where it names none.

        Raises:
            UsageError: there is none of this name. CheckpointError: it is broken, or of another model.
        """
        if ask.through is None:
            return None
        return self.model(ask.model).load_readout(of_name(self.lenses, ask.through, "fitted lens"))

    def laid(self, names: Sequence[str]) -> list[Dictionary]:
        """The dictionaries of these names.

        Raises:
            UsageError: there is none of a name. CheckpointError, UnsupportedError: it is none, or of another kind.
        """
        from glassformer.interp.dictionary import dictionaries

        places = [of_name(self.dictionaries, name, "dictionary") for name in names]
        return [one for place in places for one in dictionaries(place)]

    def keep(self, trace: Trace) -> None:
        """Hold a trace of the current model that has already run, so that views of its text use it."""
        self._kept((self.current, tuple(trace.ids), json.dumps([])), trace)

    def _kept(self, key: tuple[Any, ...], trace: Trace) -> Trace:
        with self._lock:
            self._traces[key] = trace
            while len(self._traces) > 1 and sum(len(k[1]) for k in self._traces) > TRACE_TOKENS:
                self._traces.popitem(last=False)
        return trace

    def view(self, name: str, data: object, check: Check = _never) -> Json:
        """A view by name, from plain data to plain data.

        Args:
            check: called between steps, with (done, total, what) where a view tells how far it is; raises
                `Cancelled` to stop.

        Raises:
            UsageError: for an unknown view or field.
            GlassformerError: whatever the view finds wrong, in one sentence.
        """
        if name not in VIEWS:
            raise UsageError(f"There is no view {name!r}; there are {', '.join(VIEWS)}." + near(name, VIEWS))
        chosen = VIEWS[name]
        ask = parsed(chosen.ask, data)
        check()
        require_possible(self, ask)
        found = chosen.answer(self, ask, check)
        model = self._held(getattr(ask, "model", None) or self.current)
        return plain(found, None if model is None else model.tokenizer)


def plain(value: Any, tokenizer: Any = None) -> Any:
    """Plain data as JSON can hold it: what is not a finite number becomes None, and tokens that are parts of characters
    are spelled as such."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        token = value.get("token")
        if tokenizer is not None and isinstance(token, str) and "\ufffd" in token and isinstance(value.get("id"), int):
            value = {**value, "token": spelled([tokenizer.token_bytes(value["id"])])[0]}
        return {key: plain(item, tokenizer) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, tokenizer) for item in value]
    return value


__all__ = ["Cancelled", "GlassformerError", "Session"]
