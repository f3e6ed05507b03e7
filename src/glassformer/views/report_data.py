"""What a report is about, as each view's report part sees it; answers are kept with the parameters they belong to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from glassformer.errors import GlassformerError
from glassformer.views.asks import Ask, parsed
from glassformer.views.registry import VIEWS, Check, Json

if TYPE_CHECKING:
    from glassformer.views.session import Session

Head = tuple[int, int]


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows beyond its text.

    Attributes:
        other: {"text", "model"} laid beside the text; either may be missing.
        word, contexts: one word in several texts.
        texts: several texts, in which the first choice's probability is laid side by side.
        run: a training run of the session, with its journal and probes.
        learning: one gradient step on the text (and the run, where there is one).
        first: heads, as (layer, head), whose patterns are kept before all others.
        position: the one that is explained and followed; token, against: what is explained there.
        given: answers of views that were computed before, by name, kept as they are.
        state: where the page opens: layer, head, sort …
        light: leaves out what takes longest, whole words and what the model's heads do on sequences of their own.
        look: what is scrolled to at the beginning, as a CSS selector.
    """

    other: Mapping[str, Any] | None = None
    word: str | None = None
    contexts: Sequence[str] = ()
    texts: Sequence[str] = ()
    run: str | None = None
    learning: bool = False
    first: Sequence[Head] = ()
    position: int = -1
    token: str | None = None
    against: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    light: bool = False
    look: str | None = None


@dataclass(frozen=True)
class ReportDraft:
    """One report being made: its text, model, edits and rooms, and the answers asked for so far.

    Attributes:
        count: tokens of the text; explained: the position that is explained.
        say: called with what is computed next, for whoever waits.
    """

    session: Session
    text: str
    model: str | None
    bos: bool | None
    edits: list[Json]
    rooms: Sequence[str]
    options: ReportOptions
    count: int
    explained: int
    check: Check
    say: Any
    asked: dict[str, Json] = field(default_factory=dict)

    @property
    def same(self) -> Json:
        """The parameters that every view of the text shares."""
        return {"text": self.text, "model": self.model, "bos": self.bos, "edits": self.edits}

    @property
    def request(self) -> Any:
        """The same as a checked request."""
        return parsed(Ask, self.same)

    @property
    def plain(self) -> Json:
        """The prediction that is explained, of the model as it is."""
        options = self.options
        return {"edits": [], "position": self.explained, "token": options.token, "against": options.against}

    def ask(self, name: str, /, **parameters: object) -> Json:
        """A view of the report's text: asked once, or what was given."""
        if name in self.options.given:
            return dict(self.options.given[name])
        fields = VIEWS[name].ask.model_fields
        ask = {**{k: v for k, v in self.same.items() if k in fields}, **parameters}
        key = name + json.dumps(ask, sort_keys=True, default=str)
        if key not in self.asked:
            self.check()
            self.say(name)
            self.asked[key] = self.session.view(name, ask, self.check)
        return self.asked[key]

    def kept(self, name: str, /, **parameters: object) -> Iterator[tuple[Json, Json]]:
        """An answer with the parameters that it belongs to, as a report keeps it."""
        if "edits" in VIEWS[name].ask.model_fields:
            parameters = {"edits": self.edits, **parameters}
        yield parameters, self.ask(name, **parameters)

    def tried(self, name: str, /, **parameters: object) -> Iterator[tuple[Json, Json]]:
        """`kept`, or in place of the answer the sentence that says why there is none."""
        try:
            yield from self.kept(name, **parameters)
        except GlassformerError as error:
            yield parameters, {"problem": str(error)}

    @property
    def why(self) -> Json:
        """The account of the prediction that is explained."""
        return self.ask("why", **self.plain)

    @cached_property
    def heads(self) -> list[Head]:
        """The heads kept before others: those asked for, then those on which the prediction depends most."""
        parts = self.why["parts"] if "why" in self.rooms else []
        measured = [(p["layer"], p["head"]) for p in parts if p["kind"] == "head"]
        return list(dict.fromkeys([*self.options.first, *measured]))
