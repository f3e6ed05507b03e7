"""The views by name: each is declared once, where its function stands, and everything else follows from here.

A view is a function from a checked request to plain data. `@view` declares its name, its parameters (typed, bounded,
documented), the room of the page it belongs to, what a report keeps of it, and the lines of Python that give the same
numbers. The page, the notebook, the report, the HTTP API and docs/views.md read this table; it knows no view itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

Check = Callable[..., None]
"""Called between steps, with nothing, with (done, total, what), or with that and what was found so far; raises
`Cancelled` when nobody waits any more."""
Json = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True)
class View:
    """One view.

    Attributes:
        name: by which it is asked for.
        ask: its parameters; unknown ones are refused.
        answer: `answer(session, ask, check)` gives plain data; `check` is called between steps and raises
            `Cancelled` when nobody waits any more.
        room: the room of the page that shows it, or None for all of them.
        report: what a report keeps of it: pairs of parameters and answers, or one dictionary of its own shape.
        trims: parameters that only shorten the answer, so that a report's answer serves any of their values.
        python: the expression of the Python API that gives the same, with the parameters in braces.
    """

    name: str
    ask: type[BaseModel]
    answer: Callable[[Any, Any, Check], Json]
    room: str | None = None
    report: Callable[[Any], Iterable[tuple[Json, Json]] | Json | None] | None = None
    trims: tuple[str, ...] = ()
    python: str = ""

    @property
    def about(self) -> str:
        """What it shows, in a sentence."""
        return " ".join((self.answer.__doc__ or "").partition("\n\n")[0].split())

    @property
    def keys(self) -> Json:
        """Parameters that tell one answer of a report from another, with their defaults."""
        shared = {"text", "model", "bos", *self.trims}
        return {
            name: None if field.is_required() else field.get_default(call_default_factory=True)
            for name, field in self.ask.model_fields.items()
            if name not in shared
        }

    def schema(self) -> Json:
        """JSON schema of its parameters."""
        return self.ask.model_json_schema()


VIEWS: dict[str, View] = {}


def view(name: str, ask: type[BaseModel], **more: Any) -> Callable[[Any], Any]:
    """Declare the function below as the view `name` with the parameters `ask`; `more` is the rest of `View`."""

    def declare(answer: Any) -> Any:
        if name in VIEWS:
            raise ValueError(f"There are two views called {name!r}.")
        VIEWS[name] = View(name, ask, answer, **more)
        return answer

    return declare
