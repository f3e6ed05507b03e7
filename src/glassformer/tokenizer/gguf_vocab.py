"""Tokenizers in GGUF metadata: read into a `Tokenizer`, and written from one.

Two kinds: `gpt2` (byte-level BPE; `tokenizer.ggml.pre` names how text is cut before merging) and `llama`
(SentencePiece-style BPE: scores instead of merges, `▁` for spaces, bytes for what no token spells).
It knows the metadata keys and nothing of the file around them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glassformer.errors import TokenizerError
from glassformer.tokenizer import generation
from glassformer.tokenizer.post_processor import put_around
from glassformer.tokenizer.pretokenizers import BEGINS, NORMALISED, PRE, cut, cuts_of, pre_name, takes_whole
from glassformer.tokenizer.tokenizer import (
    DEFAULT_TEMPLATE,
    Tokenizer,
    byte_letters,
    byte_token,
    content_of,
    steps_of,
)

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
_NAMED = {
    "unk_token": "unknown",
    "sep_token": "seperator",  # spelled so there
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}

# Reading -----------------------------------------------------------------------------------------


def _listed(fields: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> list[Any] | None:
    value = fields.get(f"tokenizer.ggml.{key}")
    if value is None:
        return None
    values = list(value)
    if values and not isinstance(values[0], kind):
        raise TokenizerError(f"The GGUF file's tokenizer.ggml.{key} holds {type(values[0]).__name__} values.")
    return values


def build(fields: Mapping[str, Any]) -> Tokenizer:
    """A `Tokenizer` from GGUF metadata; see `Tokenizer.from_gguf`."""
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
        vocab.setdefault(token, id)

    adds_bos = fields.get("tokenizer.ggml.add_bos_token")
    if model == "gpt2":
        backend = _byte_level(fields, vocab, types)
        adds_bos = str(fields.get("tokenizer.ggml.pre")) in BEGINS if adds_bos is None else bool(adds_bos)
    else:
        if scores is None:
            raise TokenizerError("The GGUF file's SentencePiece-style tokenizer has no scores (tokenizer.ggml.scores).")
        backend = _sentencepiece(fields, vocab, tokens, types, scores)
        adds_bos = adds_bos is None or bool(adds_bos)
    _add(backend, tokens, types, vocab)

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
    for name, short in _NAMED.items():
        found = special(short)
        if found is not None:
            config[name] = tokens[found]
    return Tokenizer(
        backend,
        bos_id=bos,
        eos_id=eos,
        adds_bos=adds_bos,
        stop_ids=_ends(fields, tokens, types, [special(name) for name in ("eos", "eot", "eom")]),
        chat_templates=_templates(fields),
        config=config,
        gguf={k: v for k, v in fields.items() if k.startswith(("tokenizer.", "general.sampling."))},
        generation=generation.from_gguf(fields),
    )


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


def _add(backend: tokenizers.Tokenizer, tokens: list[str], types: list[int], vocab: dict[str, int]) -> None:
    """Control tokens become special ones, user-defined tokens are matched before anything is cut."""
    from tokenizers import AddedToken

    chosen = [id for id, kind in enumerate(types) if kind in (CONTROL, USER, UNKNOWN) and tokens[id]]
    for id in chosen:
        if vocab[tokens[id]] != id:
            raise TokenizerError(f"The GGUF file's tokens {vocab[tokens[id]]} and {id} are both {tokens[id]!r}.")
    backend.add_tokens([AddedToken(tokens[id], special=types[id] != USER, normalized=False) for id in chosen])


def _byte_level(fields: Mapping[str, Any], vocab: dict[str, int], types: list[int]) -> tokenizers.Tokenizer:
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


# Writing -----------------------------------------------------------------------------------------


def fields(tokenizer: Tokenizer) -> dict[str, Any]:
    """GGUF metadata for a tokenizer; see `Tokenizer.gguf_fields`."""
    if tokenizer.gguf is not None:
        return dict(tokenizer.gguf)
    source = json.loads(tokenizer.serialised)
    model = source["model"]
    if model["type"] != "BPE":
        raise TokenizerError(f"GGUF cannot hold a {model['type']} tokenizer; byte-pair encodings it can.")
    found = _common(tokenizer, model)
    if tokenizer.kind == "bytes" and not model["merges"] and len(model["vocab"]) == 256:
        return found | _bytes_only(found)
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if tokenizer.kind == "bytes":
        found |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": _expressible(source),
            "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
        }
    else:
        found |= _spelled(tokenizer, source, merges)
    return found


def _common(tokenizer: Tokenizer, model: Mapping[str, Any]) -> dict[str, Any]:
    tokens = [""] * tokenizer.vocab_size
    types = [UNUSED] * tokenizer.vocab_size
    for token, id in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        tokens[id] = token
        types[id] = BYTE if tokenizer.kind == "spaces" and byte_token(token) is not None else NORMAL
    unknown = model.get("unk_token")
    for id, added in tokenizer.backend.get_added_tokens_decoder().items():
        types[id] = UNKNOWN if added.content == unknown else CONTROL if added.special else USER
    # Every name must differ: readers make a dictionary of them.
    for id, token in enumerate(tokens):
        if not token:
            tokens[id] = f"[UNUSED_{id}]"
    found: dict[str, Any] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_bos_token": tokenizer.adds_bos,
        "tokenizer.ggml.add_eos_token": bool(tokenizer.around[1]),
    }
    if tokenizer.bos_id is not None:
        found["tokenizer.ggml.bos_token_id"] = tokenizer.bos_id
    found |= _end_fields(tokenizer, tokens)
    for name, short in _NAMED.items():
        content = content_of(tokenizer.config.get(name))
        if content in tokens:
            found[f"tokenizer.ggml.{short}_token_id"] = tokens.index(content)
    return found | _template_fields(tokenizer) | tokenizer.generation.gguf_fields()


def _end_fields(tokenizer: Tokenizer, tokens: Sequence[str]) -> dict[str, Any]:
    """The ids that end an answer: the end of text, two more for llama.cpp, and all of them as a list for others.

    Raises:
        TokenizerError: there are more than llama.cpp has room for and knows by name: it would not stop at them.
    """
    ends = tokenizer.end_ids
    if not isinstance(ends, list):
        return {} if ends is None else {"tokenizer.ggml.eos_token_id": ends}
    first, others = ends[0], ends[1:]
    if len(others) > 2:
        others = [id for id in others if tokens[id] not in LLAMA_CPP_ENDS]
    if len(others) > 2:
        listed = ", ".join(f"{tokens[id]!r} ({id})" for id in others)
        raise TokenizerError(
            f"GGUF has room for three ends of an answer, and besides {tokens[first]!r} this model names {listed}; "
            "llama.cpp would not stop at all of them. Export with --to hf instead."
        )
    message = next((id for id in others if tokens[id] == "<|eom_id|>"), others[1] if len(others) > 1 else None)
    found: dict[str, Any] = {"tokenizer.ggml.eos_token_id": first, "tokenizer.ggml.eos_token_ids": ends}
    for name, id in (("eot", next((id for id in others if id != message), None)), ("eom", message)):
        if id is not None:
            found[f"tokenizer.ggml.{name}_token_id"] = id
    return found


def _template_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    found: dict[str, Any] = {}
    named = {name: text for name, text in tokenizer.chat_templates.items() if name != DEFAULT_TEMPLATE}
    if tokenizer.chat_template is not None:
        found["tokenizer.chat_template"] = tokenizer.chat_template
    if named:
        found["tokenizer.chat_templates"] = list(named)
    return found | {f"tokenizer.chat_template.{name}": text for name, text in named.items()}


def _bytes_only(found: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes without merges, as a `llama` kind that always falls back to bytes."""
    letters = byte_letters()
    tokens = [f"<0x{letters[t]:02X}>" if t in letters else t for t in found["tokenizer.ggml.tokens"]]
    tokens[tokens.index("<0x20>")] = "▁"  # readers turn spaces into this sign before they look
    types = found["tokenizer.ggml.token_type"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [BYTE if byte_token(t) is not None else types[i] for i, t in enumerate(tokens)],
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.add_space_prefix": False,
    }


