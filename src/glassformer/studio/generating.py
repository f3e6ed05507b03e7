"""Writing on from a text, one step at a time, each with what else was possible."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from glassformer.errors import TextError

if TYPE_CHECKING:
    from glassformer.studio.studio import Check, Studio


def steps(studio: Studio, ask: Any, check: Check) -> Iterator[dict[str, Any]]:
    """A dict for each token: its index, id, the text that became certain with it, its probability, alternatives.

    Probabilities are the model's own, before temperature and cuts, with the request's edits put in.

    Raises:
        TextError: when the text leaves no room to write.
    """
    from glassformer.generate.engine import Engine
    from glassformer.generate.request import Request
    from glassformer.generate.sampling import Sampling

    model, ids = studio.edited(ask), studio.ids(ask)
    room = model.config.context - len(ids)
    if room < 1:
        raise TextError(f"The text fills {model.name}'s {model.config.context} tokens; shorten it to write on.")
    sampling = Sampling(
        temperature=ask.temperature,
        top_k=ask.top_k or 0,
        top_p=1.0 if ask.top_p is None else ask.top_p,
        min_p=ask.min_p or 0.0,
        seed=ask.seed,
    )
    many = min(ask.max_tokens, room)
    request = Request(tuple(ids), max_tokens=many, sampling=sampling, logprobs=ask.alternatives)
    tokenizer = model.tokenizer
    # The eager path: the one that edits reach, in a cache no larger than this answer.
    with Engine(model.transformer, tokenizer, slots=1, capacity=len(ids) + many, use_native=False) as engine:
        for index, step in enumerate(engine.generate(request, model._tap())):
            check()
            if step.id is None or step.id in tokenizer.stop_ids:
                if step.text:
                    yield {
                        "index": index,
                        "id": None,
                        "token": "",
                        "text": step.text,
                        "probability": None,
                        "alternatives": [],
                    }
                continue
            yield {
                "index": index,
                "id": step.id,
                "token": tokenizer.token_text(step.id),
                "text": step.text,
                "probability": None if step.logprob is None else math.exp(step.logprob.logprob),
                "alternatives": [
                    {"id": one.id, "token": tokenizer.token_text(one.id), "probability": math.exp(one.logprob)}
                    for one in step.top
                ],
            }
