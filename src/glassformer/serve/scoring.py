"""Log-probabilities of a prompt's own tokens, for `echo`: one pass of the transformer, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from glassformer.generate.sampling import logprobs
from glassformer.model import Cache
from glassformer.serve.openai_answers import Entry

if TYPE_CHECKING:
    from glassformer.lm import Model

_ROWS = 128  # positions at a time: rows × vocab scores


@torch.inference_mode()
def prompt_entries(model: Model, ids: list[int], top: int, check: Callable[[], None] = lambda: None) -> list[Entry]:
    """Every prompt token with its log-probability and those of the `top` likeliest at its place.

    The transformer computes them at its own precision, whatever the engine's is. `check` is called before each piece
    and ends the work by raising.
    """
    transformer, stream = model.transformer, model.tokenizer.stream(start=True)
    cache = Cache(model.config, 1, len(ids), transformer.dtype, transformer.device)
    found = [Entry(ids[0], 0, None)]
    reached = len(stream.push(ids[0]))
    for start in range(0, len(ids) - 1, _ROWS):
        check()
        piece = ids[start : min(start + _ROWS, len(ids) - 1)]
        scores = transformer(torch.tensor([piece], device=transformer.device), cache)[0].float().cpu()
        for row, token in zip(scores, ids[start + 1 :], strict=False):
            mine, likeliest = logprobs(row, token, top)
            found.append(Entry(token, reached, mine.logprob, likeliest))
            reached += len(stream.push(token))
    return found
