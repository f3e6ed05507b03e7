"""The page's views in Jupyter: `view(model, text)`, or one room of it of a trace.

A live widget (anywidget) asks this kernel for what it shows; where widgets cannot run (an exported page,
a viewer, anywidget not installed) the same view stands there with its numbers inside. The modules that
draw are the app's own; this file only carries questions and answers.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from glassformer.errors import GlassformerError, UsageError
from glassformer.system import files
from glassformer.views import Session, bundle, report
from glassformer.views.report_data import ReportOptions

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.lm import Model

# What a live widget shows; a room that a static view cannot hold is left out there.
ROOMS = ("attention", "depth", "why", "compare", "meaning", "size")
HEIGHT = 900


class StaticView:
    """A view with its numbers inside, for wherever no widget can run.

    Attributes:
        page: the whole HTML page.
    """

    def __init__(self, page: str, height: int = HEIGHT) -> None:
        self.page = page
        self.height = height

    def _repr_html_(self) -> str:
        return (
            f'<iframe title="Glassformer" sandbox="allow-scripts allow-downloads" srcdoc="{html.escape(self.page)}" '
            f'style="width: 100%; height: {self.height}px; border: 0"></iframe>'
        )

    def save(self, path: str) -> None:
        """Write the page into a file."""
        files.write_text(path, self.page)


def view(model: Model, text: str, *, rooms: Sequence[str] = ROOMS, height: int = HEIGHT, live: bool = True) -> Any:
    """The page for a model and a text: next word, attention, depth, why, compare, meaning, size.

    Where an exported notebook cannot run the widget, a static view stands in its place, without what takes long.

    Args:
        rooms: which of those rooms, the first one open.
        height: of the widget, in pixels.
        live: False gives a static view, which needs no kernel afterwards.

    Returns:
        An anywidget, or a `StaticView` where anywidget is not installed.

    Raises:
        UsageError: for a room there is not.
    """
    return _shown(Session(model), text, rooms, height, live)


def of_trace(trace: Trace, room: str, *, height: int = HEIGHT, live: bool = True) -> Any:
    """One room of the page ("attention", "depth", "why") for a trace that has already run.

    Raises:
        UsageError: for a batch, a trace without vocabulary, or a room there is not.
    """
    from glassformer.lm import Model

    tokenizer: Any = trace.vocabulary
    if trace.batched or tokenizer is None or not hasattr(tokenizer, "decode"):
        raise UsageError("A view needs the trace of one text, made by model.trace(text).")
    if trace.forward.edit is not None:
        raise UsageError("This trace is of an edited model; show it by model.edited(...).view(text).")
    model = Model(trace.transformer, tokenizer, name=trace.model or "model")
    text = tokenizer.decode(trace.ids)
    session = Session(model)
    session.keep(trace)
    if model.ids(text) != list(trace.ids):
        raise UsageError("The trace's tokens are not how its text is cut, so the page cannot show them; trace a text.")
    return _shown(session, text, [room], height, live)


def _shown(session: Session, text: str, rooms: Sequence[str], height: int, live: bool) -> Any:
    unknown = [room for room in rooms if room not in ROOMS]
    if unknown or not rooms:
        raise UsageError(f"A view has the rooms {', '.join(ROOMS)}; got {', '.join(map(str, unknown)) or 'none'}.")
    try:
        import anywidget  # noqa: F401
    except ImportError:
        live = False
    fixed = [room for room in rooms if room in report.ROOMS]
    if not live:
        return StaticView(report.build(session, text, rooms=fixed or ["size"]), height)
    return _widget_class()(session, text, list(rooms), fixed, height)


@cache
def _widget_class() -> Any:
    import anywidget
    import traitlets

    class LiveView(anywidget.AnyWidget):
        """The page in a frame; every number it asks for is computed in this kernel."""

        _esm = (bundle.WEB / "js" / "notebook.js").read_text("utf-8")
        page = traitlets.Unicode("").tag(sync=True)
        height = traitlets.Int(HEIGHT).tag(sync=True)

        def __init__(self, session: Session, text: str, rooms: list[str], fixed: list[str], height: int) -> None:
            page = bundle.page("Glassformer", {"text": text, "rooms": rooms}, "embed")
            super().__init__(page=page, height=height)
            self.session, self.text, self.fixed = session, text, fixed
            self.on_msg(_answer)

        def _repr_mimebundle_(self, **kwargs: Any) -> Any:
            made = super()._repr_mimebundle_(**kwargs)
            if made is None or not self.fixed:
                return made
            data, metadata = made
            # The widget is not shown before this is written: only what is quick goes in, unless nothing else was asked.
            quick = [room for room in self.fixed if room != "why"] or self.fixed
            options = ReportOptions(light=True)
            static = StaticView(report.build(self.session, self.text, rooms=quick, options=options), self.height)
            return {**data, "text/html": static._repr_html_()}, metadata

    return LiveView


def _answer(widget: Any, content: Any, buffers: Any) -> None:
    """Compute what the frame asked for and send it back."""
    if not isinstance(content, dict) or "id" not in content:
        return
    try:
        found = widget.session.view(str(content.get("view")), content.get("args"))
    except GlassformerError as error:
        widget.send({"id": content["id"], "error": str(error)})
    else:
        widget.send({"id": content["id"], "data": found})
