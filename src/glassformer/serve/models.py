"""What is served: models by name, each with its queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glassformer.errors import ContextLengthError, TextError, near
from glassformer.serve.admission import AdmissionQueue
from glassformer.serve.problems import Refusal
from glassformer.serve.telemetry import Metrics
from glassformer.serve.work import Workers

if TYPE_CHECKING:
    from glassformer.lm import Model


@dataclass
class Served:
    """One model that answers.

    Args:
        model: tokenizer, template, and the transformer that scores echoed prompts.
        queue: before the model's engine.
        name: by which it is asked for.
        most_tokens: of one answer; None for as many as fit.
    """

    model: Model
    queue: AdmissionQueue
    name: str
    most_tokens: int | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def room(self) -> int:
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
        if len(ids) + answer > self.room:
            # The first sentence is what clients of OpenAI's API look for.
            raise ContextLengthError(
                f"This model's maximum context length is {self.room} tokens, the answer included. However, the prompt "
                f"has {len(ids)} tokens; shorten it."
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
    """The models of one server.

    Args:
        served: those that are open.
        metrics: of all of them.
    """

    def __init__(self, *served: Served, metrics: Metrics | None = None) -> None:
        self._served = {one.name: one for one in served}
        self.metrics = metrics or (served[0].queue.metrics if served else Metrics())
        self.scoring = Workers(1)  # one prompt is scored at a time
        self._closing: list[Callable[[], None]] = []
        self.ping = 10.0  # seconds without an event after which a stream says that it is alive

    @property
    def default(self) -> Served:
        """The model that is meant when a request names none."""
        return next(iter(self._served.values()))

    @property
    def names(self) -> list[str]:
        """Names that may be asked for."""
        return list(self._served)

    def cards(self) -> list[dict[str, Any]]:
        """Every model as `/v1/models` lists it."""
        return [one.card() for one in self._served.values()]

    def get(self, name: str | None) -> Served:
        """A model by its name.

        Raises:
            Refusal: a model that is not served.
        """
        if name is None:
            return self.default
        found = self._served.get(name)
        if found is None:
            listed = ", ".join(repr(one) for one in self.names)
            raise Refusal(
                404,
                f"The model {name[:100]!r} is not served here; {listed} {'is' if len(self.names) == 1 else 'are'}."
                f"{near(name, self.names)}",
                code="model_not_found",
                param="model",
            )
        return found

    @property
    def draining(self) -> bool:
        """Whether the server is about to end."""
        return any(one.queue.draining for one in self._served.values())

    @property
    def taken(self) -> int:
        """Answers that run or wait."""
        return sum(one.queue.taken for one in self._served.values())

    async def drain(self, seconds: float) -> bool:
        """Take nothing new and wait for what runs; False when it took longer and was cut off."""
        return all(await asyncio.gather(*(one.queue.drain(seconds) for one in self._served.values())))

    def close(self) -> None:
        """End every engine."""
        self.scoring.close()
        for close in self._closing:
            close()
        for one in self._served.values():
            one.queue.close()

    def on_close(self, close: Callable[[], None]) -> None:
        """Call something when the server ends."""
        self._closing.append(close)
