"""`@looking`: what the verbs that look inside a model share, declared once.

A verb is a function of a `Look` and of its own options, which gives what it found as `Seen`; the options that all of
them have, opening the model, and where an answer goes (terminal, JSON, picture, page) are here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from glassformer.cli.common import BosOption, JsonOption, ModelOption, need, note, open_model, print_json
from glassformer.cli.pages import HtmlOption, write_page
from glassformer.errors import UsageError
from glassformer.system import files

if TYPE_CHECKING:
    from glassformer.lm import Model

PngOption = Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Write a picture.")]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="float32, float64, bfloat16 or float16; float64 to check a number again.")
]
# The options of looking verbs; the model's comes after what must be given, the others after the verb's own options.
_SHARED: dict[str, tuple[Any, Any]] = {
    "model": (ModelOption, None),
    "bos": (BosOption, None),
    "dtype": (DtypeOption, "auto"),
    "as_json": (JsonOption, False),
    "png": (PngOption, None),
    "html": (HtmlOption, None),
}


@dataclass(frozen=True)
class Look:
    """What a looking verb is asked beside its own options.

    Attributes:
        verb: its name.
        model: the source; bos: whether texts begin with the begin-of-text token; dtype: of the weights.
        as_json: whether JSON is printed.
        png, html: files for a picture and a page.
    """

    verb: str
    model: str | None
    dtype: str
    as_json: bool
    bos: bool | None = None
    png: Path | None = None
    html: Path | None = None

    @property
    def pictured(self) -> bool:
        """Whether a picture or a page is asked for."""
        return self.png is not None or self.html is not None

    def open(self) -> Model:
        """The model; refused beforehand where a picture cannot be drawn."""
        if self.png is not None:
            need("matplotlib", verb=f"{self.verb} --png", extra="plot")
        return open_model(self.model, dtype=self.dtype)


PageOf = tuple["Model", str, str, dict[str, Any]]
"""The model, text and room of a page, and the further arguments of `write_page`."""


@dataclass(frozen=True)
class Seen:
    """What a looking verb found.

    Attributes:
        data: for JSON.
        show: prints it for a person.
        picture: which drawing of `interp.plots` shows it, and of what data; None where there is none.
        page: what a page is made of.
    """

    data: dict[str, Any]
    show: Callable[[], None]
    picture: Callable[[], tuple[str, dict[str, Any]]] | None = None
    page: Callable[[], PageOf] | None = None


def looking(
    function: Callable[..., Seen] | None = None, *, drawn: bool = True, reads: bool = True
) -> Callable[..., Any]:
    """The verb `command` of a function of a `Look` and the verb's own options.

    Args:
        drawn: whether it can be asked for a picture and a page; reads: whether it reads texts (--bos).
    """
    if function is None:
        return partial(looking, drawn=drawn, reads=reads)
    shares = [name for name in _SHARED if (drawn or name not in ("png", "html")) and (reads or name != "bos")]
    verb = function.__module__.rpartition(".")[2]

    def command(**given: Any) -> None:
        look = Look(verb, **{name: given.pop(name) for name in shares})
        for path in (look.png, look.html):
            if path is not None:
                files.writable(path)
        seen = function(look, **given)
        if look.png is not None:
            if seen.picture is None:
                raise UsageError(f"There is no picture of what {verb} shows here; leave --png out.")
            draw(*seen.picture(), look.png)
        if look.html is not None:
            if seen.page is None:
                raise UsageError(f"There is no page of what {verb} shows here; leave --html out.")
            model, text, room, options = seen.page()
            write_page(look.html, model, text, room, bos=look.bos, **options)
        if look.as_json:
            print_json(seen.data)
        elif not look.pictured:
            seen.show()

    hints = get_type_hints(function, include_extras=True)
    own = list(inspect.signature(function).parameters.values())[1:]
    first = sum(_is_argument(hints[one.name]) or one.default is one.empty for one in own)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_SHARED[name][1], annotation=_SHARED[name][0])
        for name in shares
    ]
    own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[one.name]) for one in own]
    ordered = [*own[:first], shared[0], *own[first:], *shared[1:]]
    command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in ordered}
    command.__doc__, command.__module__ = function.__doc__, function.__module__
    return command


def _is_argument(hint: object) -> bool:
    return any(isinstance(note, typer.models.ArgumentInfo) for note in getattr(hint, "__metadata__", ()))


def at_least_one(**options: int) -> None:
    """Refuse counts below 1, by their options' names.

    Raises:
        UsageError: naming the first of them.
    """
    for name, value in options.items():
        if value < 1:
            raise UsageError(f"--{name} is 1 or more; {value} is not.")


def draw(kind: str, data: dict[str, Any], png: Path) -> None:
    """A picture of `interp.plots`, written."""
    from glassformer.interp import plots

    files.write_with(png, lambda draft: getattr(plots, f"{kind}_png")(data, draft))
    note(f"Wrote {png}.")
