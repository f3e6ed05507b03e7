"""TransformerLens on SmolLM2's own numbers: its bridge over transformers' model of the dequantised file.

Runs in the peers' interpreter, as part of a worker of a benchmark that compares with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def bridge(gguf: Path, threads: int) -> tuple[Any, Any, int]:
    """TransformerLens's model, its tokenizer, and how many layers it has; in float32, with explicit attention.

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
    return model, tokenizer, int(plain.config.num_hidden_layers)