def _expressible(source: Mapping[str, Any]) -> str:
    """The GGUF name of how this byte-level tokenizer cuts text."""
    cuts = cuts_of(source.get("pre_tokenizer"))
    names = [name for name, patterns in PRE.items() if patterns == cuts]
    if not names:
        raise TokenizerError(
            "GGUF has no name for how this tokenizer cuts text before merging, so the file would give other tokens; "
            f"it has names for the cuts of {', '.join(PRE)}."
        )
    kinds = [step["type"] for step in steps_of(source.get("normalizer"))]
    if kinds and not (kinds == ["NFC"] and names[0] in NORMALISED):
        raise TokenizerError(
            f"GGUF cannot hold this tokenizer's normaliser ({'+'.join(kinds)}), so the file would give other tokens."
        )
    if bool(source["model"].get("ignore_merges")) != takes_whole(names[0]) and not _merges_agree(source):
        raise TokenizerError(
            "GGUF readers would merge this tokenizer's tokens in another order than it does (ignore_merges), so the "
            "file would give other tokens."
        )
    return names[0]


def _merges_agree(source: Mapping[str, Any]) -> bool:
    """Whether every token is also what its merges give, so that taking it whole changes nothing."""
    import tokenizers

    plain = {"version": "1.0", "added_tokens": [], "model": {**source["model"], "ignore_merges": False}}
    backend = tokenizers.Tokenizer.from_str(json.dumps(plain))
    vocab: Mapping[str, int] = source["model"]["vocab"]
    added = {token["content"] for token in source["added_tokens"]}
    whole = [token for token in vocab if token not in added]
    return all(
        found.ids == [vocab[token]] for token, found in zip(whole, backend.encode_batch_fast(whole), strict=True)
    )


