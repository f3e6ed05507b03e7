"""Why: the account of a prediction, the neurons behind it, and what a change does to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import Field

from glassformer.tokenizer.spelling import spelled, spelled_alone
from glassformer.views.asks import Against, At, Count, TokenChoice
from glassformer.views.next import difference, entropy, listed, logits_at
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.interp.why import Why
    from glassformer.views.report_data import ReportDraft
    from glassformer.views.session import Session

# Parts that a report switches off and turns, one at a time, and how far besides.
EFFECTS = 6
STEPS = (0.0, 0.5, 1.5, 2.0)
# Tokens of a text up to which it also turns them, and switches off words.
LONG = 64


class WhyAsk(At):
    token: TokenChoice = None
    against: Against = None
    words: bool = Field(default=True, description="Whether each word is replaced to measure what depends on it.")
    parts: int = Field(default=400, ge=0, le=100_000, description="Parts whose effect is measured.")


@view(
    "why",
    WhyAsk,
    room="why",
    report=lambda draft: draft.kept("why", **draft.plain),
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
    gathered = gist(trace, found, told["token"])
    return {
        **told,
        "gist": gathered,
        "plain": plainly(gathered),
        "tokens": trace.tokens,
        "parts": [part | {"edit": edit_of(part, found.target.position)} for part in found.ranked_parts()],
        "part_count": len(found.parts),
        "layers": _by_layer(found.parts),
    }


def gist(trace: Trace, found: Why, token: str) -> Json:
    """What matters most of an account: the token, what else the model would say, and the word or the head that counts
    most for it."""
    goal = found.target
    first = int(trace.logits(goal.position).argmax())
    other = trace.token_text(first) if trace.vocabulary is None else spelled_alone(trace.vocabulary, [first])[0]
    heads = [p for p in found.ranked_parts("head", sink=False) if p["source"] != goal.position]
    words = [w for w in found.ranked_words() if w.knocked_out is not None and goal.position not in w.word.positions]
    told: Json = {
        "token": token.strip() or token,
        "probability": goal.probability,
        "value": goal.value,
        "against": found.against,
        "rather": None if first == goal.way.token else other,
        "word": None,
        "head": None,
    }
    if words:
        word = max(words, key=lambda w: abs(w.knocked_out or 0.0))
        told["word"] = {"text": word.word.text.strip(), "change": word.knocked_out or 0.0}
        heads = [p for p in heads if p["source"] in word.word.positions]
    if heads:
        best = heads[0]
        adds = best["direct"] if best["total"] is None else best["total"]
        from_ = trace.tokens[best["source"]].strip()
        told["head"] = {"layer": best["layer"], "head": best["head"], "from": from_, "adds": adds}
    return told


def plainly(told: Json) -> list[str]:
    """An account's gist in two plain sentences."""
    value, word, head = told["value"], told["word"], told["head"]
    what = f"“{told['token']}” comes next with {told['probability']:.1%}"
    if told["against"] is not None:
        what += f", and scores {abs(value):.2f} {'more' if value >= 0 else 'less'} than “{told['against']}”"
    if told["rather"] is not None:
        what += f"; the model would rather say “{told['rather']}”"
    if word:
        why = f"What counts most is “{word['text']}”: if nothing could look at it, the score would "
        why += f"{'fall' if word['change'] >= 0 else 'rise'} by {abs(word['change']):.2f}"
        why += f", and head {head['head']} of layer {head['layer']} reads it most" if head else ""
    elif head:
        why = f"Most of it is read from “{head['from']}” by head {head['head']} of layer {head['layer']}, which adds "
        why += f"{head['adds']:+.2f} to its score of {value:.2f}"
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


def dial_of(edit: Json) -> Json:
    """What turns the thing that an edit switches off: a scale without its `by`."""
    if edit["kind"] == "knockout":
        return {"kind": "scale", "part": "word", "source": edit["source"]}
    turned: Json = {"kind": "scale", "layer": edit["layer"], "position": edit["position"]}
    if edit["kind"] == "ablate_read":
        return turned | {"part": "read", "unit": edit["head"], "source": [edit["source"]]}
    if edit["kind"] == "ablate_expert":
        return turned | {"part": "expert", "unit": edit["expert"]}
    return turned | {"part": "feed_forward"}


def _by_layer(parts: Any) -> list[Json]:
    """Claimed contributions summed over heads, sources and positions: what each half layer adds, in order."""
    from glassformer.interp.decompose import KINDS

    sums: dict[tuple[int, str], float] = {}
    for layer, kind, claimed in zip(parts.layer.tolist(), parts.kind.tolist(), parts.claimed.tolist(), strict=True):
        name = KINDS[kind]
        key = (layer, "attention" if name == "head" else name)
        sums[key] = sums.get(key, 0.0) + claimed
    return [{"layer": None if i < 0 else i, "kind": kind, "claimed": x} for (i, kind), x in sorted(sums.items())]


def _effects(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    """Before and after, for each of the largest parts and words switched off or turned alone (and for the report's own
    edits)."""
    tries: list[list[Json]] = [draft.edits] if draft.edits else []
    short = draft.count <= LONG and not draft.options.light and not draft.edits
    for kind in ("parts", "words") if short else ("parts",):
        found = [one["edit"] for one in draft.why[kind] if one["edit"] is not None][:EFFECTS]
        tries += [[edit] for edit in found]
        tries += [[{**dial_of(edit), "by": by}] for edit in found for by in STEPS if short]
    for edits in tries:
        yield from draft.kept("effects", edits=edits, position=draft.explained, top=8)


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
    report=lambda draft: draft.kept("neurons", **draft.plain, top=16),
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
