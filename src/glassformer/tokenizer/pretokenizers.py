"""How byte-level vocabularies cut text before they merge, by the names GGUF files use.

Another cut gives other tokens, so a name that is not known is refused. This module knows regular expressions
and the pre-tokenizers that apply them; it knows no vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glassformer.errors import TokenizerError, near
from glassformer.tokenizer.parts import steps_of

# How a text is cut before merging, as regular expressions applied one after another, each isolating its matches.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAILS = r"|\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = _LETTERS + _TAILS % "1,3"
_QWEN2 = _LETTERS + _TAILS.replace("{%s}", "")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGIT = r"\p{N}"

PRE: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (_DIGIT, _GPT2),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "gpt-4o": (_GPT4O,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
}
# Other names in use for the same cuts.
_SAME = {
    "gpt-2": ("mpt", "olmo", "jais", "phi-2", "roberta-bpe", "gigachat", "jina-es", "jina-de", "jina-v1-en",
              "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum", "exaone4", "modern-bert"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "dbrx", "smaug-bpe"),
    "qwen2": ("deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"),
    "gpt-4o": ("llama4",),
}  # fmt: skip
ALIASES = {other: name for name, others in _SAME.items() for other in others}
NORMALISED = {"qwen2", "deepseek-r1-qwen"}  # trained on normalised text
# Names under which llama.cpp puts the begin-of-text token before a text unless the file says otherwise.
BEGINS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"})
_WHOLE = {"llama-bpe", "gpt-4o"}  # a piece that is a token is taken whole, whatever its merges say


def pre_name(given: str) -> str:
    """The name in `PRE` of a pre-tokenizer as a GGUF file names it.

    Raises:
        TokenizerError: it is not known.
    """
    name = ALIASES.get(given, given)
    if name not in PRE:
        raise TokenizerError(
            f"The GGUF file's pre-tokenizer {given!r} is not known, and cutting text another way would give wrong "
            f"tokens.{near(given, [*PRE, *ALIASES])} Load the model from its Hugging Face directory instead."
        )
    return name


def takes_whole(given: str) -> bool:
    """Whether a piece of text that is itself a token is taken whole under a pre-tokenizer's name."""
    return ALIASES.get(given, given) in _WHOLE and given not in ("dbrx", "smaug-bpe")


def cut(name: str) -> Any:
    """The pre-tokenizer of one of the names in `PRE`."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = []
    last = PRE[name][-1] == _GPT2
    for pattern in PRE[name][:-1] if last else PRE[name]:
        if pattern == _DIGIT:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        else:
            steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=last))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


def cuts_of(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """The patterns that a tokenizer.json's pre-tokenizer applies; None when it does something else."""
    patterns: list[str] = []
    steps = steps_of(pre_tokenizer)
    for index, step in enumerate(steps):
        match step:
            case {"type": "Digits", "individual_digits": True}:
                patterns.append(_DIGIT)
            case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
                patterns.append(_canonical(regex))
            case {"type": "ByteLevel", "add_prefix_space": False} if index == len(steps) - 1:
                if step.get("use_regex", True):
                    patterns.append(_GPT2)
            case _:
                return None
    return tuple(patterns)


def _canonical(regex: str) -> str:
    """Spellings of the same expression that are in use, as ours."""
    spelled = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    return regex.replace(spelled, "(?i:'s|'t|'re|'ve|'m|'ll|'d)")
