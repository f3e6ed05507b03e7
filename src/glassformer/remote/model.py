"""`RemoteModel`: a model on a server, with the verbs of `Model` and the same results.

It sends requests and puts together what comes back; it computes nothing. torch is loaded with the first result.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from glassformer.errors import ServerError, UsageError
from glassformer.interp.elsewhere import Elsewhere
from glassformer.interp.verbs import LooksInside
from glassformer.remote import wire
from glassformer.remote.asking import asking

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.generate.constraints import Constraint
    from glassformer.generate.tokens import GeneratedToken
    from glassformer.interp.trace import Trace
    from glassformer.model.config import Config
    from glassformer.predict.distribution import Distribution
    from glassformer.predict.neighbours import Neighbours
    from glassformer.tokenizer.tokenizer import Tokenizer

# Views of names, files, designs, runs and the embedding, which no edit changes.
UNREAD = frozenset(["vocab", "models", "tasks", "runs", "run", "film", "influence", "size", "cloud", "sum", "sums"])
# What `Model.generate` takes and the server decides.
_STARTED_WITH = ("precision", "drafter", "cache_bits", "progress")

# What hands out something that computes, or where the model's files lie.
_OF_ONE_PROCESS = frozenset(["engines", "reader", "scorer", "source", "metadata"])


def connect(url: str, *, model: str | None = None, key: str | None = None, timeout: float = 600.0) -> RemoteModel:
    """A model that a server serves.

    Args:
        url: of the server, with or without /v1.
        model: its name there; the server's first by default.
        key: the server's key, if it asks for one.
        timeout: seconds that an answer may take.

    Raises:
        ServerError: no server there, or a key that it does not take. SourceError: a model that it does not serve.
    """
    way = wire.Wire(url.rstrip("/").removesuffix("/v1"), key, timeout)
    cards = way.ask("GET", "/v1/models")["data"]
    if model is not None:
        way.ask("GET", f"/v1/models/{model}")
    return RemoteModel(way, model or cards[0]["id"])


class _There:
    """What is fetched once of a model on a server, and shared by its edited views."""

    def __init__(self, way: wire.Wire, name: str) -> None:
        self._wire, self._name = way, name

    @cached_property
    def weights(self) -> Elsewhere:
        """What stands in for its weights."""
        import torch

        from glassformer.model.config import Config

        told = self._told("card")
        facts = {name: told[name] for name in ("fingerprint", "precision", "bytes", "adapters", "ignored")}
        dtype = getattr(torch, told["dtype"])
        return Elsewhere(
            f"{self._name} itself",
            config=Config.from_dict(told["config"]),
            dtype=dtype,
            device=torch.device("cpu"),
            facts=facts,
            fingerprint=told["fingerprint"],
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, from the same files as there."""
        from glassformer.system import files
        from glassformer.tokenizer.tokenizer import Tokenizer

        with files.scratch() as folder:
            for name, text in self._told("tokenizer").items():
                files.write_text(folder / Path(name).name, text)
            return Tokenizer.from_directory(folder)

    @cached_property
    def views(self) -> list[dict[str, Any]]:
        """Its views."""
        found: list[dict[str, Any]] = self._wire.ask("GET", "/v1/inspect")["data"]
        return found

    def _told(self, verb: str) -> Any:
        return _read(self._wire.file(f"/v1/verbs/{verb}", {"model": self._name}), None, None)


def _read(data: bytes, config: Any, trace: Any) -> Any:
    from glassformer.interp.records import unpacked

    try:
        return unpacked(data, config, trace)[0]
    except (ValueError, TypeError, KeyError) as error:
        raise ServerError(f"The server's answer is not one of this version's ({error}).") from None


