"""Edges between two prompts' readings, and the circuit that carries what makes them end differently."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from glassformer.interp.tasks import TASKS
from glassformer.views.asks import Ask, Strict, Text
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.interp.edge_graph import Graph
    from glassformer.interp.edges import Edges
    from glassformer.interp.trace import Trace
    from glassformer.views.session import Session

# Edges that a view measures at most, one run of the model each.
LIMIT = 5000
# Edges that one drawing holds at most, and parts in the first one of a long search.
EDGES, NODES = 120, 25
# Pairs of prompts that one circuit is sought for, at most.
PAIRS = 32


class PairAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    clean: Text = Field(description="Prompt whose answer the edges carry.")
    corrupted: Text = Field(description="Prompt with as many tokens whose values are carried instead.")
    bos: bool | None = Field(default=None, description="Whether the beginning-of-text token is put first.")
    metric: Literal["logit_difference", "probability", "kl"] = Field(
        default="logit_difference", description="What is measured of the prediction."
    )
    answer: int | str | list[int | str] | None = Field(
        default=None,
        description="Token of the clean answer, or a list with one for each pair; by default the clean run's "
        "first choice.",
    )
    wrong: int | str | list[int | str] | None = Field(
        default=None,
        description="Token that it is compared with, likewise; by default the corrupted run's first choice.",
    )
    position: int = Field(default=-1, description="Token after which it is asked; negative counts from the end.")
    method: Literal["eap", "eap-ig", "eap-ig-activations", "relp"] = Field(
        default="eap-ig", description="How edges are estimated from gradients."
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="Gradients that are averaged; by default 5, and 40 where 5 do not add up.",
    )


class EdgesAsk(PairAsk):
    exact: Literal["unreliable", "strongest", "all", "none"] = Field(
        default="unreliable",
        description=f"Edges measured too: unreliable ones and the strongest, the strongest, all, or none; {LIMIT:,} at "
        "most.",
    )
    strongest: int = Field(default=300, ge=0, le=LIMIT, description="How many of the strongest edges are measured.")
    top: int = Field(default=20, ge=1, le=100_000, description="Edges listed, the strongest first.")
    by_position: bool = Field(default=False, description="Whether positions are told apart; for one pair.")


class CircuitAsk(EdgesAsk):
    clean: Text | None = Field(default=None, description="Prompt whose answer the edges carry.")  # type: ignore[assignment]
    corrupted: Text | None = Field(  # type: ignore[assignment]
        default=None, description="Prompt with as many tokens whose values are carried instead."
    )
    pairs: list[tuple[Text, Text]] = Field(
        default=[], max_length=PAIRS, description="Several of these instead: clean and corrupted prompts, two by two."
    )
    task: str | None = Field(
        default=None,
        max_length=100,
        description=f"Instead of prompts, a task whose prompts are made from a template: {', '.join(TASKS)}. One the "
        "model cannot do is refused with its accuracy.",
    )
    examples: int = Field(
        default=20, ge=2, le=2 * PAIRS, description="How many prompts of a task; half of them are held out."
    )
    faithfulness: float = Field(
        default=0.9, gt=0, le=1, description="Share of the difference, above 0, that the circuit is to bring back."
    )

    @model_validator(mode="after")
    def _paired(self) -> CircuitAsk:
        alone = [self.clean, self.corrupted]
        if self.task is not None:
            if self.pairs or [*alone, self.answer, self.wrong] != [None] * 4 or self.by_position:
                raise ValueError("task: it brings its own prompts and answers, and its circuit is not by position")
            return self
        if self.pairs and alone != [None, None]:
            raise ValueError("either pairs, or one clean and one corrupted prompt")
        if not self.pairs:
            for name, text in zip(("clean", "corrupted"), alone, strict=True):
                if text is None:
                    raise ValueError(f"{name}: Field required, or pairs of prompts")
            self.pairs = [(self.clean or "", self.corrupted or "")]
        for name in ("answer", "wrong"):
            given = getattr(self, name)
            if isinstance(given, list) and len(given) != len(self.pairs):
                raise ValueError(f"{name}: {len(given)} tokens for {len(self.pairs)} pairs of prompts")
        self.clean = self.corrupted = None
        return self


_OPTIONS = (
    "answer={answer!r}, wrong={wrong!r}, position={position}, method={method!r}, steps={steps}, "
    "exact={exact!r}, strongest={strongest}, by_position={by_position}"
)


@view(
    "edges",
    EdgesAsk,
    room="compare",
    trims=("top",),
    python="model.trace({clean!r}).edges({metric!r}, corrupted=model.trace({corrupted!r}), " + _OPTIONS + ")",
)
def edges(session: Session, ask: EdgesAsk, check: Check) -> dict[str, Any]:
    """What every edge between two parts is worth: estimated, and where need be measured; `into` names the parts that
    each receiver is an input of."""
    found = sought(session, ask, check, exact=ask.exact, strongest=ask.strongest, by_position=ask.by_position)
    told = found.to_dict(ask.top)
    parts = {row["to"]: into(found.graph, found.graph.edge(row["from"], row["to"])) for row in told["edges"]}
    return head_of(session, ask) | told | {"into": parts}


@view(
    "circuit",
    CircuitAsk,
    room="compare",
    trims=("top",),
    python="model.circuit({pairs!r}, {faithfulness}, metric={metric!r}, " + _OPTIONS + ")",
)
def circuit(session: Session, ask: CircuitAsk, check: Check) -> dict[str, Any]:
    """The smallest set of edges found that brings the difference of two prompts back, and how far to trust it; `into`
    names the parts that each of its receivers is an input of. Watched, it first gives as `early` a drawing by the
    estimates: the strongest connected edges among a few parts."""
    from glassformer.interp.circuit_search import circuit as searched
    from glassformer.interp.edges import prepared

    told: dict[str, Any] = {}
    held: list[dict[str, str]] = []
    if ask.task is not None:
        ask, held, told = _of_task(session, ask, ask.task, check)

    def early(found: Edges) -> None:
        if found.positions is None:
            pairs = len(found.pairs)
            check(pairs, pairs, "estimating", told | _first_drawing(found))

    edges = sought(session, ask, check, early, exact=ask.exact, strongest=ask.strongest, by_position=ask.by_position)
    beside: tuple[Any, ...] = ()
    if held:
        traces = [(_trace(session, ask, p["clean"], check), _trace(session, ask, p["corrupted"], check)) for p in held]
        named: dict[str, Any] = {key: [p[key] for p in held] for key in ("answer", "wrong")}
        beside = prepared(traces, ask.metric, position=ask.position, **named)
    found = searched(edges, ask.faithfulness, held_out=beside, progress=check)
    answer = found.to_dict(ask.top)
    ends = [(row["from"], row["to"]) for row in answer["circuit"]["edges"]]
    parts = {end: into(edges.graph, edges.graph.edge(start, end)) for start, end in ends}
    return head_of(session, ask) | told | answer | {"into": parts}


class TasksAsk(Strict):
    pass


@view("tasks", TasksAsk, room="why")
def tasks(session: Session, ask: TasksAsk, check: Check) -> Json:
    """The tasks whose circuits can be sought, and what a model must do in each."""
    return {"tasks": [{"name": task.name, "what": task.what} for task in TASKS.values()]}


def _of_task(
    session: Session, ask: CircuitAsk, task: str, check: Check
) -> tuple[CircuitAsk, list[dict[str, str]], dict[str, Any]]:
    """The request with a task's prompts, those held out, and what the answer says of the task."""
    from glassformer.interp.tasks import tried

    encode = session.model(ask.model).encode
    runs = count()

    def trace(text: str) -> Trace:
        check(next(runs), 2 * ask.examples, "trying the task")
        return _trace(session, ask, text, check)

    rows, held, accuracy = tried(task, lambda text: encode(text, ask.bos), trace, ask.examples)
    own = {key: [row[key] for row in rows] for key in ("answer", "wrong")}
    pairs = [(row["clean"], row["corrupted"]) for row in rows]
    return ask.model_copy(update={"pairs": pairs, **own}), held, {"task": task, "accuracy": accuracy}