def _spelled(tokenizer: Tokenizer, source: Mapping[str, Any], merges: list[Any]) -> dict[str, Any]:
    """A tokenizer over characters as GGUF's `llama` kind: ranks of merges become scores."""
    vocab = source["model"]["vocab"]
    steps = steps_of(source.get("normalizer"))
    cuts = steps_of(source.get("pre_tokenizer"))
    if steps and len(cuts) == 1 and cuts[0]["type"] == "Split" and cuts[0].get("pattern") == {"String": " "}:
        cuts = []  # Gemma's: by then no space is left to cut at
    prefixed: bool | None = None
    if tokenizer.kind == "plain" and not steps and not cuts and not any("▁" in token for token in vocab):
        prefixed = False
    elif not cuts and all(
        step.get("prepend") == "▁"
        if step["type"] == "Prepend"
        else step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == "▁"
        for step in steps
    ):
        prefixed = any(step["type"] == "Prepend" for step in steps) if steps else None
    elif not steps and len(cuts) == 1 and cuts[0]["type"] == "Metaspace" and not cuts[0].get("split", True):
        prefixed = cuts[0].get("prepend_scheme", "always") != "never"
    if prefixed is None:
        raise TokenizerError(
            "GGUF cannot hold what this tokenizer does to text before merging, so the file would give other tokens."
        )
    common = _common(tokenizer, source["model"])
    tokens: list[str] = common["tokenizer.ggml.tokens"]
    types: list[int] = common["tokenizer.ggml.token_type"]
    rank: dict[str, int] = {}
    for index, (left, right) in enumerate(merges):
        rank.setdefault(left + right, index)
    worst = len(merges)
    scores = [0.0 if types[i] != NORMAL else -float(rank.get(token, worst)) for i, token in enumerate(tokens)]
    spelled = [token if types[i] != NORMAL else token.replace(" ", "▁") for i, token in enumerate(tokens)]
    return common | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": spelled,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefixed,
    }
