"""The report: one HTML file with the real numbers of one text inside, that works offline.

It asks each view of its rooms for the view's report part and keeps the answers; the page's own modules draw them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from glassformer.errors import TextError
from glassformer.views import bundle
from glassformer.views.registry import VIEWS, Check, Json
from glassformer.views.report_data import ReportDraft, ReportOptions

if TYPE_CHECKING:
    from glassformer.views.session import Session

# Rooms of a text alone; those of several texts, of meaning and of learning come with what they need to be told.
ROOMS = ("stage", "attention", "depth", "why", "facts", "size")
ORDER = (
    "stage",
    "attention",
    "depth",
    "why",
    "facts",
    "compare",
    "texts",
    "vectors",
    "meaning",
    "learning",
    "size",
)
LONGEST = 512


def _silent(*_: object) -> None:
    return None


def build(session: Session, text: str, edits: Sequence[Any] = (), *, title: str | None = None, **more: Any) -> str:
    """The report of a text, as HTML.

    Args:
        edits: what is switched off, as the views take it.
        title: of the page; by default the text's beginning.
        more: the rest of `collect`'s arguments.

    Raises:
        TextError: for a text of more than 512 tokens, or one the model cannot read.
    """
    data = collect(session, text, edits, **more)
    short = text if len(text) <= 60 else text[:59] + "…"
    return bundle.page(title or f"{short} · Glassformer", data, "start")


def collect(
    session: Session,
    text: str,
    edits: Sequence[Any] = (),
    *,
    model: str | None = None,
    bos: bool | None = None,
    rooms: Sequence[str] = ROOMS,
    options: ReportOptions | None = None,
    check: Check = _silent,
    say: Callable[[str], None] = _silent,
) -> Json:
    """What a report holds, as plain data.

    Args:
        edits: what is switched off, as the views take it.
        model: of the session; the current one by default.
        bos: as for `encode`.
        rooms: which it has; those that the options need are added.
        options: what else it shows, and where it opens.
        check: called between views; raises `Cancelled` to stop.
        say: called with the name of each view before it is computed.
    """
    options = options or ReportOptions()
    plain = [edit if isinstance(edit, dict) else edit.model_dump() for edit in edits]
    tokens = session.view("tokens", {"text": text, "model": model, "bos": bos, "edits": plain}, check)
    count = len(tokens["tokens"])
    if count > LONGEST:
        raise TextError(f"A report holds at most {LONGEST} tokens and this text has {count}; shorten it.")
    if not -count <= options.position < count:
        raise TextError(f"The text has {count} tokens, so there is no position {options.position}.")
    rooms = _with(rooms, options)
    explained = range(count)[options.position]
    draft = ReportDraft(session, text, model, bos, plain, rooms, options, count, explained, check, say)
    data: Json = {
        "text": text,
        "model": model,
        "edits": plain,
        "rooms": rooms,
        "explained": explained,
        "state": {**options.state, "token": options.token, "against": options.against},
        "look": options.look,
        "tokens": tokens,
        "answers": {},
        "keys": {name: view.keys for name, view in VIEWS.items()},
    }
    if "meaning" in rooms:
        data["state"] |= {"word": options.word, "contexts": list(options.contexts)}
    if "texts" in rooms:
        data["state"]["table"] = {"texts": list(options.texts), "metric": "probability", "token": None, "against": None}
    if "compare" in rooms:
        other = options.other or {}
        data["other"] = {"text": other.get("text") or text, "model": other.get("model")}
    for name, view in VIEWS.items():
        if view.report is None or (view.room is not None and view.room not in rooms):
            continue
        found = view.report(draft)
        if isinstance(found, dict):
            data[name] = found
        elif found is not None:
            data["answers"][name] = [[_of(parameters), answer] for parameters, answer in found]
    shorter: Json = _rounded(data)
    return shorter


def _of(parameters: Json) -> Json:
    return {k: v for k, v in parameters.items() if k not in ("text", "model", "bos") and v is not None}


def _with(rooms: Sequence[str], options: ReportOptions) -> list[str]:
    """The rooms in the page's order, with those that the options need."""
    wanted = {*rooms}
    wanted |= {"compare"} if options.other else set()
    wanted |= {"meaning"} if options.word else set()
    wanted |= {"texts"} if options.texts else set()
    wanted |= {"learning"} if options.learning or options.run else set()
    return [room for room in ORDER if room in wanted]


def _rounded(value: object) -> Any:
    """Numbers to six significant digits, more than the page shows: a third of the file."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
