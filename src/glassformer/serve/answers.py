"""One answer as it grows: text, reasoning, calls of tools, log-probabilities, and why it ended.

Every API's shapes are written from the `Delta`s that an `Answer` makes of the engine's events. It knows tokenizers and
the readers that take a model's output apart; it does not know HTTP, models or engines.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from glassformer.generate.sampling import TokenLogprob

if TYPE_CHECKING:
    from glassformer.generate.request import TokenEvent
    from glassformer.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Entry:
    """One token in an answer's (or a prompt's) log-probabilities.

    Attributes:
        id: the token.
        token: its part of the text, so that `text[offset : offset + len(token)] == token`; `bytes:\\x..` where its
            bytes are not whole characters.
        offset: characters of the text before it.
        logprob: None for a prompt's first token, which nothing predicted.
        top: the likeliest tokens at its place.
        removed: the part of the model's probability that the answer's form took away; None without one.
        unconstrained: the token that the model finds likeliest, the form aside; None without one.
    """

    id: int
    token: str
    offset: int
    logprob: float | None
    top: tuple[TokenLogprob, ...] = ()
    removed: float | None = None
    unconstrained: TokenLogprob | None = None


class Offsets:
    """Where each token of a text stands in it.

    Args:
        tokenizer: what ids stand for.
        start: whether the ids begin a text. specials: whether special tokens are part of it.
        offset: characters before the first token.
    """

    def __init__(self, tokenizer: Tokenizer, *, start: bool = False, specials: bool = False, offset: int = 0) -> None:
        self._tokenizer = tokenizer
        self._stream = tokenizer.stream(start=start, specials=specials)
        self._reached = offset

    def push(self, id: int) -> tuple[str, int]:
        """A token as it stands in the text, and how many characters stand before it."""
        new = self._stream.push(id)
        own = spelled(self._tokenizer, id)
        at = self._reached
        self._reached += len(new)
        if new.endswith(own):  # what was held back of earlier bytes may stand before it
            return own, at + len(new) - len(own)
        if own.endswith(new) and not own.startswith("bytes:"):  # a space that begins a text, a token that is not shown
            return new, at
        return own, at


def spelled(tokenizer: Tokenizer, id: int) -> str:
    """A token's text; `bytes:\\x..` where its bytes are not whole characters."""
    raw = tokenizer.token_bytes(id)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


@dataclass(frozen=True)
class CallDelta:
    """News of one call of a tool: its first delta carries id and name, all of them pieces of its arguments."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass
class Delta:
    """News of an answer: any of these may be empty."""

    text: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = field(default_factory=list)
    entries: Sequence[Entry] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.calls or self.entries)


class Reader(Protocol):
    """Takes a model's output apart."""

    def push(self, text: str) -> Delta:
        """What this piece of output makes certain."""
        ...

    def finish(self) -> Delta:
        """What was held back, when the output ends here."""
        ...


class PlainReader:
    """Output that is text and nothing else."""

    def push(self, text: str) -> Delta:
        return Delta(text)

    def finish(self) -> Delta:
        return Delta()


@dataclass
class Call:
    """A call of a tool, as far as it is known."""

    id: str
    name: str
    arguments: str = ""


class Answer:
    """One answer.

    Args:
        tokenizer: what ids stand for.
        stop_ids: tokens that end the answer and are no part of it.
        stop: strings that end it.
        reader: takes its output apart. specials: whether it reads special tokens too.
        offset: characters before the answer, where the prompt is echoed.

    Attributes:
        text, reasoning, calls: the answer so far.
        tokens: how many were computed. finish: why it ended ("stop", "length", "tool_calls"), or None.
        stopped_by: the stop string that ended it, or None. precision: of what computed it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop_ids: Collection[int],
        *,
        stop: Sequence[str] = (),
        reader: Reader | None = None,
        specials: bool = False,
        offset: int = 0,
    ) -> None:
        self._tokenizer, self._stop_ids, self._stop = tokenizer, frozenset(stop_ids), tuple(stop)
        self._reader = reader or PlainReader()
        self._offsets = Offsets(tokenizer, offset=offset)
        self._offset = offset
        self._shown = tokenizer.stream() if specials else None
        self._held = ""
        self._told = 0
        self._entries: list[Entry] = []
        self._ids: list[int] = []
        self._raw = 0  # characters of output, whatever the reader makes of them
        self.text = self.reasoning = ""
        self.calls: list[Call] = []
        self.finish: str | None = None
        self.stopped_by: str | None = None
        self.precision = ""

    @property
    def tokens(self) -> int:
        """Tokens computed, the one that ended the answer included."""
        return len(self._ids)

    def push(self, step: TokenEvent) -> Delta:
        """Take in an event; what it makes certain."""
        self._raw += len(step.text)
        self.precision = step.precision
        if step.id is not None:
            self._ids.append(step.id)
            if step.logprob is not None and step.id not in self._stop_ids:
                token, at = self._offsets.push(step.id)
                self._entries.append(
                    Entry(step.id, token, at, step.logprob.logprob, step.top, step.removed, step.unconstrained)
                )
        if step.finish == "stop" and step.id not in self._stop_ids:
            self.stopped_by = self._found_stop()
        text = step.text if self._shown is None else self._with_specials(step)
        delta = self._reader.push(text) if text else Delta()
        if step.finish is not None:
            rest = self._reader.finish()
            delta = Delta(delta.text + rest.text, delta.reasoning + rest.reasoning, [*delta.calls, *rest.calls])
        self._keep(delta)
        if step.finish is not None:
            self.finish = "tool_calls" if self.calls and step.finish == "stop" else step.finish
        entries = self.entries
        if len(entries) > self._told:
            delta.entries, self._told = entries[self._told :], len(entries)
        return delta

    def _keep(self, delta: Delta) -> None:
        self.text += delta.text
        self.reasoning += delta.reasoning
        for call in delta.calls:
            if call.index == len(self.calls):
                self.calls.append(Call(call.id or "", call.name or ""))
            self.calls[call.index].arguments += call.arguments

    def _with_specials(self, step: TokenEvent) -> str:
        """The output that is certain, special tokens included: what may be a stop string's beginning is held back."""
        assert self._shown is not None
        text = self._held
        if step.id is not None and step.id not in self._stop_ids:
            text += self._shown.push(step.id)
        hold = 0
        if step.finish is not None:
            text += self._shown.finish()
            if self.stopped_by is not None:
                text = text.partition(self.stopped_by)[0]
        elif self._stop:
            hold = max(map(len, self._stop)) - 1
        end = max(0, len(text) - hold)
        self._held = text[end:]
        return text[:end]

    def _found_stop(self) -> str | None:
        text = self._tokenizer.decode(self._ids, specials=False)
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    @property
    def entries(self) -> list[Entry]:
        """Tokens that are certain to belong to the output; the rest of a stop string never does."""
        if self.finish == "length":
            return self._entries
        end = self._offset + self._raw
        return [entry for entry in self._entries if entry.offset < end]
