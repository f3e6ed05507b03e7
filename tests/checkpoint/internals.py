"""What transformers shows of a forward, beside what a trace says of the same: hidden states, attentions, router scores.

Where transformers shows something else under the same name, the exception says what.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glassformer.interp.trace import Trace
from glassformer.model import Transformer
from glassformer.model.choices import Experts, recurrence_of, softmax_of
from glassformer.model.layers import softcap
from glassformer.model.sites import Where
from tests.tiny import gap

# Hidden states are of each layer's end, not of its beginning.
ENDS = ("mamba", "mamba2", "falcon_mamba")
# Hidden states are of the stream before the norm that begins a layer, which is a norm of the stream itself.
UNNORMED = ("minimax",)
# Attention weights as they are before the sink takes its share.
BEFORE_SINK = ("granite_swa", "granitemoe_swa")
# Scores of routers that the answer does not hold: what computes them in a layer of theirs.
ROUTERS = {"aria_text": "mlp.router", "gemma4_text": "router.proj", "jetmoe": "mlp.router.layer"}
# What computes the scores of a router of query heads.
HEAD_ROUTERS = {"jetmoe": "self_attention.experts.router.layer"}
# What its explicit form adds to scores with ALiBi is added twice, so what it shows is not what it answers.
SHOWS_ANOTHER = ("falcon: ALiBi, one after the other",)
# A matrix stands between the final norm and what is shown.
AFTER = ("opt", "modernbert-decoder")


def compare(name: str, theirs: Any, run: Trace, ids: Tensor, limit: float = 1e-5) -> None:
    """Asserts that the trace of the first text says what transformers shows."""
    kind, config = name.partition(":")[0], run.config
    if name in SHOWS_ANOTHER:
        return
    layers = range(config.n_layers)
    sparse = [i for i in layers if isinstance(config.layers[i].feed_forward, Experts)]
    soft = [i for i in layers if softmax_of(config.layers[i].mixer) is not None]
    told = sparse and hasattr(theirs.config, "output_router_logits")
    heard: list[Tensor] = []
    heads: list[Tensor] = []
    hooks = [
        module.register_forward_hook(_into(heard if table is ROUTERS else heads))
        for table in (ROUTERS, HEAD_ROUTERS)
        for at, module in theirs.named_modules()
        if kind in table and at.endswith(table[kind])
    ]
    with torch.no_grad():
        asked = {"output_hidden_states": True, "output_attentions": bool(soft)}
        shown = theirs(ids[:1], **asked, **({"output_router_logits": True} if told else {}))
    for hook in hooks:
        hook.remove()
    close = lambda mine, x, what: _close(mine, x, f"{name}: {what}", limit)  # noqa: E731
    # a stream in copies stands copy by copy there, and as the last layer leaves it
    states = [x[0] if x.ndim == 3 else x[:, 0].transpose(0, 1).flatten(1) for x in shown.hidden_states]
    assert len(states) == config.n_layers + 1
    if kind in UNNORMED:
        with torch.no_grad():
            states[:-1] = [own.input_layernorm(x) for own, x in zip(theirs.model.layers, states[:-1], strict=True)]
    for i in layers:
        close(run[f"blocks.{i}.resid_{'post' if kind in ENDS else 'pre'}"], states[i], f"hidden state {i}")
    if kind not in AFTER:
        last = f"blocks.{config.n_layers - 1}.resid_post" if config.copies else "final.normed"
        close(run[last], states[-1], "last hidden state")
    square = (ids.shape[1], ids.shape[1])  # others are states of recurrences
    attentions = [x for x in getattr(shown, "attentions", None) or () if x is not None and x.shape[-2:] == square]
    assert len(attentions) == len(soft)
    for i, x in zip(soft, attentions, strict=True):
        mine = run[f"blocks.{i}.attn.pattern"]
        if getattr(config.layers[i].mixer, "gate", None) == "experts":
            mine = _slots(mine, run[f"blocks.{i}.attn.gate"], config.attention(i))
        close(mine / mine.sum(-1, keepdim=True) if kind in BEFORE_SINK else mine, x[0], f"attention {i}")
    scores = heard or list(getattr(shown, "router_logits", None) or ())
    assert len(scores) == len(sparse)
    for i, x in zip(sparse, scores, strict=True):
        feed: Any = config.layers[i].feed_forward
        close(softcap(run[f"blocks.{i}.mlp.router"], feed.router_cap), x.reshape(-1, x.shape[-1]), f"router {i}")
    routed = [i for i in layers if getattr(config.layers[i].mixer, "gate", None) == "experts"]
    assert len(heads) == len(routed)
    for i, x in zip(routed, heads, strict=True):
        close(run[f"blocks.{i}.attn.router"], x.reshape(-1, x.shape[-1]), f"router of heads {i}")


def _into(heard: list[Tensor]) -> Any:
    return lambda module, given, out: heard.append(out[0] if isinstance(out, tuple) else out)


def _slots(pattern: Tensor, gate: Tensor, a: Any) -> Tensor:
    """Patterns of the heads that a router chose at every position, the best first: (choice · key head, query, key)."""
    best = gate[:, : a.n_experts, 0].topk(a.gate_active, dim=-1).indices  # (query, choice)
    heads = torch.arange(a.n_kv_heads)[:, None, None] * a.n_experts + best  # (key head, query, choice)
    queries = torch.arange(len(best))[:, None]
    return pattern[heads, queries].permute(2, 0, 1, 3).flatten(0, 1)


def _close(mine: Tensor, theirs: Tensor, what: str, limit: float) -> None:
    assert mine.shape == theirs.shape, what
    assert gap(mine.float(), theirs.float()) <= limit, what


class Rewritten:
    """Writes every grid that recurrences imply as it is, so that what follows is computed through the grids."""

    def __init__(self, transformer: Transformer) -> None:
        recurrences = ((i, recurrence_of(x.mixer)) for i, x in enumerate(transformer.config.layers))
        self.reads: frozenset[str] = frozenset()
        self.writes = frozenset(f"blocks.{i}.{x.prefix}.pattern" for i, x in recurrences if x is not None)

    def __call__(self, site: str, x: Tensor, where: Where) -> Tensor:
        return x.clone()
