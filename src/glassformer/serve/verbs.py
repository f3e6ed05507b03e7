"""The verbs of a model and of a trace as requests: each takes what its signature says, but for what cannot travel.

The types of parameters are read off the annotations; what is annotated with something that stays in one process (a
function, a tap) is no field. Bounds stand here, once for every verb. It knows no HTTP.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, Field, FiniteFloat, create_model

from glassformer.interp.edge_estimates import Method
from glassformer.interp.fingerprint import fingerprint
from glassformer.interp.trace import Trace
from glassformer.lm import Model
from glassformer.serve.fields import Name
from glassformer.system import files
from glassformer.views import Session
from glassformer.views.edges import LIMIT, PAIRS
from glassformer.views.edits import Edits, Strict
from glassformer.views.possible import require_possible

Check = Callable[..., None]
_TEXTS = 1_000_000  # texts or ids in one list


class Slice(Strict):
    """Positions from `start` to before `stop`."""

    start: int | None = None
    stop: int | None = None
    step: Annotated[int | None, Field(ge=1)] = None


_METRICS = Literal["logit_difference", "probability", "kl"]
# What annotations mean in a request.
_TYPES: dict[str, Any] = {
    "int": int,
    "str": str,
    "float": FiniteFloat,
    "bool": bool,
    "slice": Slice,
    "Tokens": str | int | list[str | int | None] | None,
    "What": Literal["stream", "attention", "feed_forward", "heads"],
    "Measured": Literal["unreliable", "strongest", "all", "none"],
    "Metric": _METRICS,
    "Method": Method,
    "Trace": str | list[int],
    "Readout": str,  # a fitted lens by its name on the server
    "Dictionary": str,
}
_NOT_OPTIONS = {"vocabulary", "bos", "text", "tap", "model", "limit"}  # what the method itself hands on
_BOUNDS: dict[str, dict[str, Any]] = {
    "k": {"ge": 1, "le": 100_000},
    "parts": {"ge": 0, "le": 100_000},
    "words": {"ge": 0, "le": 1000},
    "alternatives": {"ge": 1, "le": 100},
    "seed": {"ge": 0, "lt": 2**63},
    "length": {"ge": 2, "le": 512},
    "shuffles": {"ge": 0, "le": 1000},
    "strongest": {"ge": 0, "le": LIMIT},
    "steps": {"ge": 1, "le": 1000},
    "most": {"ge": 1, "le": 400},
    "coverage": {"gt": 0, "le": 1},
    "faithfulness": {"gt": 0, "le": 1},
    "dimensions": {"ge": 1, "le": 64},
    "window": {"ge": 2, "le": 4096},
    "tokens": {"ge": 1, "le": 1_000_000},
    "rows": {"ge": 1, "le": 4096},
    "max_expansions": {"ge": 1, "le": 4096},
    "batch": {"ge": 1, "le": 256},
    "temperature": {"gt": 0},
    "pairs": {"max_length": PAIRS},
    "texts": {"max_length": 64},
    "positive": {"max_length": 64},
    "negative": {"max_length": 64},
}


class OfModel(Strict):
    """A verb of a model, with edits."""

    model: Name | None = None
    edits: Edits = Field(default=[])


class OfTrace(OfModel):
    """A verb of the trace of a text, or of several."""

    text: Annotated[
        str | list[int] | list[str] | list[list[int]],
        Field(description="Text, or token ids; several of them for a trace of several."),
    ]
    bos: bool | None = Field(default=None, description="Whether the beginning-of-text token is put first.")


@dataclass(frozen=True)
class Verb:
    """One verb.

    Attributes:
        name: in the route. ask: what it takes. about: what it gives.
        call: `call(model_or_trace, **arguments)`. of_trace: whether it is a trace's.
        progress: whether it tells how far it is; limited: whether it measures edges, LIMIT at most.
    """

    name: str
    ask: type[BaseModel]
    about: str
    call: Callable[..., object]
    of_trace: bool
    progress: bool
    limited: bool

    def run(self, session: Session, ask: Any, check: Check) -> Any:
        """What the verb finds; `check` is called as it goes on, and with its progress where it tells that."""
        check()
        require_possible(session, ask)
        given = {name: _native(getattr(ask, name)) for name in ask.model_fields_set - set(self._base.model_fields)}
        if "through" in given:
            given["through"] = session.lens(ask)
        if "lay" in given:
            given["lay"] = session.laid(given["lay"])
        if "corrupted" in given:
            given["corrupted"] = _trace(session, OfTrace(model=ask.model, text=ask.corrupted))
        if self.progress:
            given["progress"] = check
        if self.limited:
            given["limit"] = LIMIT
        return self.call(_trace(session, ask) if self.of_trace else session.edited(ask), **given)

    @property
    def _base(self) -> type[BaseModel]:
        return OfTrace if self.of_trace else OfModel


def _native(value: object) -> Any:
    return slice(value.start, value.stop, value.step) if isinstance(value, Slice) else value


def _trace(session: Session, ask: Any) -> Trace:
    """The trace of a request's text, or of its texts."""
    if isinstance(ask.text, str) or (ask.text and isinstance(ask.text[0], int)):
        return session.trace(ask)
    return session.edited(ask).trace(ask.text, ask.bos)


