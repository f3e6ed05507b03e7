"""What an answer must be: a JSON value, one that follows a schema, a match of a regular expression or of a grammar.

A constraint says at every token which may come next; the others are left out before one is chosen, whatever runs the
model. The grammars are llguidance's (an extra, imported when used); what it cannot hold an answer to is refused by its
name. It knows tokens and their bytes; it does not know models, requests or sampling.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from glassformer.errors import UsageError

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer

Kind = Literal["json", "schema", "regex", "choice", "grammar", "calls"]
_QUOTED = re.compile(r"\d+ \|")
LONGEST = 1_000_000  # characters of a schema or grammar
MOST_CHOICES = 10_000
_KEPT = 64  # compiled constraints of one tokenizer
_SPELT = 4096  # texts whose tokens are kept
# White space in JSON: without an end to it, a model may write line breaks for ever.
_WHITESPACE = r"[ ]|\n[ \t]{0,20}"


@dataclass(frozen=True)
class Constraint:
    """A form that the answer must have; made by one of the functions below, equal where it means the same.

    Attributes:
        kind: what it is called in messages.
        text: the schema as JSON, the expression, the choices as JSON, or the grammar.
    """

    kind: Kind
    text: str

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise UsageError(f"The {_NAMES[self.kind]} is empty; give one, or leave it out.")
        if len(self.text) > LONGEST:
            raise UsageError(
                f"The {_NAMES[self.kind]} has {len(self.text):,} characters; at most {LONGEST:,} are read."
            )

    @classmethod
    def json(cls) -> Constraint:
        """Any JSON object."""
        return cls("json", '{"type": "object"}')

    @classmethod
    def schema(cls, schema: str | bool | Mapping[str, Any]) -> Constraint:
        """A JSON value that follows a JSON schema, given as an object or as its text.

        Raises:
            UsageError: for what is no JSON, or neither an object nor a truth value.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise UsageError(f"The JSON schema is not JSON ({error}).") from None
        if schema is False:
            raise UsageError("The JSON schema is false, which no answer can follow.")
        if schema is not True and not isinstance(schema, Mapping):
            raise UsageError(f"A JSON schema is an object or true; this one is {type(schema).__name__}.")
        try:
            return cls("schema", json.dumps({} if schema is True else schema, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"The JSON schema cannot be written as JSON ({error}).") from None

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """A text that a regular expression matches from its first character to its last."""
        return cls("regex", pattern)

    @classmethod
    def choice(cls, choices: Sequence[str]) -> Constraint:
        """One of several texts.

        Raises:
            UsageError: for no choice, or one that is empty or no text.
        """
        listed = list(dict.fromkeys(choices)) if not isinstance(choices, str) else [choices]
        if not listed or not all(isinstance(one, str) and one for one in listed):
            raise UsageError("A choice is between at least one text, and none of them is empty.")
        if len(listed) > MOST_CHOICES:
            raise UsageError(f"A choice is between at most {MOST_CHOICES:,} texts; this one has {len(listed):,}.")
        return cls("choice", json.dumps(listed))

    @classmethod
    def grammar(cls, text: str) -> Constraint:
        """A text of a context-free grammar, in Lark's form or llama.cpp's (GBNF, known by its `::=`)."""
        return cls("grammar", text)

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return _NAMES[self.kind]


_NAMES: dict[Kind, str] = {
    "json": "JSON object",
    "schema": "JSON schema",
    "regex": "regular expression",
    "choice": "choice",
    "grammar": "grammar",
    "calls": "form of the tools' calls",
}


def _grammar(llguidance: Any, constraint: Constraint) -> str:
    """The constraint in llguidance's own form."""
    make, text = llguidance.LLMatcher, constraint.text
    if constraint.kind in ("json", "schema"):
        text = json.dumps(closed(json.loads(text)))
        found: str = make.grammar_from_json_schema(text, overrides={"whitespace_pattern": _WHITESPACE})
        return found
    if constraint.kind == "regex":
        return str(make.grammar_from_regex(text))
    if constraint.kind == "choice":
        quoted = (json.dumps(one, ensure_ascii=False) for one in json.loads(text))
        return str(make.grammar_from_lark("start: " + " | ".join(quoted)))
    if "::=" in text:
        from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

        try:
            text = gbnf_to_lark(text)
        except GbnfToLarkError as error:
            raise _refusal(constraint, str(error)) from None
    return str(make.grammar_from_lark(text))


_OBJECT = frozenset({"type", "properties", "required", "title", "description", "$defs", "definitions", "default"})
_NAMES_INSIDE = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_DATA_INSIDE = frozenset({"enum", "const", "default", "examples", "required"})


def closed(schema: object) -> Any:
    """A schema whose objects hold the properties that they name and no others, where it does not say otherwise.

    Whatever follows it follows the schema as given; a small model left to invent properties may never end. An object
    that several schemas describe together (`allOf`, `$ref` beside `properties`) stays as it is.
    """
    return schema if _joins(schema) else _closed(schema)


def _joins(schema: object) -> bool:
    if isinstance(schema, list):
        return any(_joins(one) for one in schema)
    if not isinstance(schema, dict):
        return False
    if "allOf" in schema or ("$ref" in schema and "properties" in schema):
        return True
    inner = ((key, value) for key, value in schema.items() if key not in _DATA_INSIDE)
    return any(_joins(list(v.values()) if k in _NAMES_INSIDE and isinstance(v, dict) else v) for k, v in inner)


def _closed(schema: object) -> Any:
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMES_INSIDE and isinstance(value, dict):
            out[key] = {name: _closed(one) for name, one in value.items()}
        else:
            out[key] = value if key in _DATA_INSIDE else _closed(value)
    named, required = out.get("properties"), out.get("required", [])
    if not (isinstance(named, dict) and named and isinstance(required, list) and set(out) <= _OBJECT):
        return out
    return out | {"additionalProperties": False} if all(name in named for name in required) else out


class Grammars:
    """Compiles constraints for one tokenizer, and keeps them. May be used from several threads.

    Args:
        tokenizer: gives tokens their bytes and names those that end an answer.
        vocab: rows of the model's logits.

    Raises:
        UsageError: when llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        try:
            import llguidance
        except ImportError:
            raise UsageError(
                "A constraint needs the package llguidance; install it with: pip install 'glassformer[constraints]'"
            ) from None
        self._llguidance, self._vocab = llguidance, vocab
        ends = sorted(tokenizer.stop_ids)
        there = set(tokenizer.token_ids)
        rows = max(vocab, max(there) + 1) + 1  # the last stands for the end where the tokenizer has none
        tokens = [tokenizer.token_bytes(i) if i in there else b"" for i in range(rows)]
        special = sorted({*getattr(tokenizer, "special_ids", ()), *ends, rows - 1})

        class Words:
            """What llguidance asks of a tokenizer."""

            eos_token_id = ends[0] if ends else rows - 1
            bos_token_id = None
            special_token_ids = special

            @functools.lru_cache(_SPELT)  # keys and punctuation come again and again  # noqa: B019
            def __call__(self, text: str) -> list[int]:
                return tokenizer.encode(text, bos=False, specials=False)

        Words.tokens = tokens  # type: ignore[attr-defined]
        words = llguidance.TokenizerWrapper(Words())
        self._tokenizer = llguidance.LLTokenizer(words, n_vocab=rows, eos_token=ends or [rows - 1])
        self._compiled: OrderedDict[Constraint, Any] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, constraint: Constraint) -> Matcher:
        """A matcher at the beginning of an answer.

        Raises:
            UsageError: for a constraint that cannot be held to, with the reason.
        """
        with self._lock:
            made = self._compiled.get(constraint)
            if made is not None:
                self._compiled.move_to_end(constraint)
        if made is None:
            made = self._compile(constraint)
            with self._lock:
                self._compiled[constraint] = made
                while len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
        return Matcher(made.deep_copy(), self._vocab, constraint)

    def _compile(self, constraint: Constraint) -> Any:
        try:
            grammar = _grammar(self._llguidance, constraint)
        except (ValueError, KeyError, IndexError, RecursionError) as error:
            raise _refusal(constraint, str(error)) from None
        made = self._llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if made.is_error():
            raise _refusal(constraint, made.get_error())
        first = Matcher(made, self._vocab, constraint)
        if not bool(first.allowed().any()):
            raise _refusal(constraint, "it allows no text at all")
        return made


def _refusal(constraint: Constraint, reason: str) -> UsageError:
    # What llguidance says, without its own state and the lines of source that it quotes.
    lines = [line.strip() for line in reason.partition("<state>")[0].splitlines()]
    reason = " ".join(line for line in lines if line.strip("^ ") and not _QUOTED.match(line))[:500].rstrip(".")
    if reason.startswith("NoExtension"):
        reason = "by its rules no text ever ends"
    return UsageError(f"An answer cannot be held to this {constraint.name}: {reason}.")


class Matcher:
    """Follows one answer and knows which tokens its constraint allows next.

    Attributes:
        stopped: whether the answer is complete and cannot go on.
    """

    def __init__(self, inner: Any, vocab: int, constraint: Constraint) -> None:
        self._inner, self._vocab, self._constraint = inner, vocab, constraint
        self._allowed: Tensor | None = None
        self.stopped = False

    def allowed(self) -> Bool[Tensor, " vocab"]:
        """Tokens that may come next."""
        if self._allowed is None:
            bits = np.frombuffer(self._inner.compute_bitmask(), dtype=np.uint8)
            self._check()
            self._allowed = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._vocab].view(bool))
        return self._allowed

    def accept(self, token: int) -> None:
        """Follow the answer by one token."""
        self._inner.consume_token(token)
        self._check()
        self._allowed = None
        self.stopped = self._inner.is_stopped()

    def possible(self, tokens: list[int]) -> int:
        """How many of these tokens, from the first on, may come next."""
        return int(self._inner.validate_tokens(tokens))

    def forced(self) -> list[int]:
        """The tokens, in the tokenizer's own spelling, of a text that has to come next; [] where it may be several."""
        return list(self._inner.compute_ff_tokens())

    def _check(self) -> None:
        if self._inner.is_error():
            raise _refusal(self._constraint, self._inner.get_error())
