"""Whether a model and its texts have what a request names, before anything is computed.

Fields are read by their names, which mean the same in every view and verb: `layer`, `head`, `position`, `token`, ….
It tokenises texts and knows designs; no forward is run here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from glassformer.errors import SiteError, UsageError
from glassformer.interp.meaning import find
from glassformer.interp.patching import aligned
from glassformer.interp.traced import Traced
from glassformer.model.sites import canonical
from glassformer.views.edits import of_name

if TYPE_CHECKING:
    from glassformer.lm import Model
    from glassformer.views.session import Session

_LAYERS = {"layer", "layers"}
_POSITIONS = {"position", "positions", "query", "queries", "key"}
_TOKENS = {"token", "against", "answer", "wrong", "swap", "other", "of", "follow"}
_SITES = {"site", "sites"}
_OF_PARTS = _LAYERS | _TOKENS | _SITES | {"head"}
_OF_TEXTS = _POSITIONS | {"edits", "corrupted", "pairs", "word"}


class UnreadText(Traced):
    """A text before any forward: a trace's own checks, of layers, heads, positions and tokens."""

    def __init__(self, model: Model, ids: list[int]) -> None:
        self.ids, self.batched, self.vocabulary = ids, False, model.tokenizer
        self._forward: Any = SimpleNamespace(
            config=model.config, transformer=model.transformer, length=len(ids), edit=None
        )


def require_possible(session: Session, ask: Any) -> None:
    """Refuse what the request's model and texts do not have.

    Raises:
        SiteError: a layer, a head or a site, or an edit's place. ShapeError: a position, or prompts of different
            lengths. TextError: a text, a word or a token. UsageError: a fitted lens or a dictionary, or prompts without
            a difference.
    """
    given = {name: value for name in type(ask).model_fields if (value := getattr(ask, name)) is not None}
    if "through" in given:
        of_name(session.lenses, given["through"], "fitted lens")
    for name in given.get("lay", ()):
        of_name(session.dictionaries, name, "dictionary")
    sides = [given["a"], given["b"]] if {"a", "b"} <= given.keys() else [ask]
    sides = [side for side in sides if "model" in type(side).model_fields]  # the others are of files
    for side in sides:
        edits = getattr(side, "edits", None) or ()
        if edits:
            session.edited(side)
        if given.keys() & _OF_PARTS:
            _parts(UnreadText(session.model(getattr(side, "model", None)), []), ask, given)
        if edits or given.keys() & (_OF_TEXTS - {"edits"}):
            for text in _texts(session, side):
                _places(text, ask, given)
                _edited_places(text, edits)


def _parts(text: UnreadText, ask: BaseModel, given: Mapping[str, Any]) -> None:
    """Layers, heads, tokens and sites that a request names."""
    for name, value in given.items():
        if name in _LAYERS:
            for one in _numbers(value):
                text.layer(one)
        elif name == "head":
            if (layer := given.get("layer")) is None:
                raise UsageError("A head is one of a layer's; name the layer too.")
            text.head(value, text.layer(layer))
        elif name in _TOKENS and _spelled(ask, name):
            for token in value if isinstance(value, list) else [value]:
                if token is not None:
                    text.token_id(token)
        elif name in _SITES:
            for site in [value] if isinstance(value, str) else value:
                canonical(site, text.config)


def _spelled(ask: BaseModel, name: str) -> bool:
    """Whether a field that may name a token does: one that takes no text counts positions."""
    return str in get_args(type(ask).model_fields[name].annotation)


def _places(text: UnreadText, ask: BaseModel, given: Mapping[str, Any]) -> None:
    """Positions and a word that a request names."""
    for name, value in given.items():
        if name in _POSITIONS or (name == "against" and not _spelled(ask, name)):
            for position in _numbers(value):
                text.position(position)
    if "word" in given:
        find(text, given["word"], given.get("occurrence", -1))


def _edited_places(text: UnreadText, edits: Sequence[Any]) -> None:
    """Positions that edits name, of which the text needs every one."""
    for edit in edits:
        for value in (getattr(edit, name, None) for name in ("position", "source", "queries")):
            for position in _numbers(value):
                if position >= text.length:
                    raise SiteError(
                        f"An edit means position {position}, and the text has {text.length} tokens, positions 0 to "
                        f"{text.length - 1}."
                    )


def _numbers(value: Any) -> Iterator[int]:
    """The whole numbers of a field; what is a word or a stretch names none."""
    yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))


def _texts(session: Session, ask: Any) -> list[UnreadText]:
    """The texts that a request's positions are of.

    Raises:
        ShapeError, UsageError: the two prompts of a pair are none.
    """
    model, bos = session.model(getattr(ask, "model", None)), getattr(ask, "bos", None)

    def unread(text: Any) -> UnreadText:
        return UnreadText(model, model.ids(text, bos))

    pairs = list(getattr(ask, "pairs", ()))
    if getattr(ask, "corrupted", None) is not None:
        pairs.append((ask.text if "text" in type(ask).model_fields else ask.clean, ask.corrupted))
    for clean, corrupted in pairs:
        aligned(unread(clean), unread(corrupted))
    if pairs:
        return [unread(clean) for clean, _ in pairs]
    several = getattr(ask, "texts", None) or getattr(ask, "text", None) or []
    if isinstance(several, str) or (isinstance(several[:1], list) and several and isinstance(several[0], int)):
        several = [several]
    return [unread(text) for text in several]
