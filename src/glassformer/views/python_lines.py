"""Copy as Python: the lines that give a view's numbers, runnable as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from glassformer.errors import UsageError, near
from glassformer.views.asks import Strict, parsed
from glassformer.views.registry import VIEWS, Check, Json, view

if TYPE_CHECKING:
    from glassformer.views.session import Session


class PythonAsk(Strict):
    name: str = Field(description="A view.")
    arguments: Json = Field(default={}, description="Its parameters.")


def _edit(edit: Any) -> str | None:
    """The call that makes an edit; None for one that the Python API has no short form for."""
    e = edit
    at = "" if getattr(e, "position", None) is None else f", positions=[{e.position}]"
    if e.kind == "ablate_head":
        return f"gf.ablate(layer={e.layer}, head={e.head}{at})"
    if e.kind == "ablate_read":
        return f"gf.ablate(layer={e.layer}, head={e.head}, keys=[{e.source}]{at})"
    if e.kind == "ablate_attn":
        return f'gf.ablate(layer={e.layer}, part="attention"{at})'
    if e.kind == "ablate_mlp":
        return f'gf.ablate(layer={e.layer}, part="feed_forward"{at})'
    if e.kind == "ablate_neuron":
        return f"gf.ablate(layer={e.layer}, neuron={e.neuron}{at})"
    if e.kind == "knockout":
        queries = "" if e.queries is None else f"queries={e.queries}, "
        return f"gf.knockout(keys={e.source}, {queries}layer={e.layer}, head={e.head})"
    return None


@view("python", PythonAsk)
def lines(session: Session, ask: PythonAsk, check: Check) -> Json:
    """The lines of Python that give a view's numbers."""
    if ask.name not in VIEWS:
        raise UsageError(f"There is no view {ask.name!r}." + near(ask.name, VIEWS))
    chosen = VIEWS[ask.name]
    request = parsed(chosen.ask, ask.arguments)
    values = {name: getattr(request, name) for name in chosen.ask.model_fields}
    source = values.get("model") or session.current
    out = ["import glassformer as gf", "", f"model = gf.load({source!r})"]
    edits = [_edit(edit) for edit in values.get("edits") or []]
    own = ("bos", "task", "turn")  # what the Python API has other words for
    if not chosen.python or None in edits or any(values.get(name) is not None for name in own):
        plain = {key: value for key, value in request.model_dump(exclude_defaults=True).items() if key != "model"}
        out += ["from glassformer.views import Session", f"answer = Session(model).view({ask.name!r}, {plain!r})"]
    else:
        if edits:
            out.append(f"model = model.edited({', '.join(str(edit) for edit in edits)})")
        out.append(f"answer = {chosen.python.format(**values)}")
    return {"lines": "\n".join(out) + "\n"}
