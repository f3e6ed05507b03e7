"""GGUF metadata written from a `Tokenizer`: what `gguf_vocab` reads; what the format has no word for is refused.

It knows the metadata keys and nothing of the file around them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glassformer.errors import TokenizerError
from glassformer.tokenizer.gguf_vocab import (
    BYTE,
    CONTROL,
    LLAMA_CPP_ENDS,
    NAMES_IN_GGUF,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER,
    swallows,
)
from glassformer.tokenizer.parts import DEFAULT_TEMPLATE, byte_letters, byte_token, content_of, steps_of
from glassformer.tokenizer.pretokenizers import NORMALISED, PRE, cuts_of, takes_whole

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer

# Texts in which an added token (the star) is looked for when a file is written.
_PROBES = ("a*b", "a  *  b", "*\n\n*", "x* *y", "a*", "*b")


def fields(tokenizer: Tokenizer, model: str = "") -> dict[str, Any]:
    """GGUF metadata for a tokenizer; see `Tokenizer.gguf_fields`."""
    _check_added(tokenizer, model)
    return _fields(tokenizer) if tokenizer.gguf is None else dict(tokenizer.gguf)


def _check_added(tokenizer: Tokenizer, model: str) -> None:
    """Refuses added tokens with flags that a reader of the file would not know, where they change what is found.

    Raises:
        TokenizerError: naming one of them, its flags, and a text that would be read otherwise.
    """
    import tokenizers

    source = json.loads(tokenizer.serialised)
    for token in source["added_tokens"]:
        token |= {"single_word": False, "lstrip": False, "normalized": False}
        token["rstrip"] = swallows(token["content"], model)
    plain = tokenizers.Tokenizer.from_str(json.dumps(source))
    added = tokenizer.backend.get_added_tokens_decoder().values()
    probes = [(token, text.replace("*", token.content)) for token in added for text in _PROBES]
    texts = [text for _, text in probes]
    ours, theirs = (one.encode_batch_fast(texts, add_special_tokens=False) for one in (tokenizer.backend, plain))
    for (token, text), one, other in zip(probes, ours, theirs, strict=True):
        if one.ids != other.ids:
            flags = " and ".join(f for f in ("lstrip", "rstrip", "single_word", "normalized") if getattr(token, f))
            raise TokenizerError(
                f"GGUF has no word for the flags of the added token {token.content!r} ({flags or 'none'}): "
                f"{text!r} would become {len(other.ids)} tokens instead of {len(one.ids)}. Export with --to hf instead."
            )


def _fields(tokenizer: Tokenizer) -> dict[str, Any]:
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
    for name, short in NAMES_IN_GGUF.items():
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
