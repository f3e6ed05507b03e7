"""The report: one HTML file with the real numbers of one text inside, that works offline.

It asks the studio's views and keeps their answers; the page's own modules draw them. What is left out so that the
file stays small is `gathering`'s choice, and the page says so where one looks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glassformer.errors import TextError
from glassformer.views import bundle, report_data

if TYPE_CHECKING:
    from glassformer.views.session import Check, Studio

# Rooms of a text alone; comparing, meaning and learning come with what they need to be told.
ROOMS = ("attention", "depth", "why", "size")
# A text up to this many tokens has every position's journey inside.
ALL_JOURNEYS = 12
LONGEST = 512


@dataclass(frozen=True)
class Wishes:
    """What a report is to show beyond its text.

    Attributes:
        other: {"text", "model"} laid beside the text; either may be missing.
        word, contexts: one word in several texts.
        run: a training run of the studio, with its journal and probes.
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
    run: str | None = None
    learning: bool = False
    first: Sequence[tuple[int, int]] = ()
    position: int = -1
    token: str | None = None
    against: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    light: bool = False
    look: str | None = None


def _never() -> None:
    return None


def build(
    studio: Studio,
    text: str,
    edits: Sequence[Any] = (),
    *,
    model: str | None = None,
    bos: bool | None = None,
    rooms: Sequence[str] = ROOMS,
    wishes: Wishes | None = None,
    title: str | None = None,
    check: Check = _never,
) -> str:
    """The report of a text, as HTML.

    Args:
        edits: what is switched off, as the views take it.
        model: of the studio; the current one by default.
        bos: as for `encode`.
        rooms: which it has; those that the wishes need are added.
        wishes: what else it shows, and where it opens.
        title: of the page; by default the text's beginning.
        check: called between views; raises `Cancelled` to stop.

    Raises:
        TextError: for a text of more than 512 tokens, or one the model cannot read.
    """
    data = collect(studio, text, edits, model=model, bos=bos, rooms=rooms, wishes=wishes, check=check)
    short = text if len(text) <= 60 else text[:59] + "…"
    return bundle.page(title or f"{short} · Glassformer", data, "start")


def collect(
    studio: Studio,
    text: str,
    edits: Sequence[Any] = (),
    *,
    model: str | None = None,
    bos: bool | None = None,
    rooms: Sequence[str] = ROOMS,
    wishes: Wishes | None = None,
    check: Check = _never,
) -> dict[str, Any]:
    """What a report holds, as plain data."""
    wishes = wishes or Wishes()
    plain = [edit if isinstance(edit, dict) else edit.model_dump() for edit in edits]
    same = {"text": text, "model": model, "bos": bos, "edits": plain}

    def ask(view: str, **more: Any) -> dict[str, Any]:
        check()
        return studio.view(view, {**same, **more}, check)

    def plainly(view: str, **more: Any) -> dict[str, Any]:
        """Of the model as it is, which is what is explained."""
        return ask(view, edits=[], **more)

    tokens = ask("tokens")
    count = len(tokens["tokens"])
    if count > LONGEST:
        raise TextError(f"A report holds at most {LONGEST} tokens and this text has {count}; shorten it.")
    if not -count <= wishes.position < count:
        raise TextError(f"The text has {count} tokens, so there is no position {wishes.position}.")
    rooms = _with(rooms, wishes)
    explained = range(count)[wishes.position]
    question = {"position": explained, "token": wishes.token, "against": wishes.against}
    data: dict[str, Any] = {
        "text": text,
        "model": model,
        "edits": plain,
        "rooms": rooms,
        "explained": explained,
        "state": {**wishes.state, "token": wishes.token, "against": wishes.against},
        "look": wishes.look,
        "tokens": tokens,
        "next": report_data.nexts(ask, count),
        "words": None if wishes.light else ask("words", position=explained),
    }
    given = {k: v for k, v in wishes.given.items() if k != "lens"}
    if "why" in rooms:
        data["why"] = given.get("why") or plainly("why", **question)
        data["neurons"] = given.get("neurons") or plainly("neurons", **question, top=16)
        data["effects"] = report_data.effects(
            lambda view, **more: ask(view, position=explained, **more), data["why"]["parts"], plain
        )
    if "attention" in rooms:
        data["thumbnails"] = ask("thumbnails")
        data["heads"] = given.get("heads")
        if not wishes.light:
            data["heads"] = data["heads"] or studio.view("heads", {"model": model}, check)
        first = list(dict.fromkeys([*wishes.first, *report_data.telling_heads(data.get("why"))]))
        data["attention"] = report_data.patterns(studio, same, first, check)
        data["cells"] = report_data.cells(ask, studio, same, first, count)
    if "depth" in rooms:
        data["lens"] = report_data.lens(wishes.given.get("lens") or ask("lens", top=3))
        at = range(count) if count <= ALL_JOURNEYS else sorted({count - 1, explained})
        data["journeys"] = {str(i): ask("journey", position=i) for i in at}
    if "compare" in rooms:
        data["compare"] = report_data.compared(studio, same, dict(wishes.other or {}), check)
        data["compare"]["patch"] = {**data["compare"].get("patch", {}), **given.get("patch", {})}
    if "meaning" in rooms:
        asked = {"model": model, "bos": bos, "word": wishes.word, "texts": list(wishes.contexts)}
        data["meaning"] = given.get("meaning") or studio.view("meaning", asked, check)
        data["state"] |= {"word": wishes.word, "contexts": list(wishes.contexts)}
    if "learning" in rooms:
        data |= report_data.learning(studio, same, wishes.run, check)
    if "size" in rooms:
        data["size"] = {
            "": studio.view("size", {"model": model}, check),
            "gpt3": studio.view("size", {"name": "gpt3"}, check),
        }
    shorter: dict[str, Any] = _rounded(data)
    return shorter


def _with(rooms: Sequence[str], wishes: Wishes) -> list[str]:
    """The rooms in the page's order, with those that the wishes need."""
    order = ("attention", "depth", "why", "compare", "meaning", "learning", "size")
    wanted = {*rooms}
    wanted |= {"compare"} if wishes.other else set()
    wanted |= {"meaning"} if wishes.word else set()
    wanted |= {"learning"} if wishes.learning or wishes.run else set()
    return [room for room in order if room in wanted]


def _rounded(value: Any) -> Any:
    """Numbers to six significant digits, more than the page shows: a third of the file."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
