"""What requests of every API are made of: how fields are checked, which change nothing, how tokens are chosen.

A field that changes nothing at the value sent is taken; one that would change the answer and is not there is refused
by its name. It knows the requests' shapes; it does not know models, and nothing here is computed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    create_model,
    model_validator,
)

from glassformer.errors import UsageError, near
from glassformer.generate.settings import Sampling, Setting, by_name, settings
from glassformer.generate.stop import LONGEST_STOP, MOST_STOPS

MOST_CHOICES = 16
MOST_PROMPTS = 64
MOST_TOP = 20
_MOST_BIASES = 1024
_ID = re.compile(r"[0-9]{1,9}", re.ASCII)

# Taken and not used: they say who asks, what is kept of it, or how it is computed, and never what is answered.
IGNORED = frozenset(
    {
        "user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "cache_prompt", "id_slot", "n_keep", "verbosity", "request_id", "guided_decoding_backend", "keep_alive",
        "return_progress", "timings_per_token", "min_keep",
    }
)  # fmt: skip
# Not there: only these values, which change nothing, are taken (null always is).
NEUTRAL: dict[str, tuple[object, ...]] = {
    "tfs_z": (1,),
    "top_a": (0,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "mirostat": (0,),
    "top_n_sigma": (-1, 0),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "include_stop_str_in_output": (False,),
    "add_special_tokens": (True, False),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "truncate_prompt_tokens": (-1,),
    "prompt_logprobs": (0, False),
    "n_probs": (0,),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "documents": ([],),
    "moderation": (),
    "bad_words": ([],),
    "detokenize": (True,),
    "include_reasoning": (True,),
    "transforms": ([],),
    "safe_prompt": (False,),
}


class Ask(BaseModel):
    """A request: fields that change nothing are dropped before the rest is checked."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        names = {field.validation_alias or name for name, field in cls.model_fields.items()} | set(cls.model_fields)
        kept = {}
        for name, value in data.items():
            if name in names or not isinstance(name, str):
                kept[name] = value
            elif value is None or name in cls.IGNORED:
                continue
            elif name in cls.NEUTRAL:
                if not any(
                    value == one and isinstance(value, bool) == isinstance(one, bool) for one in cls.NEUTRAL[name]
                ):
                    raise ValueError(f"{name} is not supported by this server, and would change the answer")
            else:
                raise ValueError(
                    f"{name[:100]!r} is not a field that this server knows.{near(name, [str(one) for one in names])}"
                )
        return kept


def _listed(value: object) -> Any:
    """A stop is a string or several."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _biases(value: object) -> Any:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError("a logit bias maps token ids to numbers")
    for key in value:
        if not (isinstance(key, str) and _ID.fullmatch(key)):
            raise ValueError(f'a logit bias is for token ids such as "42"; {str(key)[:50]!r} is none')
    return {int(key): number for key, number in value.items()}


def _most(value: int) -> int:
    if value == 0:
        raise ValueError("Input should be greater than or equal to 1, or -1 for all that fit")
    return value


def nullable(*kinds: Mapping[str, Any]) -> WithJsonSchema:
    """The description of a field that is one of several kinds."""
    return WithJsonSchema({"anyOf": list(kinds)})


def _none_is(usual: object) -> BeforeValidator:
    """null is the usual value."""
    return BeforeValidator(lambda value: usual if value is None else value)


TEXT: dict[str, Any] = {"type": "string"}
NULL: dict[str, Any] = {"type": "null"}
_STOP: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}
_BIAS: dict[str, Any] = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 1}

Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Stops = Annotated[
    list[Stop],
    Field(max_length=MOST_STOPS),
    BeforeValidator(_listed),
    nullable(_STOP, {"type": "array", "items": _STOP, "maxItems": MOST_STOPS}, NULL),
]
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[dict[int, Bias], Field(max_length=_MOST_BIASES), BeforeValidator(_biases), nullable(_BIAS, NULL)]
Most = Annotated[
    Annotated[int, Field(ge=-1, le=2**31 - 1), AfterValidator(_most)] | None,
    nullable(_COUNT, {"const": -1}, NULL),
]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=1000), _none_is([])]
Name = Annotated[str, Field(max_length=500)]


def sampling_fields() -> dict[str, Any]:
    """A field for every sampling setting and for each further name of it, from their one declaration."""
    found: dict[str, Any] = {}
    for name, one in settings().items():
        for spelled in (name, *one.aliases):
            about = one.help if spelled == name else f"The same as {name}."
            found[spelled] = _sampling_field(one, about)
    return found


def _sampling_field(one: Setting, about: str) -> Any:
    if one.kind == "biases":
        return Biases, Field(default={}, description=about)
    if one.kind == "ids":
        return TokenIds, Field(default=[], description=about)
    if one.kind == "switch":
        return bool | None, Field(default=None, description=about)
    low, high = (
        (one.low if one.served[0] is None else one.served[0]),
        (one.high if one.served[1] is None else one.served[1]),
    )
    whole = one.kind in ("whole", "seed")
    if one.off and low is not None:
        low = min(low, *one.off)
    if one.kind == "whole" and high is None:
        high = 2**31 - 1
    bounds = {"gt" if one.above else "ge": low, "le": high}
    limits: dict[str, Any] = {key: int(end) if whole else end for key, end in bounds.items() if end is not None}
    return (int if whole else float) | None, Field(default=None, description=about, **limits)


_Settings: Any = create_model("_Settings", __base__=Ask, **sampling_fields())


class Sampled(_Settings):
    """How an answer's tokens are chosen, and what ends it, in OpenAI's words and those of vLLM and llama.cpp."""

    model: Name | None = None
    stop: Stops = []  # noqa: RUF012
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    priority: int | None = Field(
        default=None, ge=-1000, le=1000, description="Who waits less: lower begins earlier, 0 by default, as in vLLM."
    )
    IGNORED: ClassVar[frozenset[str]] = IGNORED
    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = NEUTRAL

    @model_validator(mode="after")
    def _possible(self) -> Sampled:
        try:
            self.sampling()
        except UsageError as error:  # one setting that is spelled twice, and differently
            raise ValueError(str(error)) from None
        return self

    def sampling(self, number: int = 0, usual: Mapping[str, Any] | None = None) -> Sampling:
        """How tokens of the answer with this number are chosen; `usual` settings hold where the request is silent."""
        said = by_name({name: getattr(self, name) or None for name in _EMPTY} | self._said())
        if said.get("seed") is not None:
            said["seed"] = (said["seed"] + number) % 2**63
        return Sampling(**{**(usual or {}), **said})

    def _said(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _PLAIN}


_EMPTY = frozenset(name for name, one in settings().items() if one.kind in ("biases", "ids"))
_PLAIN = tuple(name for name in _Settings.model_fields if name not in _EMPTY)
