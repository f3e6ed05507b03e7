"""Tokenizers in GGUF metadata, read into what a `Tokenizer` is made of.

Two kinds: `gpt2` (byte-level BPE; `tokenizer.ggml.pre` names how text is cut before merging) and `llama`
(SentencePiece-style BPE: scores instead of merges, `▁` for spaces, bytes for what no token spells).
It knows the metadata keys and nothing of the file around them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from glassformer.errors import TokenizerError
from glassformer.tokenizer import generation
from glassformer.tokenizer.parts import DEFAULT_TEMPLATE
from glassformer.tokenizer.post_processor import put_around
from glassformer.tokenizer.pretokenizers import BEGINS, NORMALISED, cut, pre_name, takes_whole

if TYPE_CHECKING:
    import tokenizers

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# Tokens that llama.cpp takes for the end of an answer by their names.
LLAMA_CPP_ENDS = frozenset(
    {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
        "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "<|end_of_text|>", "<end_of_utterance>", "<turn|>",
    }
)  # fmt: skip
# What configurations call a special token, and GGUF does.
NAMES_IN_GGUF = {
    "unk_token": "unknown",
    "sep_token": "seperator",  # spelled so there
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}


def _listed(fields: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> list[Any] | None:
    value = fields.get(f"tokenizer.ggml.{key}")
    if value is None:
        return None
    values = list(value)
    if values and not isinstance(values[0], kind):
        raise TokenizerError(f"The GGUF file's tokenizer.ggml.{key} holds {type(values[0]).__name__} values.")
    return values


def build(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a `Tokenizer`, from GGUF metadata; see `Tokenizer.from_gguf`."""
    model = fields.get("tokenizer.ggml.model")
    if model is None:
        raise TokenizerError("The GGUF file holds no tokenizer (tokenizer.ggml.model is missing).")
    if model not in ("gpt2", "llama"):
        raise TokenizerError(
            f"The GGUF file's tokenizer is of kind {model!r}; 'gpt2' (byte-level BPE) and 'llama' (SentencePiece-style "
            "BPE) are supported."
        )
    tokens = _listed(fields, "tokens", str)
    if not tokens:
        raise TokenizerError("The GGUF file's tokenizer has no tokens (tokenizer.ggml.tokens is missing or empty).")
    types = _listed(fields, "token_type", int) or [NORMAL] * len(tokens)
    scores = _listed(fields, "scores", (float, int))
    for name, values in (("token_type", types), ("scores", scores)):
        if values is not None and len(values) != len(tokens):
            raise TokenizerError(
                f"The GGUF file's tokenizer has {len(tokens)} tokens and {len(values)} entries in {name}."
            )
    vocab: dict[str, int] = {}
    for id, token in enumerate(tokens):
        if types[id] != UNUSED:  # a row of the model that no text reaches, such as padding
            vocab.setdefault(token, id)

    adds_bos = fields.get("tokenizer.ggml.add_bos_token")
    if model == "gpt2":
        backend = _byte_level(fields, vocab, {t: i for i, t in enumerate(tokens) if types[i] == UNUSED})
        adds_bos = str(fields.get("tokenizer.ggml.pre")) in BEGINS if adds_bos is None else bool(adds_bos)
    else:
        if scores is None:
            raise TokenizerError("The GGUF file's SentencePiece-style tokenizer has no scores (tokenizer.ggml.scores).")
        backend = _sentencepiece(fields, vocab, tokens, types, scores)
        adds_bos = adds_bos is None or bool(adds_bos)
    _add(backend, tokens, types, vocab, str(fields.get("general.name") or ""))

    def special(name: str) -> int | None:
        id = fields.get(f"tokenizer.ggml.{name}_token_id")
        if id is None:
            return None
        if not 0 <= int(id) < len(tokens):
            raise TokenizerError(
                f"The GGUF file names {name} token {int(id)}, and its vocabulary ends at {len(tokens) - 1}."
            )
        return int(id)

    bos, eos = special("bos"), special("eos")
    adds_bos = adds_bos and bos is not None
    adds_eos = bool(fields.get("tokenizer.ggml.add_eos_token")) and eos is not None
    put_around(backend, [bos] * adds_bos, [eos] * adds_eos)  # type: ignore[list-item]  # None only where none is added
    config = {}
    for name, short in NAMES_IN_GGUF.items():
        found = special(short)
        if found is not None:
            config[name] = tokens[found]
    return {
        "backend": backend,
        "bos_id": bos,
        "eos_id": eos,
        "adds_bos": adds_bos,
        "stop_ids": _ends(fields, tokens, types, [special(name) for name in ("eos", "eot", "eom")]),
        "chat_templates": _templates(fields),
        "config": config,
        "gguf": {k: v for k, v in fields.items() if k.startswith(("tokenizer.", "general.sampling."))},
        "generation": generation.from_gguf(fields),
    }