def _verb(
    name: str, call: Callable[..., object], options: str | None = None, *, of_trace: bool = False, without: str = ""
) -> Verb:
    """The verb of a method.

    Args:
        options: the function that its further options go to, as module:function. without: a parameter left out.
    """
    more = None
    if options is not None:
        module, _, function = options.partition(":")
        more = attrgetter(function)(import_module(f"glassformer.{module}"))
    taken = {p.name for each in (call, more) if each is not None for p in inspect.signature(each).parameters.values()}
    base = OfTrace if of_trace else OfModel
    ask = create_model(
        "Verb" + "".join(word.title() for word in name.replace(".", "_").split("_")),
        __base__=base,
        **{name: field for name, field in _fields(call, more).items() if name != without},
    )
    about = " ".join((inspect.getdoc(call) or "").partition("\n\n")[0].split())
    return Verb(name, ask, about, call, of_trace, "progress" in taken, "limit" in taken)


def _fields(call: Callable[..., object], more: Callable[..., object] | None) -> dict[str, Any]:
    """The parameters that travel, with their types, bounds and defaults."""
    found: dict[str, Any] = {}
    own = list(inspect.signature(call).parameters.values())[1:]
    options = [] if more is None else list(inspect.signature(more).parameters.values())
    named = {p.name: p for p in options}
    for p in own + [p for p in options if p.name not in _NOT_OPTIONS and p.default is not p.empty]:
        if p.name in found or p.name == "progress" or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            continue
        note = str(p.annotation)
        if note == "Any" and p.name in named:
            note = str(named[p.name].annotation)
        try:
            kind = _type(ast.parse(note, mode="eval").body)
        except KeyError:
            continue
        if kind is type(None):
            continue
        if p.name in _BOUNDS and "str" not in note.split(" | "):
            kind = Annotated[kind, Field(**_BOUNDS[p.name])]
        found[p.name] = (kind, ... if p.default is p.empty else p.default)
    return found


def _type(node: ast.expr) -> Any:
    """The type that an annotation means in a request; a function's is that of nothing.

    Raises:
        KeyError: one that does not travel.
    """
    if isinstance(node, ast.Constant):
        return type(None) if node.value is None else node.value
    if isinstance(node, ast.BinOp):
        return Union[_type(node.left), _type(node.right)]  # noqa: UP007 - of values
    if isinstance(node, ast.Name):
        return _TYPES[node.id]
    if not (isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name)):
        raise KeyError(ast.unparse(node))
    if node.value.id == "Callable":
        return type(None)
    items = tuple(_type(one) for one in (node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]))
    if node.value.id == "Sequence":
        return Annotated[list[items[0]], Field(max_length=_TEXTS)]  # type: ignore[valid-type]
    heads: dict[str, Any] = {"tuple": tuple, "Literal": Literal}
    return heads[node.value.id][items]


# Verbs that a model's methods do not give as they are.


def _card(model: Model) -> dict[str, Any]:
    """What is known of a model: design, digest, precision, size."""
    return {
        "config": model.config.to_dict(),
        "fingerprint": fingerprint(model.transformer),
        "dtype": str(model.transformer.dtype).removeprefix("torch."),
        "precision": model.precision,
        "bytes": model.bytes,
        "adapters": list(model.adapters),
        "ignored": list(model.ignored),
    }


def _tokenizer(model: Model) -> dict[str, str]:
    """The files of the model's tokenizer: tokenizer.json and what stands beside it."""
    with files.scratch() as folder:
        model.tokenizer.save(folder)
        return {path.name: path.read_text("utf-8") for path in sorted(folder.iterdir()) if path.is_file()}


def _next(model: Model, text: str | Sequence[int], bos: bool | None = None) -> dict[str, Any]:
    """The probability of every next token after a text."""
    found = model.next(text, bos)
    return {"logprobs": found.logprobs, "precision": found.precision, "longest": found.longest}


def _words(
    model: Model, text: str | Sequence[int], bos: bool | None = None, temperature: float = 1.0, **options: Any
) -> dict[str, Any]:
    """Whole next words after a text, each as an interval."""
    found = model.next(text, bos)
    if temperature != 1.0:
        found = found.temperature(temperature)
    words = found.words(**options)
    return {
        "words": list(words),
        "finish": list(words.finish),
        "coverage": words.coverage,
        "finish_coverage": words.finish_coverage,
        "starts": words.starts,
        "expansions": words.expansions,
    }


def verbs() -> Mapping[str, Verb]:
    """The verbs by name."""
    made = [
        _verb("card", _card),
        _verb("tokenizer", _tokenizer),
        _verb("next", _next),
        _verb("words", _words, "predict.distribution:Distribution.words"),
        _verb("logits", Model.logits),
        _verb("neighbours", Model.neighbours),
        _verb("heads", Model.heads, "interp.heads:head_scores"),
        _verb("meaning", Model.meaning, "interp.meaning:meaning"),
        _verb("patch", Model.patch, "interp.patching:patch", without="metric"),
        _verb("direction", Model.direction, "interp.directions:direction"),
        _verb("readout", Model.readout, "interp.fitting:fit"),
        _verb("moved", Model.moved),
        _verb("circuit", Model.circuit, "interp.edges:edges"),
    ]
    of_trace = {
        "at": None,
        "tensor": None,
        "mean": None,
        "cost": None,
        "pattern": None,
        "channel_pattern": None,
        "scores": None,
        "head_outputs": None,
        "contributions": None,
        "weighted": None,
        "cell": None,
        "reasons": None,
        "lens": "interp.lens:lens",
        "lens_edit": "interp.lens_edits:lens_edit",
        "why": "interp.why:why",
        "edges": "interp.edges:edges",
        "graph": "interp.prediction_graph:prediction_graph",
        "heads": "interp.heads:head_scores",
        "neurons": "interp.neurons:top_neurons",
        "experts": "interp.experts:experts",
        "gradient": "interp.gradient:gradients",
        "gradients": "interp.gradient:gradients",
    }
    made += [_verb(f"trace.{name}", getattr(Trace, name), more, of_trace=True) for name, more in of_trace.items()]
    return {verb.name: verb for verb in made}