class RemoteModel(LooksInside):
    """A model on a server: `Model` says what each verb gives.

    `transformer`, and what only the weights can do, raise a sentence. A fitted lens (`through`) and dictionaries
    (`lay`) are named as they are on the server.

    Attributes:
        url: of the server. name: of the model there. taps: its edits; edits: the same as requests hold them.
    """

    def __init__(self, way: wire.Wire, name: str) -> None:
        self.url, self.name, self.taps = way.url, name, ()
        self.edits: tuple[Mapping[str, Any], ...] = ()
        self._wire, self._there = way, _There(way, name)

    def __repr__(self) -> str:
        edits = f", {len(self.edits)} edits" if self.edits else ""
        return f"<glassformer.RemoteModel {self.name} at {self.url}{edits}>"

    def __getattr__(self, name: str) -> Any:
        if name not in _OF_ONE_PROCESS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise UsageError(f"{name!r} stays with the model on the server; load the model here for that.")

    # What it is

    @property
    def ignored(self) -> tuple[str, ...]:
        """Keys of its config.json that were taken for absent."""
        return tuple(self.transformer.facts["ignored"])

    @property
    def transformer(self) -> Any:
        """What stands in for the weights: their design and digest; all else of them raises a UsageError."""
        return self._there.weights

    @property
    def tokenizer(self) -> Tokenizer:  # type: ignore[override]
        """The tokenizer, fetched once."""
        return self._there.tokenizer

    @property
    def config(self) -> Config:
        """The design."""
        found: Config = self.transformer.config
        return found

    @property
    def precision(self) -> str:
        """The weights' dtype there."""
        return str(self.transformer.facts["precision"])

    @property
    def bytes(self) -> int:
        """Bytes of the weights there."""
        return int(self.transformer.facts["bytes"])

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters in the weights; `connect(url, model=…)` names a model with others, or with none."""
        return tuple(self.transformer.facts["adapters"])

    @property
    def generation(self) -> Any:
        """How the checkpoint wants its answers to be drawn."""
        return self.tokenizer.generation

    # Next word

    def next(self, text: str | Sequence[int], bos: bool | None = None) -> Distribution:
        """The probability of every next token after a text, and of whole next words on request."""
        from glassformer.remote.distribution import RemoteDistribution

        ids = self.ids(text, bos)
        found = self.verb("next", {"text": ids})
        return RemoteDistribution(
            found["logprobs"],
            self.tokenizer,
            remote=self,
            ids=ids,
            text=text if isinstance(text, str) else self.decode(ids),
            longest=found["longest"],
            model=self.name,
            precision=found["precision"],
        )

    def logits(self, text: str | Sequence[int], bos: bool | None = None) -> Tensor:
        """Scores of every next token after every position, (query, vocab)."""
        found: Tensor = self.verb("logits", {"text": self.ids(text, bos)})
        return found

    def neighbours(
        self,
        words: str = "",
        *,
        plus: Sequence[str] = (),
        minus: Sequence[str] = (),
        k: int = 10,
        matrix: str = "embedding",
    ) -> Neighbours:
        """The tokens whose vectors lie nearest to a word or a sum such as "king - man + woman", by cosine."""
        asked = {"words": words, "plus": plus, "minus": minus, "k": k, "matrix": matrix}
        found: Neighbours = self.verb("neighbours", asked)
        return found

    # Text

    def generate(
        self,
        text: str | Sequence[int],
        *,
        max_tokens: int | None = 256,
        stop: str | Sequence[str | int] = (),
        alternatives: int = 0,
        bos: bool | None = None,
        constraint: Constraint | None = None,
        **sampling: Any,
    ) -> Generator[GeneratedToken]:
        """Continue a text, token by token; closing the generator, or leaving its loop, stops the computation.

        Options are those of `Model.generate`, but for what the server was started with: precision, drafts, the cache.

        Raises:
            What `Model.generate` raises, at once for the text and the settings, else with the first token.
        """
        from glassformer.generate.settings import Sampling

        for name in _STARTED_WITH:
            if name in sampling:
                raise UsageError(f"{name} is chosen where the server is started, and cannot come with a request.")
        ids = self.ids(text, bos)
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"max_tokens must be at least 1; got {max_tokens}.")
        Sampling.of(sampling)
        listed = [stop] if isinstance(stop, str) else list(stop)
        ends = {one for one in listed if not isinstance(one, str)} | set(sampling.pop("stop_token_ids", None) or ())
        body: dict[str, Any] = {
            "prompt": ids,
            "max_tokens": -1 if max_tokens is None else max_tokens,
            "stop": [one for one in listed if isinstance(one, str)],
            "stop_token_ids": sorted(ends),
            "logprobs": alternatives,
            "logit_bias": {str(id): bias for id, bias in (sampling.pop("logit_bias", None) or {}).items()},
            **sampling,
            **_form(constraint),
        }
        return self._tokens(body)

    def _tokens(self, body: Mapping[str, Any]) -> Generator[GeneratedToken]:
        from glassformer.generate.tokens import Alternative, GeneratedToken

        for told in self._wire.events("/v1/verbs/generate", self._said(body)):
            row = {**told, "alternatives": tuple(Alternative(**one) for one in told["alternatives"])}
            if row["logprob"] is None:
                row["logprob"] = float("-inf")
            if row.get("unconstrained"):
                row["unconstrained"] = Alternative(**row["unconstrained"])
            yield GeneratedToken(**row)

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Generator[GeneratedToken]:
        """The assistant's answer to a conversation of `{"role": ..., "content": ...}`, by the model's own template."""
        return self.generate(self.tokenizer.encode(self.tokenizer.render_chat(messages), bos=False), **options)

    # What is inside

    def trace(
        self, text: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]], bos: bool | None = None
    ) -> Trace:
        """One forward of a text (or of several) on the server, and everything inside it by name."""
        from glassformer.remote.trace import RemoteTrace

        return RemoteTrace(self, self._ids_of_all(text, bos))

    def edited(self, *taps: Any) -> Self:
        """This model with taps put in, or edits such as `{"ablate": {"layer": 3, "head": 1}}`: in every request.

        Raises:
            What `Model.edited` raises. UsageError: for a tap that cannot be sent.
        """
        from glassformer.interp.circuit_edit import RunCircuit
        from glassformer.interp.taps import compose
        from glassformer.remote.edits import told

        view = copy.copy(self)
        view.taps = self.taps + taps
        view.edits = (*self.edits, *(edit for tap in taps for edit in told(tap, self.config.n_layers)))
        for tap in taps:
            if isinstance(tap, RunCircuit):
                tap.require_of(self.transformer)
            elif not isinstance(tap, Mapping):
                compose(tap, config=self.config)  # checks every name now
        return view

    def bound_tap(self) -> Any:
        """Not here: what puts the edits into a forward is on the server."""
        raise UsageError("The edits are put in on the server; load the model here to run it with taps.")

    def adapted(self, on: bool = True) -> Self:
        """Not here: a server's model with an adapter, or without, has a name of its own."""
        raise UsageError("Adapters are put in where the server is started; name the model: gf.connect(url, model=...).")

    def with_adapter(self, adapter: str | Path, name: str | None = None) -> Self:
        """Not here: see `adapted`."""
        return self.adapted()

    # Views

    def views(self) -> list[dict[str, Any]]:
        """The views that the server computes."""
        return self._there.views

    def inspect(self, view: str, text: str | None = None, **ask: object) -> dict[str, Any]:
        """A view's data, its arrays as NumPy's; `views()` lists them with their parameters."""
        body: Mapping[str, Any] = ask if text is None else {"text": text, **ask}
        fields = self._fields(view)
        if "model" in fields:
            body = {"model": self.name or None, **body}
        if view == "compare":
            mine = {"model": self.name or None, "edits": list(self.edits)}
            sides = {side: {**mine, **body[side]} for side in ("a", "b") if isinstance(body.get(side), Mapping)}
            body = {**body, **sides}
        elif view == "python":  # lines about another view, which have to make the edits too
            body = {"name": body.get("name"), "arguments": self._edited(body.get("name"), body.get("arguments") or {})}
        else:
            body = self._edited(view, body)
        found: dict[str, Any] = wire.arrays(self._wire.ask("POST", f"/v1/inspect/{view}", body)["data"])
        return found

    def view(self, text: str, **options: object) -> Any:
        """Not here: the page draws a model in its own process; `inspect` gives what it shows as data."""
        raise UsageError("The page draws a model that is in this process; ask the server for a view: inspect(name).")

    def _edited(self, view: Any, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a view is asked, with this model's edits.

        Raises:
            UsageError: a view that cannot read the model under them.
        """
        if self.edits and "edits" in self._fields(view):
            return {**body, "edits": [*self.edits, *body.get("edits", [])]}
        if self.edits and view not in UNREAD:
            raise UsageError(f"The view {view!r} reads the model without edits, and this one has {len(self.edits)}.")
        return body

    def _fields(self, view: str) -> Mapping[str, Any]:
        """The parameters that a view takes; none where there is no such view."""
        found = {one["id"]: one["parameters"].get("properties", {}) for one in self.views()}
        fields: Mapping[str, Any] = found.get(view, {})
        return fields

    # The wire

    def _said(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": self.name, "edits": list(self.edits), **{k: wire.plain(v) for k, v in body.items()}}

    def verb(self, name: str, body: Mapping[str, Any], progress: wire.Progress | None = None) -> Any:
        """What a verb of the model (`heads`) or of a trace (`trace.why`) finds, as the object that it gives here."""
        from glassformer.remote.trace import RemoteTrace

        data = self._wire.file(f"/v1/verbs/{name}", self._said(body), progress)
        return _read(data, self.config if name != "card" else None, lambda ids: RemoteTrace(self, ids))


def _form(constraint: Constraint | None) -> dict[str, Any]:
    """A constraint as a request says it."""
    import json

    if constraint is None:
        return {}
    if constraint.kind in ("json", "schema"):
        return {"guided_json": json.loads(constraint.text)}
    if constraint.kind == "choice":
        return {"guided_choice": json.loads(constraint.text)}
    if constraint.kind in ("regex", "grammar"):
        return {f"guided_{constraint.kind}": constraint.text}
    raise UsageError("The form of tools' calls comes with a chat's tools: ask /v1/chat/completions for them.")


for _name in ("heads", "meaning", "patch", "direction", "readout", "moved", "circuit"):
    setattr(RemoteModel, _name, asking(_name, getattr(LooksInside, _name), lambda model: (model, {})))
