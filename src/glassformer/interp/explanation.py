"""The short sentence of an account: what was found, and how far claim and measurement agree.

Every number in it stands in the account; the wording depends on nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glassformer.interp.vocabulary import shown

if TYPE_CHECKING:
    from glassformer.interp.replacement import WordEffect
    from glassformer.interp.why import Why


def part_name(part: dict[str, Any], tokens: list[str]) -> str:
    """A part for people: "head 20.3 reading ' France'"."""
    layer = part["layer"]
    if part["kind"] == "head":
        return f"head {layer}.{part['head']} reading '{shown(tokens[part['source']])}'"
    names = {
        "embedding": "the token's own embedding",
        "position": "the position's embedding",
        "expert": f"expert {layer}.{part['expert']}",
        "feed_forward": f"feed-forward layer {layer}",
        "layer_embedding": f"the token's own vector in layer {layer}",
        "laurel": f"what stands beside attention in layer {layer}",
        "attention_bias": f"the attention bias of layer {layer}",
        "feed_forward_bias": f"the feed-forward bias of layer {layer}",
        "norm_bias": f"the bias of a norm of layer {layer}",
        "final_bias": "the final norm's bias",
        "edit": f"the change made in layer {layer}",
    }
    return names[str(part["kind"])]


def sentence(found: Why) -> str:
    """The account in a few sentences."""
    said = [_what(found)]
    words = [w for w in found.ranked_words() if w.replaced is not None]
    earlier = [w for w in words if found.target.position not in w.word.positions]
    if earlier:
        said.append(f"Of the words before the last, {earlier[0].word.text!r} matters most: {_word(earlier[0])}.")
    if words and words[0] not in earlier[:1] and found.target.position in words[0].word.positions:
        said.append(f"The last word itself, {words[0].word.text!r}, matters more: {_word(words[0])}.")
    for label, parts in (
        ("Of what heads read", found.ranked_parts("head", sink=False)),
        ("Of the experts", found.ranked_parts("expert")),
        ("Of the feed-forward layers", found.ranked_parts("feed_forward")),
    ):
        if parts:
            said.append(f"{label}, the largest is {_part(parts[0], found)}.")
    sink = found.sink
    said.append(
        f"Position 0 ('{sink['token']}') stands apart as the usual sink: it gets {sink['attention']:.0%} of the "
        f"attention and {sink['claimed']:+.2f} is read from it."
    )
    if found.keys_from:
        pairs = ", ".join(f"layer {layer} uses those of layer {donor}" for layer, donor in found.keys_from.items())
        said.append(f"Keys and values are shared: {pairs}.")
    agreement = found.agreement
    gap = found.part(agreement["part"])
    said.append(
        f"Claimed and measured direct effects correlate at {agreement['correlation']:.3f}; they differ most, by "
        f"{agreement['largest_gap']:.2f}, for {part_name(gap, found.tokens)}."
    )
    return " ".join(said)


def _word(effect: WordEffect) -> str:
    r = effect.replaced
    assert r is not None
    line = (
        f"another in its place takes {r['median']:.2f} away (median of {len(effect.alternatives)}, "
        f"{r['low']:.2f} to {r['high']:.2f})"
    )
    if effect.knocked_out is not None:
        line += f", hiding it from all later words {effect.knocked_out:.2f}"
    return line


def _part(part: dict[str, Any], found: Why) -> str:
    line = f"{part_name(part, found.tokens)}: claimed {part['claimed']:+.2f}, measured {part['direct']:+.2f} directly"
    if part["total"] is not None:
        line += f" and {part['total']:+.2f} with everything after it run again"
    if part["percentile"] < 100:
        line += f" (no smaller than {part['percentile']:.1f}% of its kind)"
    return line


def _what(found: Why) -> str:
    t = found.target
    if found.against is not None:
        what = f"'{shown(found.token)}' is ahead of '{shown(found.against)}' by {t.value:.2f}"
        what += " (logits before the soft cap)" if t.softcap else " (logits)"
    else:
        what = f"'{shown(found.token)}' stands {t.value:.2f} above the vocabulary's mean"
        what += f" before the soft cap, probability {t.probability:.1%}"
    if found.against is None and not t.softcap:
        what = what.replace(" before the soft cap", "")
    return f"{what}; the parts sum to it with a residual of {found.residual:.1e} ({found.precision})."
