"""A short continuation, drawn while a model trains, so that one can read how it learns.

The full generator, with its caches and options, belongs to models that are done; this one has no settings but a
prompt and a length, draws from its own generator, and so never disturbs the run.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from glassformer.errors import GlassformerError
from glassformer.model import Cache, Transformer
from glassformer.train.recipe import LoopSpec

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer

TEMPERATURE = 0.8


@torch.no_grad()
def sample(transformer: Transformer, tokenizer: Tokenizer, spec: LoopSpec) -> str:
    """A continuation of the recipe's prompt, at a temperature of 0.8, the prompt included."""
    ids = tokenizer.encode(spec.sample_prompt) or [_first(tokenizer)]
    config = transformer.config
    device = transformer.device
    many = min(spec.sample_tokens, config.context - len(ids))
    if many < 1:
        return tokenizer.decode(ids)
    generator = torch.Generator().manual_seed(spec.seed)
    cache = Cache(config, 1, len(ids) + many, transformer.dtype, device)
    fed = ids
    known = [i for i in tokenizer.token_ids if i < config.vocab_size]
    for _ in range(many):
        logits = transformer(torch.tensor([fed], device=device), cache, last=True)[0, -1].float().cpu()
        chosen = known[int(torch.multinomial(torch.softmax(logits[known] / TEMPERATURE, -1), 1, generator=generator))]
        if chosen in tokenizer.stop_ids:
            break
        ids = [*ids, chosen]
        fed = [chosen]
    return tokenizer.decode(ids)


def _first(tokenizer: Tokenizer) -> int:
    """What an empty prompt begins with: begin or end of text (documents follow it), a line break, or any token."""
    for candidate in (tokenizer.bos_id, tokenizer.eos_id):
        if candidate is not None:
            return int(candidate)
    with suppress(GlassformerError):  # a vocabulary of one text's characters may know no line break
        return int(tokenizer.encode("\n")[0])
    return int(next(iter(tokenizer.token_ids)))
