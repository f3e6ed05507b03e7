"""An answer as people and programs read it: tokens as text, each with its token's probability and its rivals.

It turns an engine's events into `GeneratedToken`s and keeps a model's engines between answers. It does not know
models of the facade, prompts as text, or how anything is shown.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glassformer.errors import GlassformerError, UsageError
from glassformer.generate.engine import PRECISIONS, Engine
from glassformer.generate.native_model import NativeModel
from glassformer.generate.prefix_files import PrefixFiles
from glassformer.generate.reading import EagerReader, NativeReader, Reader
from glassformer.generate.request import Finish, Request, TokenEvent
from glassformer.generate.sampling import TokenLogprob
from glassformer.generate.settings import Sampling
from glassformer.model.deferred import Deferred, awaited, whole

if TYPE_CHECKING:
    from glassformer.generate.constraints import Constraint
    from glassformer.generate.drafting import Drafter
    from glassformer.model.transformer import Transformer
    from glassformer.tokenizer.tokenizer import Tokenizer

# Requests of one model at once, and tokens an engine has room for unless more are needed.
SLOTS = 2
LEAST_CAPACITY = 2048
# Slots of what reads texts: one for the text, the others for what may continue it, by up to so many tokens.
READING = 8
CONTINUED = 256


@dataclass(frozen=True)
class Alternative:
    """A token that could have come instead.

    Attributes:
        id: its number in the vocabulary.
        token: its text, for people (U+FFFD where its bytes are not whole characters).
        probability: by the model's own distribution, before temperature and filters.
    """

    id: int
    token: str
    probability: float


@dataclass(frozen=True)
class GeneratedToken:
    """One token of an answer.

    Attributes:
        index: its number in the answer, from 0.
        id: its number in the vocabulary.
        token: its own text, for people; the token that ends a text shows its name.
        text: what became certain with it: the tokens' texts joined are the answer. "" where a character or a stop
            string may still be under way, and for the token that ends a text.
        probability, logprob: by the model's own distribution, before temperature and filters.
        alternatives: the likeliest tokens at this place, likeliest first; the chosen one is among them when it is
            one of those.
        finish: "stop" or "length" on the last token, else None.
        precision: of the weights that computed it.
        removed: the part of the model's own probability that a constraint took away; None without a constraint.
        unconstrained: the token that the model finds likeliest, the constraint aside; None without one.
    """

    index: int
    id: int
    token: str
    text: str
    probability: float
    logprob: float
    alternatives: tuple[Alternative, ...] = ()
    finish: Finish | None = None
    precision: str = ""
    removed: float | None = None
    unconstrained: Alternative | None = None

    @property
    def rejected(self) -> tuple[Alternative, ...]:
        """The alternatives without the token that was taken."""
        return tuple(one for one in self.alternatives if one.id != self.id)

    def to_dict(self) -> dict[str, Any]:
        """As plain data (public format; see docs); a logprob of minus infinity is None."""
        found = asdict(self)
        found["alternatives"] = [asdict(one) for one in self.alternatives]
        found["logprob"] = self.logprob if math.isfinite(self.logprob) else None
        if self.removed is None:
            del found["removed"], found["unconstrained"]
        return found


def generated_tokens(steps: Iterable[TokenEvent], tokenizer: Tokenizer) -> Generator[GeneratedToken]:
    """The tokens of an answer whose events came with log-probabilities."""
    for index, step in enumerate(steps):
        if step.id is None or step.logprob is None:
            continue
        logprob = step.logprob.logprob
        yield GeneratedToken(
            index=index,
            id=step.id,
            token=tokenizer.token_text(step.id),
            text=step.text,
            probability=math.exp(logprob),
            logprob=logprob,
            alternatives=tuple(_alternative(one, tokenizer) for one in step.top),
            finish=step.finish,
            precision=step.precision,
            removed=step.removed,
            unconstrained=None if step.unconstrained is None else _alternative(step.unconstrained, tokenizer),
        )


def _alternative(one: TokenLogprob, tokenizer: Tokenizer) -> Alternative:
    return Alternative(one.id, tokenizer.token_text(one.id), math.exp(one.logprob))


def request(
    ids: Sequence[int],
    stop: str | Sequence[str | int],
    *,
    max_tokens: int | None,
    alternatives: int,
    constraint: Constraint | None = None,
    drafter: Drafter | None = None,
    progress: Callable[[int, int], None] | None = None,
    **sampling: Any,
) -> Request:
    """A request for generated tokens: `stop` may mix strings and ids, which join the tokenizer's own.

    Raises:
        UsageError: an option out of its range.
    """
    listed = [stop] if isinstance(stop, str) else list(stop)
    ends = {int(one) for one in listed if not isinstance(one, str)} | set(sampling.pop("stop_token_ids", None) or ())
    return Request(
        tuple(ids),
        max_tokens=max_tokens,
        sampling=Sampling.of({**sampling, "stop_token_ids": ends}),
        stop=tuple(one for one in listed if isinstance(one, str)),
        logprobs=alternatives,
        constraint=constraint,
        drafter=drafter,
        progress=progress,
    )


class Engines:
    """One model's engines, made when first asked for: one per precision, and a larger one when an answer needs it.

    May be used from several threads.
    """

    def __init__(
        self, transformer: Transformer | Deferred, tokenizer: Tokenizer, source: str | Path | None = None
    ) -> None:
        self._transformer, self._tokenizer, self._source = transformer, tokenizer, source
        self._kept: dict[tuple[str, int | None], Engine] = {}
        self._reader: NativeReader | None = None
        self._lock = threading.Lock()

    def reader(self, capacity: int) -> Reader:
        """What reads texts of so many tokens exactly: the file's own blocks, while nothing has asked for the
        transformer and where the native engine computes the design; else the transformer."""
        with self._lock:
            capacity = min(max(capacity + CONTINUED, LEAST_CAPACITY), self._transformer.config.context)
            if awaited(self._transformer) and self._source is not None:
                if self._reader is None or self._reader.capacity < capacity:
                    with contextlib.suppress(GlassformerError):
                        self._reader = NativeReader(
                            NativeModel.from_gguf(self._source, exact=True, slots=READING, capacity=capacity)
                        )
                if self._reader is not None and self._reader.capacity >= capacity:
                    return self._reader
            return EagerReader(whole(self._transformer))

    def get(self, precision: str, capacity: int, cache_bits: int | None = None) -> Engine:
        """An engine of this precision, with room for so many tokens of prompt and answer, up to the context.

        `cache_bits` is as for `Engine`.

        Raises:
            UsageError: for an unknown precision.
        """
        if precision not in PRECISIONS:
            raise UsageError(f"Precision {precision!r} is unknown; choose {', '.join(PRECISIONS)}.")
        capacity = min(max(capacity, LEAST_CAPACITY), self._transformer.config.context)
        with self._lock:
            kind = precision, cache_bits
            engine = self._kept.get(kind)
            if engine is None or engine.capacity < capacity:
                # One that is still answering goes on until it has; it is only not asked again.
                self._kept.pop(kind, None)
                engine = self.make(precision, slots=SLOTS, capacity=capacity, cache_bits=cache_bits)
                self._kept[kind] = engine
            return engine

    def make(
        self,
        precision: str = "exact",
        *,
        native: bool = True,
        prefix_folder: Path | None = None,
        prefix_budget: int = 0,
        **options: Any,
    ) -> Engine:
        """An engine of one's own; options as for `Engine`. Prefixes are kept in a folder, of so many bytes, if named.

        "exact" is what the model's other verbs compute: for weights that are not float32 the transformer itself.
        """
        deferred = self._transformer
        if precision == "exact" and not isinstance(deferred, Deferred) and deferred.dtype != torch.float32:
            native = False
        if prefix_folder is not None:
            file = self._source if awaited(deferred) else None
            read = whole(deferred) if file is None else Path(file)
            options["prefix_files"] = PrefixFiles(prefix_folder, prefix_budget, read)
        return Engine(
            self._transformer,
            self._tokenizer,
            precision=precision,
            source=self._source,
            use_native=native,
            **options,
        )
