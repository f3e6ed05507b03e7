"""Ids to text as they come, until a stop token or stop string: text comes out only once it is certain to be wanted.

It knows how text comes from ids (the tokenizer's stream) and what ends it; it does not know models or requests.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from glassformer.errors import UsageError

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer

MOST_STOPS = 16
LONGEST_STOP = 500


class StopMatcher:
    """One answer's text.

    Args:
        tokenizer: what ids stand for; None gives no text, only stop ids work.
        stop: strings that end the answer and are not part of it.
        stop_ids: tokens that end it.

    Raises:
        UsageError: for too many, empty or overlong stop strings, or stop strings without a tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str] = (), stop_ids: Collection[int] = ()) -> None:
        if len(stop) > MOST_STOPS:
            raise UsageError(f"At most {MOST_STOPS} stop strings are possible; got {len(stop)}.")
        for text in stop:
            if not 0 < len(text) <= LONGEST_STOP:
                raise UsageError(f"A stop string must have 1 to {LONGEST_STOP} characters; one has {len(text)}.")
        if stop and tokenizer is None:
            raise UsageError("Stop strings need a tokenizer; without one only stop ids work.")
        self._stream = None if tokenizer is None else tokenizer.stream(specials=False)
        self._stop = tuple(stop)
        self._stop_ids = frozenset(stop_ids)
        self._held = ""
        self.stopped = False

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end the answer."""
        return self._stop_ids

    def push(self, id: int, *, may_stop: bool = True) -> str:
        """The text that this token makes certain; sets `stopped` when the answer ends with it.

        With `may_stop` false the answer goes on whatever the token and the text are.
        """
        if may_stop and id in self._stop_ids:
            self.stopped = True
            return self.finish()
        if self._stream is None:
            return ""
        new = self._stream.push(id)
        if may_stop:
            return self._take(new)
        text, self._held = self._held + new, ""
        return text

    def finish(self) -> str:
        """What was held back, when the answer ends here."""
        text = self._take("" if self._stream is None else self._stream.finish())
        if not self._at_stop:
            text, self._held = text + self._held, ""
        return text

    _at_stop = False

    def _take(self, new: str) -> str:
        if self._at_stop:
            return ""
        text = self._held + new
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = self._at_stop = True
            self._held = ""
            return text[: min(at for at, _ in found)]
        hold = max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def overlap(text: str, stop: str) -> int:
    """How long an ending of `text` is a beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
