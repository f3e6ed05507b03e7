"""Tokenizers of every kind we load, made by the reference libraries from a small text, and texts to try them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

CORPUS = (
    "The quick brown fox can't jump over 12 lazy dogs, it's 3.14 o'clock. Die Äpfel fallen weit vom Stamm.\n"
    "def f(x):\n    return x ** 2  # 日本の首都は東京です。 Привет, мир! 👩‍👩‍👧 🇫🇷 café cafe\u0301\r\n\r\n"
    "\tThey'll say WE'RE done.\n"
) * 20

PIECES = [
    "The", " fox", "can't", "WE'RE", "  ", "     ", "\n", "\r\n", "\t", "\x00", "é", "e\u0301", "日本", "👩‍👩‍👧", "🇫🇷",
    "\u200d", "\ufeff", "\u00a0", "\u3000", "½", "٣", "<|endoftext|>", "<s>", "</s>", "<eot>", "   <eot> ", "<pad>",
    "▁", "Ġ",
    "<0x41>", "12345", "!!!", "_a_", "𝔘", "\U0010ffff", "ﬁ", "क्षि", "한국어", "مرحبا", "\u2028", ".\n\n",
]  # fmt: skip
_ANY = st.characters(exclude_categories=["Cs"])
_PIECE = st.one_of(st.sampled_from(PIECES), st.text(_ANY, max_size=4))
TEXTS = st.one_of(st.text(_ANY, max_size=40), st.lists(_PIECE, max_size=8).map("".join))


def _bpe(byte_level: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary and merges learned from `CORPUS`."""
    import json

    import tokenizers
    from tokenizers import normalizers, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    specials = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<pad>"]
    if byte_level:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        specials += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, special_tokens=specials, initial_alphabet=alphabet
    )
    backend.train_from_iterator([CORPUS], trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _class(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


def save(kind: str, directory: Path) -> None:
    """Write the tokenizer of a kind into a directory, as its own library does."""
    from tokenizers import AddedToken

    name, _, more = kind.partition(", ")
    byte_level = name not in ("Llama", "Gemma")
    vocab, merges = _bpe(byte_level)
    settings: dict[str, Any] = {}
    if more == "bos":
        settings["add_bos_token"] = True
    if more == "bos and eos":
        settings |= {"add_bos_token": True, "add_eos_token": True}
    if more == "no bos":
        settings["add_bos_token"] = False
    if more == "no prefix":
        settings["add_prefix_space"] = False
    if byte_level:
        settings |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    if name == "Gemma":
        settings |= {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<pad>"}
    made = _class(f"{name}Tokenizer")(vocab=vocab, merges=merges, **settings)
    if more == "added":
        made.add_tokens(
            [AddedToken("<eot>", lstrip=True, rstrip=True, normalized=False), AddedToken("fox", single_word=True)]
        )
        made.add_tokens([AddedToken("     ", normalized=False)])
    made.save_pretrained(directory)


KINDS = [
    "GPT2", "GPT2, bos", "GPT2, added", "GPTNeoX", "GPTNeoX, added", "Qwen2", "Qwen2, added",
    "Llama", "Llama, no bos", "Llama, bos", "Llama, bos and eos", "Llama, no prefix", "Llama, added",
    "Gemma", "Gemma, bos", "Gemma, added",
]  # fmt: skip
