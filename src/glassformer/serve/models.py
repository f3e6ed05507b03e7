"""What is served: models by name, each with its queue."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from glassformer.errors import ContextLengthError, GlassformerError, TextError, near
from glassformer.serve.admission import AdmissionQueue
from glassformer.serve.problems import Refusal
from glassformer.serve.telemetry import Metrics
from glassformer.serve.work import Workers

if TYPE_CHECKING:
    from glassformer.generate.drafting import Drafter
    from glassformer.lm import Model


@dataclass
class Served:
    """One model that answers.

    Args:
        model: tokenizer, template, and the transformer that scores echoed prompts.
        queue: before the model's engine.
        name: by which it is asked for.
        most_tokens: of one answer; None for as many as fit.
        lookup: whether repeats in the text are guessed ahead from.
        drafter: a draft model that guesses ahead; None for none.
        directions: files of saved directions, by the names that steering calls them by.
    """

    model: Model
    queue: AdmissionQueue
    name: str
    most_tokens: int | None = None
    lookup: bool = False
    drafter: Drafter | None = None
    directions: Mapping[str, Path] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def bytes(self) -> int:
        """Bytes of memory that it takes, about: the weights, and the engine's packed ones."""
        return 2 * self.model.bytes

    @property
    def capacity(self) -> int:
        """Tokens of prompt and answer together."""
        return self.queue.engine.capacity

    def card(self) -> dict[str, Any]:
        """The model as `/v1/models` lists it."""
        engine = self.queue.engine
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "glassformer",
            "context_length": engine.capacity,
            "max_model_len": engine.capacity,
            "precision": engine.precision,
            "path": engine.path,
        }

    def ids(self, given: str | Sequence[int], bos: bool | None = None, *, answer: int = 1) -> list[int]:
        """Checked token ids of a prompt that leave room for `answer` tokens.

        Raises:
            TextError: no token, or unknown ones. ContextLengthError: more than the model reads here.
        """
        if isinstance(given, str):
            if not given:
                raise TextError("The text is empty; give at least one word.")
            ids = self.model.encode(given, bos)
        else:
            ids = self.known_ids(given)
        if not ids:
            raise TextError("The prompt holds no token; give at least one word.")
        if len(ids) + answer > self.capacity:
            # The first sentence is what clients of OpenAI's API look for.
            raise ContextLengthError(
                f"This model's maximum context length is {self.capacity} tokens, the answer included. However, the "
                f"prompt has {len(ids)} tokens; shorten it."
            )
        return ids

    def known_ids(self, ids: Sequence[int]) -> list[int]:
        """Token ids of this model's vocabulary.

        Raises:
            TextError: for others.
        """
        vocab = self.model.config.vocab_size
        for id in ids:
            if not 0 <= id < vocab:
                raise TextError(f"Token id {id} is not in this model's vocabulary of {vocab}.")
        return list(ids)


