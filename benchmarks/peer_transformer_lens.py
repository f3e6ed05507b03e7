"""TransformerLens on SmolLM2's own numbers: its bridge over transformers' model of the dequantised file.

`bridge` runs in the peers' interpreter, as part of a worker of a benchmark that compares with it; the prompts are those
that both sides are asked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

PAIR = (
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
)
ANSWERS = (" Mary", " John")


def bridge(gguf: Path, threads: int) -> tuple[Any, Callable[[str], list[int]], int]:
    """TransformerLens's model, what makes ids of a text, and how many layers; in float32, with explicit attention.

    Args:
        gguf: the file, which transformers dequantises.
        threads: of torch.
    """
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    plain = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model = TransformerBridge.boot_transformers("smollm2", hf_model=plain, tokenizer=tokenizer, device="cpu")
    return model, lambda text: tokenizer.encode(text, add_special_tokens=False), int(plain.config.num_hidden_layers)
