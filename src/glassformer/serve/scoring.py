"""Log-probabilities of a prompt's own tokens, for `echo`: one pass of the transformer, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from glassformer.generate.sampling import logprobs
from glassformer.model import Cache
from glassformer.serve.answers import Entry, Offsets

if TYPE_CHECKING:
    from glassformer.lm import Model

_ROWS = 128  # positions at a time: rows × vocab scores


@torch.inference_mode()
def prompt_entries(
    model: Model, ids: list[int], hidden: int, top: int, check: Callable[[], None] = lambda: None
) -> list[Entry]:
    """Every prompt token with its log-probability and those of the `top` likeliest at its place.

    The transformer computes them at its own precision, whatever the engine's is.

    Args:
        hidden: how many of the first tokens are no part of the text (they were put before it).
        check: called before each piece; ends the work by raising.
    """
    transformer = model.transformer
    where, tap = _Where(model, hidden), model.bound_tap()
    cache = Cache(model.config, 1, len(ids), transformer.dtype, transformer.device)
    found = [Entry(ids[0], *where.push(ids[0]), None)]
    for start in range(0, len(ids) - 1, _ROWS):
        check()
        piece = ids[start : min(start + _ROWS, len(ids) - 1)]
        scores = transformer(torch.tensor([piece], device=transformer.device), cache, tap=tap)[0].float().cpu()
        for row, token in zip(scores, ids[start + 1 :], strict=False):
            mine, likeliest = logprobs(row, token, top)
            found.append(Entry(token, *where.push(token), mine.logprob, likeliest))
    return found


class _Where:
    def __init__(self, model: Model, hidden: int) -> None:
        self._offsets = Offsets(model.tokenizer, start=True, specials=True)
        self._hidden = hidden

    def push(self, id: int) -> tuple[str, int]:
        if self._hidden:
            self._hidden -= 1
            return "", 0
        return self._offsets.push(id)