def _ends(fields: Mapping[str, Any], tokens: list[str], types: list[int], said: list[int | None]) -> set[int]:
    """The ids that end an answer: those that the file names, and what llama.cpp adds to them.

    A file without a list has room for one end of a turn (`eot`). Where it leaves that out, llama.cpp looks for
    tokens with names that end turns; here only control tokens are looked at.
    """
    ends = {id for id in said if id is not None}
    listed = _listed(fields, "eos_token_ids", int)
    if listed is not None:
        return ends | {id for id in listed if 0 <= id < len(tokens)}
    if said[1] is None:
        ends |= {id for id, kind in enumerate(types) if kind == CONTROL and tokens[id] in LLAMA_CPP_ENDS}
    return ends


def _templates(fields: Mapping[str, Any]) -> dict[str, str]:
    names = {"tokenizer.chat_template": DEFAULT_TEMPLATE}
    names |= {f"tokenizer.chat_template.{name}": name for name in fields.get("tokenizer.chat_templates") or ()}
    return {name: str(fields[key]) for key, name in names.items() if fields.get(key)}


def _add(backend: tokenizers.Tokenizer, tokens: list[str], types: list[int], vocab: dict[str, int], model: str) -> None:
    """Control tokens become special ones, user-defined tokens are matched before anything is cut."""
    from tokenizers import AddedToken

    chosen = [id for id, kind in enumerate(types) if kind in (CONTROL, USER, UNKNOWN) and tokens[id]]
    for id in chosen:
        if vocab[tokens[id]] != id:
            raise TokenizerError(f"The GGUF file's tokens {vocab[tokens[id]]} and {id} are both {tokens[id]!r}.")
    backend.add_tokens(
        [
            AddedToken(
                tokens[id],
                special=types[id] != USER,
                normalized=False,
                rstrip=swallows(tokens[id], model),
            )
            for id in chosen
        ]
    )


def swallows(token: str, model: str) -> bool:
    """Whether llama.cpp lets an added token take the spaces after it. The format has no flags, and llama.cpp knows one
    rule, by the model's name: those of a Phi-3 do, but for its begin and end of text."""
    return any(name in model.lower() for name in ("phi-3", "phi3")) and token not in ("<unk>", "<s>", "<|endoftext|>")


def _byte_level(fields: Mapping[str, Any], vocab: dict[str, int], unused: Mapping[str, int]) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, normalizers

    given = str(fields.get("tokenizer.ggml.pre") or "default")
    name = pre_name(given)
    listed = _listed(fields, "merges", str)
    if listed is None:
        raise TokenizerError("The GGUF file's byte-level tokenizer has no merges (tokenizer.ggml.merges).")
    merges: list[tuple[str, str]] = []
    for merge in listed:
        left, _, right = merge.partition(" ")
        for part in (left, right, left + right):  # an unused token may still be a step on the way to another
            if part not in vocab and part in unused:
                vocab[part] = unused[part]
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise TokenizerError(f"The GGUF file's merge {merge!r} names a token that its vocabulary lacks.")
        merges.append((left, right))
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=takes_whole(given)))
    if given in NORMALISED:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = cut(name)
    backend.decoder = decoders.ByteLevel()
    return backend


def merges_by_score(pieces: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges that pieces and their scores imply: the best-scored piece is joined first.

    Every way to split a piece into two others is one merge; merges of one piece share its rank.
    """
    found: list[tuple[float, str, str]] = []
    for piece, score in pieces.items():
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in pieces and right in pieces:
                found.append((score, left, right))
    found.sort(key=lambda merge: -merge[0])
    return [(left, right) for _, left, right in found]


def _sentencepiece(
    fields: Mapping[str, Any], vocab: dict[str, int], tokens: list[str], types: list[int], scores: list[float]
) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, normalizers

    pieces = {token: float(scores[id]) for token, id in vocab.items() if types[id] == NORMAL and token}
    falls = all(f"<0x{byte:02X}>" in vocab for byte in range(256) if byte != 0x20 or "▁" not in vocab)
    unknown = next((tokens[id] for id, kind in enumerate(types) if kind == UNKNOWN), None)
    backend = tokenizers.Tokenizer(
        models.BPE(vocab, merges_by_score(pieces), byte_fallback=falls, unk_token=unknown, fuse_unk=True)
    )
    prefix = fields.get("tokenizer.ggml.add_space_prefix")
    spaced = prefix is None or bool(prefix)
    steps: list[Any] = [normalizers.Prepend("▁")] if spaced else []
    steps.append(normalizers.Replace(" ", "▁"))
    backend.normalizer = normalizers.Sequence(steps) if len(steps) > 1 else steps[0]
    ends: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*ends, decoders.Strip(" ", 1, 0)] if spaced else ends)
    return backend
