"""What the tests of the engine share: tiny designs, a tokenizer of letters, and answers without an engine."""

from __future__ import annotations

from dataclasses import replace

import torch

from glassformer.generate.native_model import NativeModel
from glassformer.model import Attention, Experts, FeedForward, Transformer, uniform

CONFIG = uniform(
    vocab_size=50,
    d_model=32,
    n_layers=2,
    context=128,
    mixer=Attention(n_heads=4, n_kv_heads=2, d_head=8),
    feed_forward=FeedForward(d_ff=64),
    tied=True,
)


class Letters:
    """A tokenizer for tests: id i is the letter chr(97 + i % 26); 40 to 42 are the bytes of "€"."""

    stop_ids = frozenset({49})
    token_ids = range(50)

    def stream(self, *, start: bool = False, specials: bool = True):
        from glassformer.tokenizer.stream import StreamDecoder

        return StreamDecoder(self.token_bytes, lambda id: None)

    def token_bytes(self, id: int) -> bytes:
        return "€".encode()[id - 40 : id - 39] if 40 <= id <= 42 else bytes([97 + id % 26])


EXPERTS = replace(
    CONFIG,
    layers=tuple(replace(one, feed_forward=Experts(n_experts=4, n_active=2, d_ff=32)) for one in CONFIG.layers),
)
RUNNERS = ("torch", "float32", "bfloat16", "int8", "int4", "torch of experts", "float32 of experts")


class Reference:
    """The answer computed without an engine: the whole text is read again for every token.

    In pieces of fewer than 64 tokens: those of a longer piece of a prompt are rounded to bfloat16 in the native
    forward's quicker precisions, which a token that was generated is not.
    """

    def __init__(self, model: Transformer, kind: str) -> None:
        self.model, self.kind = model, kind
        self.native = NativeModel.from_transformer(model, kind) if kind not in ("torch", "float32") else None

    def logits(self, ids: list[int]) -> torch.Tensor:
        if self.native is not None:
            pieces = range(0, len(ids), 63)
            return [self.native.prefill(ids[at : at + 63], start=at) for at in pieces][-1]
        with torch.inference_mode():
            return self.model(torch.tensor([ids]), last=True)[0, -1]

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        ids = list(prompt)
        for _ in range(count):
            ids.append(int(self.logits(ids).argmax()))
        return ids[len(prompt) :]

    def agrees(self, prompt: list[int], answer: list[int], count: int) -> bool:
        """Whether this is the greedy answer. In bfloat16, where many rows are rounded more than few (decision 0010),
        each token may be one whose score is as good as the best within that rounding."""
        if self.kind != "bfloat16":
            return answer == self.greedy(prompt, count)
        for i, token in enumerate(answer):
            logits = self.logits([*prompt, *answer[:i]])
            if float(logits.max() - logits[token]) > 0.05 * float(logits.norm()):
                return False
        return len(answer) == count


def ids_of(steps) -> list[int]:
    return [step.id for step in steps if step.id is not None]


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [torch.randint(0, 39, (n,), generator=generator).tolist() for n in lengths]