class Models:
    """The models of one server: open, or opened when first asked for and let go when room is needed.

    Args:
        served: those that are open from the start; the first is meant when a request names none.
        metrics: of all of them.
        sources: more names, and what opens each.
        memory: bytes that open models may take together; beyond, the one not used for longest is let go. None for any.
        lenses, dictionaries: files of fitted lenses and features, by the names that views ask for them by.
    """

    def __init__(
        self,
        *served: Served,
        metrics: Metrics | None = None,
        sources: Mapping[str, Callable[[], Served]] | None = None,
        memory: int | None = None,
        lenses: Mapping[str, Path] = MappingProxyType({}),
        dictionaries: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        self.lenses, self.dictionaries = lenses, dictionaries
        self._served = OrderedDict((one.name, one) for one in served)
        self._sources = dict(sources or {})
        self._first = served[0].name if served else next(iter(self._sources))
        self._memory = memory
        # What is opened may stand on another: an adapter opens the first model when that was let go.
        self._lock, self._opening = threading.RLock(), threading.RLock()
        self._created = int(time.time())
        self.metrics = metrics or (served[0].queue.metrics if served else Metrics())
        self.scoring = Workers(1)  # one prompt is scored at a time
        self.draining = False
        self._closing: list[Callable[[], None]] = []
        self.ping = 10.0  # seconds without an event after which a stream says that it is alive

    @property
    def default(self) -> Served:
        """The model that is meant when a request names none."""
        return self.open(self._first)

    @property
    def first(self) -> str:
        """Its name."""
        return self._first

    @property
    def names(self) -> list[str]:
        """Names that may be asked for."""
        with self._lock:
            return list(dict.fromkeys([self._first, *self._sources, *self._served]))

    def cards(self) -> list[dict[str, Any]]:
        """Every model as `/v1/models` lists it; those that are not open say only their name."""
        with self._lock:
            return [self._card(name) for name in self.names]

    def _card(self, name: str) -> dict[str, Any]:
        known = self._served.get(name)
        if known is not None:
            return known.card() | {"loaded": True}
        return {"id": name, "object": "model", "created": self._created, "owned_by": "glassformer", "loaded": False}

    def card(self, name: str) -> dict[str, Any]:
        """One model as `/v1/models` lists it.

        Raises:
            Refusal: a model that is not served.
        """
        self.known(name)
        with self._lock:
            return self._card(name)

    def known(self, name: str) -> None:
        """Check a name.

        Raises:
            Refusal: a model that is not served.
        """
        if name not in self.names:
            listed = ", ".join(repr(one) for one in self.names)
            raise Refusal(
                404,
                f"The model {name[:100]!r} is not served here; {listed} {'is' if len(self.names) == 1 else 'are'}."
                f"{near(name, self.names)}",
                code="model_not_found",
                param="model",
            )

    async def get(self, name: str | None) -> Served:
        """A model by its name, opened now when it is not.

        Raises:
            Refusal: a model that is not served. SourceError and the like: one that cannot be opened.
        """
        name = self._first if name is None else name
        self.known(name)
        if (found := self._held(name)) is not None:
            return found
        return await asyncio.to_thread(self.open, name)

    def _held(self, name: str) -> Served | None:
        with self._lock:
            if name in self._served:
                self._served.move_to_end(name)
            return self._served.get(name)

    def open(self, name: str) -> Served:
        """… in this thread.

        Raises:
            As `get`.
        """
        self.known(name)
        if (found := self._held(name)) is not None:
            return found
        with self._opening:  # requests come several at once: the first opens, the others find it open
            if (found := self._held(name)) is not None:
                return found
            made = self._sources[name]()
            made.queue.draining = self.draining
            with self._lock:
                self._served[name] = made
                self._close_unused(name)
            return made

    def _close_unused(self, name: str) -> None:
        """Let go of models that nobody uses, the one not used for longest first, until what is open fits."""
        for old in list(self._served):
            if self._memory is None or sum(one.bytes for one in self._served.values()) <= self._memory:
                return
            if old != name and old in self._sources and not self._served[old].queue.busy:
                self._served.pop(old).queue.close()

    def reload(self, sources: Mapping[str, Callable[[], Served]], stale: Collection[str] = ()) -> None:
        """Serve these names from now on; call it in a thread, for models are opened here.

        Models that are open and `stale` are opened anew before they take the old one's place, and one that cannot be
        stays as it was. Whoever is being answered is answered to the end by the model that began.

        Args:
            sources: names, and what opens each. stale: those whose files have changed.

        Raises:
            GlassformerError: of the first model that could not be opened anew; the others are.
        """
        failed: GlassformerError | None = None
        with self._opening:
            with self._lock:
                gone = [name for name in self._served if name not in sources]
                again = [name for name in sources if name in stale and name in self._served]  # adapters come last
            for name in again:
                try:
                    made = sources[name]()
                except GlassformerError as error:
                    failed = failed or error
                    continue
                made.queue.draining = self.draining
                with self._lock:
                    old = self._served.pop(name, None)  # which may have made room meanwhile
                    self._served[name] = made
                if old is not None:
                    self._retire(old)
            with self._lock:
                self._sources = dict(sources)
                self._first = next(iter(sources))
                old_ones = [self._served.pop(name) for name in gone]
            for old in old_ones:
                self._retire(old)
        if failed is not None:
            raise failed

    def _retire(self, served: Served) -> None:
        """End a model's engine once nobody is answered by it any more."""

        def end() -> None:
            while served.queue.busy:
                time.sleep(0.05)
            served.queue.close()

        threading.Thread(target=end, name="glassformer-retire", daemon=True).start()

    @property
    def taken(self) -> int:
        """Answers that run or wait."""
        with self._lock:
            return sum(one.queue.taken for one in self._served.values())

    async def drain(self, seconds: float) -> bool:
        """Take nothing new and wait for what runs; False when it took longer and was cut off."""
        self.draining = True
        with self._lock:
            open_now = list(self._served.values())
        return all(await asyncio.gather(*(one.queue.drain(seconds) for one in open_now)))

    def close(self) -> None:
        """End every engine."""
        self.scoring.close()
        for close in self._closing:
            close()
        for one in list(self._served.values()):
            one.queue.close()

    def on_close(self, close: Callable[[], None]) -> None:
        """Call something when the server ends."""
        self._closing.append(close)
