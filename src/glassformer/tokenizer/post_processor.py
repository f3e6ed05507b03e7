"""What a tokenizer puts around a text: begin- and end-of-text tokens, as the library's post-processor adds them.

Other libraries follow the post-processor in tokenizer.json and nothing else, so it must say what `Tokenizer.adds_bos`
says. This module knows that one part of a tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

# Post-processors that add tokens; the others only move offsets.
_ADDING = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")


def around(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the post-processor puts before a text and after it."""
    if backend.post_processor is None:
        return [], []
    full = backend.encode("a", add_special_tokens=True).ids
    bare = backend.encode("a", add_special_tokens=False).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return list(full[:start]), list(full[start + len(bare) :])
    return [], []


def put_around(backend: tokenizers.Tokenizer, before: Sequence[int], after: Sequence[int]) -> None:
    """Makes the post-processor put these ids before a text and after it; what it does to offsets stays."""
    if around(backend) == (list(before), list(after)):
        return
    old = None if backend.post_processor is None else json.loads(backend.post_processor.__getstate__())
    steps = [] if old is None else old["processors"] if old["type"] == "Sequence" else [old]
    steps = [step for step in steps if step["type"] not in _ADDING]
    if before or after:
        steps.append(_template(backend, before, after))
    source = json.loads(backend.to_str())
    source["post_processor"] = {"type": "Sequence", "processors": steps} if steps else None
    backend.post_processor = type(backend).from_str(json.dumps(source)).post_processor


def _template(backend: tokenizers.Tokenizer, before: Sequence[int], after: Sequence[int]) -> dict[str, Any]:
    names = {id: backend.id_to_token(id) for id in (*before, *after)}

    def special(id: int, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": names[id], "type_id": kind}}

    def one(name: str, kind: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": name, "type_id": kind}}
        return [*(special(id, kind) for id in before), text, *(special(id, kind) for id in after)]

    return {
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": [*one("A", 0), *one("B", 1)],
        "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]} for id, name in names.items()},
    }
