"""The forward behind a trace: tokens checked, padded and run once, its basis kept.

It chooses what is kept; what that says is `recording`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glassformer.errors import TextError
from glassformer.interp import memory
from glassformer.interp.recorded_layers import basis_sites, grid_site
from glassformer.interp.recording import Recording
from glassformer.interp.taps import Bound, Compose, Record
from glassformer.model import Config, Transformer
from glassformer.model.cache import Cache
from glassformer.model.choices import Attention
from glassformer.model.sites import Tap, layer_of

Ids = Sequence[int] | Sequence[Sequence[int]]


def checked(ids: Ids | Tensor, config: Config) -> tuple[list[list[int]], bool]:
    """Checked ids as a list of texts, and whether several were given."""
    given: list[Any] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    batched = bool(given) and not isinstance(given[0], int)
    rows: list[list[int]] = [[int(i) for i in row] for row in (given if batched else [given])]
    if not rows or not all(rows):
        raise TextError("A trace needs at least one token of every text.")
    for i in (i for row in rows for i in row):
        if not 0 <= i < config.vocab_size:
            raise TextError(f"Token id {i} is not in this model's vocabulary of {config.vocab_size:,}.")
    return rows, batched


def run(transformer: Transformer, rows: list[list[int]], longest: int, tap: Tap | None) -> Recording:
    """The forward, its basis kept; anything a tap writes outside the grids is kept as written.

    Raises:
        MemoryLimitError: when it would not fit, with the arithmetic.
    """
    config, device = transformer.config, transformer.device
    itemsize = transformer.embed.weight.element_size()
    cost = memory.estimate(config, longest, batch=len(rows), itemsize=itemsize, device=str(device))
    cost.require("trace a shorter text, or fewer at once")
    tokens = torch.tensor([[0] * (longest - len(r)) + r for r in rows], device=device)
    mask = None
    if any(len(r) < longest for r in rows):
        mask = torch.tensor([[False] * (longest - len(r)) + [True] * len(r) for r in rows], device=device)
    edit: Bound | None = None if tap is None else Compose(tap).bind(config)
    written = set() if edit is None else {name for name in edit.writes if not grid_site(name)}
    record = Record(*dict.fromkeys([*basis_sites(config), *sorted(written)]))
    looking = Compose(record).bind(config) if edit is None else Compose(edit, record).bind(config)
    to_logits = edit is not None and any(_after_final(name) for name in edit.reads | edit.writes)
    with torch.no_grad():
        if to_logits:
            transformer(tokens, mask=mask, tap=looking)
        else:
            transformer.hidden(tokens, mask=mask, tap=looking)
    if edit is not None:
        looking.finish()
    if mask is None:
        positions = torch.arange(longest, device=device).expand(tokens.shape)
    else:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    return Recording(transformer, {name: record.tensor(name) for name in record}, positions, mask, _changing(edit))


def grown(before: Recording, ids: Sequence[int], shared: int) -> Recording | None:
    """The forward of one text whose first `shared` tokens are an earlier one's: only those after them are computed.
    None where the design asks for a whole one."""
    transformer, config = before.transformer, before.config
    alone = before.mask is None and len(before.positions) == 1
    plain = all(type(layer.mixer) is Attention for layer in config.layers) and not config.turns_by_length
    if not (alone and plain and 0 < shared < len(ids)):
        return None
    memory.estimate(
        config, len(ids), itemsize=transformer.embed.weight.element_size(), device=str(before.positions.device)
    ).require("trace a shorter text")
    cache = Cache(config, 1, len(ids), transformer.dtype, transformer.device)
    for layer, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
        if keys is not None and values is not None:
            keys[:, :, :shared], values[:, :, :shared] = before.keys_and_values(layer, slice(shared))
    cache.length = shared
    record = Record(*basis_sites(config))
    with torch.no_grad():
        transformer.hidden(
            torch.tensor([ids[shared:]], device=transformer.device), cache, tap=Compose(record).bind(config)
        )
    recorded = {name: torch.cat([before.recorded[name][:, :shared], record.tensor(name)], 1) for name in record}
    return Recording(transformer, recorded, torch.arange(len(ids), device=transformer.device)[None], None)


def _changing(edit: Bound | None) -> Bound | None:
    """What of a tap changes the model: what only looks has seen this forward, and what is run again later is not it."""
    actions = [] if edit is None else [one for one in edit.actions if one.writes]
    return Bound(actions) if actions else None


def _after_final(name: str) -> bool:
    return layer_of(name) is None and name.startswith("logits")
