"""Why: the account of a prediction, the neurons behind it, and what a change does to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import Field

from glassformer.tokenizer.spelling import spelled
from glassformer.views.asks import Against, At, Count, TokenChoice
from glassformer.views.next import difference, entropy, listed, logits_at
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.interp.why import Why
    from glassformer.views.report_data import ReportPlan
    from glassformer.views.session import Session

# Parts that a report switches off, one at a time.
EFFECTS = 6


class WhyAsk(At):
    token: TokenChoice = None
    against: Against = None
    words: bool = Field(default=True, description="Whether each word is replaced to measure what depends on it.")
    parts: int = Field(default=400, ge=0, le=100_000, description="Parts whose effect is measured.")


@view(
    "why",
    WhyAsk,
    room="why",
    report=lambda plan: plan.kept("why", **plan.plain),
    trims=("words", "parts"),
    python="model.trace({text!r}).why({token!r}, {against!r}, {position})",
)
def why(session: Session, ask: WhyAsk, check: Check) -> Json:
    """The account of a prediction, with its residual."""
    trace = session.trace(ask)
    options: Json = {"parts": ask.parts, "progress": lambda done, total, what: check()}
    if not ask.words:
        options["words"] = 0
    return account(trace, trace.why(ask.token, ask.against, ask.position, **options))


def account(trace: Trace, found: Why) -> Json:
    """An account as the page draws it."""
    # A long text has a part for every head at every token: the largest are sent, and all of them summed by layer.
    told = found.to_dict(parts=False)
    if trace.vocabulary is not None:
        told["token"] = spelled([trace.vocabulary.token_bytes(found.target.way.token)])[0]
    for word in told["words"]:
        word["edit"] = {"kind": "knockout", "source": word["positions"]}
    return {
        **told,
        "plain": plainly(trace, found, told["token"]),
        "tokens": trace.tokens,
        "parts": [part | {"edit": edit_of(part, found.target.position)} for part in found.ranked_parts()],
        "part_count": len(found.parts),
        "layers": _by_layer(found.parts),
    }


def plainly(trace: Trace, found: Why, token: str) -> list[str]:
    """The account in two plain sentences, written from its measurements."""
    goal = found.target
    what = f"“{token.strip() or token}” comes next with {goal.probability:.1%}"
    if found.against is not None:
        what += f", and scores {abs(goal.value):.2f} {'more' if goal.value >= 0 else 'less'} than “{found.against}”"
    first = int(trace.logits(goal.position).argmax())
    if first != goal.way.token:
        what += f"; the model would rather say “{trace.token_text(first)}”"
    heads = [p for p in found.ranked_parts("head", sink=False) if p["source"] != goal.position]
    words = [w for w in found.ranked_words() if w.knocked_out is not None and goal.position not in w.word.positions]
    if words:
        words.sort(key=lambda w: -abs(w.knocked_out or 0.0))
        change = words[0].knocked_out or 0.0
        why = f"What counts most is “{words[0].word.text.strip()}”: if nothing could look at it, the score would "
        why += f"{'fall' if change >= 0 else 'rise'} by {abs(change):.2f}"
        mine = [p for p in heads if p["source"] in words[0].word.positions]
        why += f", and head {mine[0]['head']} of layer {mine[0]['layer']} reads it most" if mine else ""
    elif heads:
        best = heads[0]
        size = best["direct"] if best["total"] is None else best["total"]
        why = f"Most of it is read from “{trace.tokens[best['source']].strip()}” by head {best['head']} of layer "
        why += f"{best['layer']}, which adds {size:+.2f} to its score of {goal.value:.2f}"
    else:
        why = "No earlier word is read for it"
    return [what + ".", why.strip() + "."]


def edit_of(part: Json, position: int) -> Json | None:
    """The edit that takes away exactly what a part's measured effect says."""
    if part["kind"] == "head":
        at = {"source": part["source"], "position": position}
        return {"kind": "ablate_read", "layer": part["layer"], "head": part["head"], **at}
    if part["kind"] == "feed_forward":
        return {"kind": "ablate_mlp", "layer": part["layer"], "position": position}
    if part["kind"] == "expert":
        return {"kind": "ablate_expert", "layer": part["layer"], "expert": part["expert"], "position": position}
    return None


def _by_layer(parts: Any) -> list[Json]:
    """Claimed contributions summed over heads, sources and positions: what each half layer adds, in order."""
    from glassformer.interp.decompose import KINDS

    sums: dict[tuple[int, str], float] = {}
    for layer, kind, claimed in zip(parts.layer.tolist(), parts.kind.tolist(), parts.claimed.tolist(), strict=True):
        name = KINDS[kind]
        key = (layer, "attention" if name == "head" else name)
        sums[key] = sums.get(key, 0.0) + claimed
    return [{"layer": None if i < 0 else i, "kind": kind, "claimed": x} for (i, kind), x in sorted(sums.items())]


def _effects(plan: ReportPlan) -> Iterator[tuple[Json, Json]]:
    """Before and after, for each of the largest parts switched off alone (and for the report's own edits)."""
    tries: list[list[Json]] = [plan.edits] if plan.edits else []
    for part in plan.why["parts"]:
        if part["edit"] is not None:
            tries.append([part["edit"]])
        if len(tries) >= EFFECTS:
            break
    for edits in tries:
        yield from plan.kept("effects", edits=edits, position=plan.explained, top=8)


class EffectsAsk(At):
    top: Count = Field(default=20, description="Tokens listed.")


@view(
    "effects",
    EffectsAsk,
    room="why",
    report=_effects,
    trims=("top",),
)
def effects(session: Session, ask: EffectsAsk, check: Check) -> Json:
    """The prediction without and with the edits, side by side, and how far apart they are."""
    model = session.model(ask.model)
    plain = ask.model_copy(update={"edits": []})
    position, before = logits_at(session, plain)
    check()
    _, after = logits_at(session, ask)
    return {
        "position": position,
        "before": {"tokens": listed(model, before, ask.top), "entropy": entropy(before)},
        "after": {"tokens": listed(model, after, ask.top), "entropy": entropy(after)},
        **difference(model, before, after, ask.top),
    }


class NeuronsAsk(At):
    token: TokenChoice = None
    against: Against = None
    top: Count = Field(default=20, description="Neurons listed.")


@view(
    "neurons",
    NeuronsAsk,
    room="why",
    report=lambda plan: plan.kept("neurons", **plan.plain, top=16),
    trims=("top",),
    python="model.trace({text!r}).neurons({token!r}, {against!r}, {position}, k={top})",
)
def neurons(session: Session, ask: NeuronsAsk, check: Check) -> Json:
    """The feed-forward neurons that pushed a prediction most, and what each writes."""
    from glassformer.interp.edits import ablate
    from glassformer.interp.logit_target import target
    from glassformer.interp.neurons import top_neurons

    trace = session.trace(ask)
    found = top_neurons(trace, ask.token, ask.against, ask.position, k=ask.top).to_dict()
    goal, model, ids = target(trace, ask.token, ask.against, ask.position), session.edited(ask), session.ids(ask)
    for neuron in found["neurons"]:
        check()
        at = {"layer": neuron["layer"], "neuron": neuron["index"]}
        off = model.edited(ablate(**at, positions=[goal.position])).trace(ids)
        again = target(off, goal.way.token, goal.way.against, goal.position)
        neuron["total"] = goal.value - again.value
        neuron["edit"] = {"kind": "ablate_neuron", **at, "position": goal.position}
    return found
