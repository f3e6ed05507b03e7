"""What a run is asked while it trains: the same few prompts at every look, so that what changes is the model.

The journal keeps, for each prompt, its tokens, the likeliest next ones, and where each head looks from its last token;
and for each head a score, on random tokens shown twice: how much it looks at the token before, at itself, at the first,
and at what followed the same token last time, the sign of an induction head (Olsson et al. 2022, arXiv:2209.11895).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.model import Transformer
    from glassformer.model.sites import Where
    from glassformer.tokenizer.tokenizer import Tokenizer
    from glassformer.train.loop import Probe

PROMPTS = ("The capital of France is", "import os\n", "Once upon a time")
TOP = 5
REPEATED = 24
"""Tokens of the stretch that is shown twice."""


def standard(prompts: Sequence[str] = PROMPTS) -> Probe:
    """The probe that `glassformer train` uses: called with the transformer, its tokenizer and the step."""

    def probe(transformer: Transformer, tokenizer: Tokenizer, step: int) -> Mapping[str, Any]:
        looks = {prompt: _look(transformer, tokenizer, prompt) for prompt in prompts}
        return {
            "next": {prompt: found for prompt, (found, _) in looks.items()},
            "attention": {prompt: attention for prompt, (_, attention) in looks.items()},
            "heads": _heads(transformer, tokenizer),
        }

    return probe


def _look(transformer: Transformer, tokenizer: Tokenizer, prompt: str) -> tuple[list[list[Any]], dict[str, Any]]:
    """The likeliest next tokens and their probabilities; the tokens, and per layer and head how much the last one looks
    at each. Both empty where the vocabulary cannot spell the prompt."""
    import torch

    from glassformer.errors import GlassformerError

    try:
        ids = tokenizer.encode(prompt)[-transformer.config.context :]
    except GlassformerError:
        return [], {}
    patterns = _Patterns(transformer.config.n_layers)
    logits = transformer(torch.tensor([ids], device=transformer.device), tap=patterns, last=True)[0, -1].float()
    p, found = torch.softmax(logits, -1).topk(min(TOP, logits.numel()))
    likeliest = [[tokenizer.decode([i]), round(q, 5)] for i, q in zip(found.tolist(), p.tolist(), strict=True)]
    last = [[[round(share, 4) for share in row] for row in seen[0, :, -1].tolist()] for seen in patterns.seen]
    return likeliest, {"tokens": [tokenizer.token_text(i) for i in ids], "last": last}


def _heads(transformer: Transformer, tokenizer: Tokenizer) -> dict[str, list[list[float]]]:
    """Per layer and head, the mean attention at each kind of place, on random tokens shown twice."""
    import torch

    config = transformer.config
    half = min(REPEATED, config.context // 2)
    if half < 2:
        return {}
    known = torch.tensor([i for i in tokenizer.token_ids if i < config.vocab_size])
    drawn = known[torch.randint(0, len(known), (4, half), generator=torch.Generator().manual_seed(0))]
    tokens = torch.cat([drawn, drawn], 1).to(transformer.device)
    patterns = _Patterns(config.n_layers)
    transformer(tokens, tap=patterns)
    n = tokens.shape[1]
    later = torch.arange(half, n)
    kinds = {
        "previous": (torch.arange(1, n), torch.arange(0, n - 1)),
        "itself": (torch.arange(n), torch.arange(n)),
        "first": (torch.arange(1, n), torch.zeros(n - 1, dtype=torch.long)),
        "induction": (later, later - half + 1),
    }
    return {
        kind: [[round(float(v), 4) for v in p[:, :, rows, columns].mean((0, 2))] for p in patterns.seen]
        for kind, (rows, columns) in kinds.items()
    }


class _Patterns:
    """Keeps every layer's attention pattern."""

    def __init__(self, layers: int) -> None:
        self.reads = frozenset(f"blocks.{i}.attn.pattern" for i in range(layers))
        self.writes: frozenset[str] = frozenset()
        self.seen: list[Tensor] = []

    def __call__(self, site: str, x: Tensor, where: Where) -> None:
        self.seen.append(x.float().cpu())