def _trace(session: Session, ask: Any, text: str, check: Check) -> Trace:
    check()
    return session.trace(Ask(model=ask.model, text=text, bos=ask.bos))


def head_of(session: Session, ask: Any) -> dict[str, Any]:
    """What an answer begins with, as that of `glassformer circuit --json` does."""
    model = session.model(ask.model)
    prompts = []
    for number, (clean, corrupted) in enumerate(_pairs(ask)):
        named = {"answer": ask.answer, "wrong": ask.wrong}
        each = {k: v[number] if isinstance(v, list) else v for k, v in named.items() if v is not None}
        prompts.append({"clean": clean, "corrupted": corrupted} | each)
    return {"model": model.name, "precision": model.precision, "task": None, "accuracy": None, "prompts": prompts}


def _pairs(ask: Any) -> list[tuple[str, str]]:
    """The prompts of a request, two by two."""
    return getattr(ask, "pairs", None) or [(ask.clean, ask.corrupted)]


def sought(
    session: Session,
    ask: Any,
    check: Check,
    early: Callable[[Edges], None] = lambda found: None,
    **more: Any,
) -> Edges:
    """The edges of a request's pairs of prompts; `early` is given their estimates before any is measured."""
    from glassformer.interp.edges import edges as found

    pairs = [(_trace(session, ask, clean, check), _trace(session, ask, other, check)) for clean, other in _pairs(ask)]
    return found(
        pairs,
        ask.metric,
        answer=ask.answer,
        wrong=ask.wrong,
        position=ask.position,
        method=ask.method,
        steps=ask.steps,
        limit=LIMIT,
        early=early,
        progress=check,
        **more,
    )


def _first_drawing(found: Edges) -> Json:
    """What can be drawn of a circuit before it is known: the strongest connected edges by their estimates."""
    order = connected(found, NODES)
    parts = [into(found.graph, edge) for edge in order]
    rows = [row | {"into": names} for row, names in zip(found.rows(order), parts, strict=True)]
    return {"total_edges": found.graph.total, "nodes": named(found.graph, rows), "edges": rows}


def connected(found: Edges, nodes: int) -> list[int]:
    """The strongest edges, in their order of joining, among at most so many parts."""
    from glassformer.interp.circuit_search import greedy

    known, out = {"logits"}, list[int]()
    for edge in greedy(found.graph, found.value, 4 * EDGES).tolist():
        sender = found.graph.names(edge)[0]
        if len(out) == EDGES:
            break
        if not known & set(into(found.graph, edge)):
            continue  # what it leads to was left out
        if sender not in known and len(known) == nodes:
            continue
        known.add(sender)
        out.append(edge)
    return out


def named(whole: Graph, rows: list[Json]) -> list[str]:
    """The parts that edges begin at, and the logits, in the model's order."""
    known = {"logits"} | {row["from"] for row in rows}
    return [name for name in [*whole.senders, "logits"] if name in known]


def into(whole: Graph, edge: int) -> list[str]:
    """The parts whose input an edge is: one, or all heads that share a key and value."""
    receiver = int(whole.receiver_of[edge])
    if receiver in whole.logits:
        return ["logits"]
    return [name for name, inputs in zip(whole.senders, whole.inputs, strict=True) if receiver in inputs]
