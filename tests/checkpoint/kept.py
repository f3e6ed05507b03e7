"""Tiny models with every way of saying how they are spoken to, exported and asked; transformers beside ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import glassformer as gf
from glassformer.cli.export import export

BOS, EOS, PLACE = "<bos>", "<eos>", 80  # the last: the place in the text after which the favoured token comes


def folder(
    directory: Path,
    specials: Sequence[str] = (BOS, EOS),
    added: Sequence[Any] = (),
    *,
    bos: bool = False,
    favour: str | None = None,
    generation: Mapping[str, Any] | None = None,
    more: Mapping[str, str] | None = None,
    **config: Any,
) -> Path:
    """A tiny random Llama with a byte-level tokenizer, as transformers and the tokenizers library save them."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({c: i for i, c in enumerate([*specials, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(specials))
    backend.add_tokens(list(added))
    if bos:
        backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "max_position_embeddings": 64}
    settings |= {"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=backend.get_vocab_size(), **settings)).eval()
    if favour is not None:
        with torch.no_grad():
            last = model.model(torch.tensor([[0, PLACE]])).last_hidden_state[0, -1]
            model.lm_head.weight.zero_()
            model.lm_head.weight[backend.token_to_id(favour)] = last
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink()
    backend.save(str(directory / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": specials[0], "eos_token": specials[1], **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    for name, text in (more or {}).items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return directory


def theirs(directory: Path) -> list[int]:
    """What transformers answers greedily, up to five tokens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    found = model.generate(torch.tensor([[0, PLACE]]), max_new_tokens=5, do_sample=False, pad_token_id=0)
    return list(found[0, 2:].tolist())


def ours(path: Path) -> list[int]:
    model = gf.load(path, device="cpu", dtype="float32")
    return [piece.id for piece in model.generate([0, PLACE], max_tokens=5, temperature=0)]


def both(source: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """The source exported to a folder, to a GGUF, and from there to a folder again."""
    there, file, back = tmp_path / "there", tmp_path / "file.gguf", tmp_path / "back"
    export(str(source), "hf", str(there))
    export(str(source), "gguf", str(file), "f32")
    export(str(file), "hf", str(back))
    return there, file, back
