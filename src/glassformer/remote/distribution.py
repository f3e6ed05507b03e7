"""The next token's distribution by a server's model: whole words are counted there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glassformer.predict.distribution import Distribution
from glassformer.predict.next_words import Words

if TYPE_CHECKING:
    from glassformer.remote.model import RemoteModel


class RemoteDistribution(Distribution):
    """As `Distribution`; `warmth` is the temperature it was brought to."""

    def __init__(self, *given: Any, remote: RemoteModel, warmth: float = 1.0, **known: Any) -> None:
        super().__init__(*given, **known)
        self.remote, self.warmth = remote, warmth

    def temperature(self, t: float) -> Distribution:
        """The distribution at another temperature."""
        plain = super().temperature(t)
        known = {name: getattr(plain, name) for name in ("text", "ids", "longest", "model", "precision")}
        return RemoteDistribution(plain.logprobs, plain.tokenizer, remote=self.remote, warmth=self.warmth * t, **known)

    def words(self, k: int = 10, *, coverage: float = 0.95, max_expansions: int = 512, batch: int = 32) -> Words:
        """The `k` likeliest next words, each as an interval."""
        asked = {"k": k, "coverage": coverage, "max_expansions": max_expansions, "batch": batch}
        found = self.remote.verb("words", {"text": self.ids, "temperature": self.warmth, **asked})
        return Words(found.pop("words"), found.pop("finish"), **found)
