"""The settings of a sampler, each declared once: its meaning, range, neutral value, and what each face calls it.

The command line's options, the HTTP API's fields, the documentation and `Model.generate` follow from `Sampling`: a new
setting is a field here and a line where `sampling.py` applies it. Importing this loads neither torch nor pydantic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from glassformer.errors import UsageError, near

Kind = Literal["number", "whole", "seed", "switch", "ids", "biases"]
_MOST_BIASES = 1024
_KNOWN: dict[str, Setting] = {}


@dataclass(frozen=True)
class Setting:
    """What is known of one setting.

    Attributes:
        name: in Python, in JSON, and in messages.
        help: one sentence for people.
        neutral: the value at which it changes nothing; what an answer is drawn with where nobody says otherwise.
        kind: of its values: a number, a whole number, a seed, a switch, token ids, or numbers by token id.
        low, high: the range; None where it has no end.
        above: whether `low` itself is out of range.
        off: further values that stand for the neutral one.
        flags: options of the command line; none where it has none there.
        metavar: of those options.
        aliases: further names of it in HTTP requests.
        served: a narrower range for those, where the API that is spoken has one.
        in_files: whether a model's own files may say it.
    """

    name: str = ""
    help: str = ""
    neutral: Any = None
    kind: Kind = "number"
    low: float | None = None
    high: float | None = None
    above: bool = False
    off: tuple[float, ...] = ()
    flags: tuple[str, ...] = ()
    metavar: str = "X"
    aliases: tuple[str, ...] = ()
    served: tuple[float | None, float | None] = (None, None)
    in_files: bool = False

    @property
    def range(self) -> str:
        """The range in words, as messages say it."""
        low, high = (None if end is None else f"{end:g}" for end in (self.low, self.high))
        number = "a whole number" if self.kind in ("whole", "seed") else ""
        if low is None and high is None:
            return number or "a number"
        of = f"{number} " if number else ""
        if low is None or high is None:
            end = f"at most {high}" if low is None else f"above {low}" if self.above else f"at least {low}"
            return f"{number} of {end}" if number and not self.above else of + end
        return of + (f"above {low} and at most {high}" if self.above else f"between {low} and {high}")

    def checked(self, value: Any) -> Any:
        """The value as the sampler takes it; None and the values that switch it off become the neutral one.

        Raises:
            UsageError: for a value of another kind or out of its range, by the setting's name.
        """
        if value is None:
            return self.neutral
        if self.kind == "switch":
            if not isinstance(value, bool):
                raise UsageError(f"{self.name} must be true or false; got {value!r}.")
            return value
        if self.kind == "ids":
            return frozenset(_id(self.name, one) for one in value)
        if self.kind == "biases":
            return self._biases(value)
        self._number(self.name, value)
        if value in self.off:
            return self.neutral
        return int(value) if self.kind in ("whole", "seed") else value

    def _number(self, name: str, value: Any) -> None:
        sound = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if sound and value not in self.off:
            sound = self.kind not in ("whole", "seed") or int(value) == value
            if self.low is not None:
                sound = sound and (value > self.low if self.above else value >= self.low)
            if self.high is not None:
                sound = sound and value <= self.high
        if not sound:
            raise UsageError(f"{name} must be {self.range}; got {value}.")

    def _biases(self, value: Mapping[Any, Any]) -> dict[int, float]:
        if len(value) > _MOST_BIASES:
            raise UsageError(f"{self.name} takes at most {_MOST_BIASES} tokens; got {len(value)}.")
        for token, bias in value.items():
            self._number(f"{self.name} of token {token}", bias)
        return {_id(self.name, token): float(bias) for token, bias in value.items()}


def _id(name: str, token: object) -> int:
    if isinstance(token, bool) or not isinstance(token, int):
        raise UsageError(f"{name} names tokens by their ids; {token!r} is none.")
    if token < 0:
        raise UsageError(f"{name} names token {token}; ids begin at 0.")
    return token


def _setting(neutral: Any, help: str, **known: Any) -> Any:
    about = {"setting": Setting(help=help, neutral=neutral, **known)}
    if isinstance(neutral, dict):
        return field(default_factory=dict, metadata=about)
    return field(default=neutral, metadata=about)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and how long an answer may be refused its end; the values are checked and made plain.

    The order is fixed: bias, penalties, temperature, top-k, top-p, min-p, typical-p; each filter sees what the one
    before left. `None` stands for a setting's neutral value.

    Raises:
        UsageError: for a value out of its range, by its name.
    """

    temperature: float = _setting(
        1.0,
        "Below 1 sharpens, 0 takes the likeliest token.",
        low=0,
        flags=("--temperature", "-t"),
        metavar="T",
        served=(None, 100),
        in_files=True,
    )
    top_k: int = _setting(
        0, "Only the K likeliest tokens; 0 or -1 for all.", kind="whole", low=0, off=(-1,), flags=("--top-k",),
        metavar="K", in_files=True,
    )  # fmt: skip
    top_p: float = _setting(
        1.0, "Only the likeliest tokens that reach P together (arXiv:1904.09751); 0 leaves the likeliest alone.",
        low=0, high=1, flags=("--top-p",), metavar="P", in_files=True,
    )  # fmt: skip
    min_p: float = _setting(
        0.0, "Only tokens at least P times as likely as the likeliest (arXiv:2407.01082).", low=0, high=1,
        flags=("--min-p",), metavar="P", in_files=True,
    )  # fmt: skip
    typical_p: float = _setting(
        1.0, "Only the tokens of the most usual surprise that reach P together (arXiv:2202.00666).", low=0, high=1,
        off=(0,), flags=("--typical-p",), metavar="P", aliases=("typ_p",),
    )  # fmt: skip
    repetition_penalty: float = _setting(
        1.0, "Above 1: tokens of the prompt and the answer are less likely (arXiv:1909.05858).", low=0, above=True,
        flags=("--repetition-penalty", "--repeat-penalty"), aliases=("repeat_penalty",), served=(None, 100),
        in_files=True,
    )  # fmt: skip
    presence_penalty: float = _setting(
        0.0,
        "Taken once from the scores of tokens in the answer.",
        low=-100,
        high=100,
        flags=("--presence-penalty",),
        served=(-2, 2),
    )
    frequency_penalty: float = _setting(
        0.0,
        "Taken as often as a token is in the answer.",
        low=-100,
        high=100,
        flags=("--frequency-penalty",),
        served=(-2, 2),
    )
    logit_bias: Mapping[int, float] = _setting(
        {}, "Added to a token's score; may be given several times.", kind="biases", low=-100, high=100,
        flags=("--logit-bias",), metavar="ID=X",
    )  # fmt: skip
    min_tokens: int = _setting(
        0, "Tokens before the answer may end.", kind="whole", low=0, off=(-1,), flags=("--min-tokens",), metavar="N"
    )
    ignore_eos: bool = _setting(
        False, "Go on after tokens that end a text or a turn.", kind="switch", flags=("--ignore-eos",)
    )
    stop_token_ids: frozenset[int] = _setting(
        frozenset(), "A token that ends the answer; may be given several times.", kind="ids",
        flags=("--stop-token-id",), metavar="ID",
    )  # fmt: skip
    seed: int | None = _setting(
        None, "The same seed gives the same answer.", kind="seed", low=-(2**63), high=2**63 - 1, flags=("--seed",),
        metavar="N",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name, setting in settings().items():
            object.__setattr__(self, name, setting.checked(getattr(self, name)))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Sampling:
        """The settings of these names, aliases among them; None leaves one as it is.

        Raises:
            UsageError: for a name that no setting has, or one setting given twice and differently.
        """
        return cls(**by_name(values))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def unfiltered(self) -> bool:
        """Whether every token may be drawn."""
        return self.top_k == 0 and self.top_p == 1 and self.min_p == 0 and self.typical_p == 1

    @property
    def plain(self) -> bool:
        """Whether logits are used as they are, before temperature and filters."""
        return not self.logit_bias and self.repetition_penalty == 1 and not self.counts

    @property
    def counts(self) -> bool:
        """Whether it matters how often a token is in the answer."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0


def settings() -> dict[str, Setting]:
    """Every setting by its name, in their order."""
    if not _KNOWN:
        _KNOWN.update({one.name: replace(one.metadata["setting"], name=one.name) for one in fields(Sampling)})
    return _KNOWN


def by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values under each setting's own name; those that are None are left out.

    Raises:
        UsageError: for a name that no setting has, or one setting given twice and differently.
    """
    known = settings()
    names = {alias: name for name, one in known.items() for alias in (name, *one.aliases)}
    found: dict[str, Any] = {}
    for said, value in values.items():
        if said not in names:
            raise UsageError(f"There is no setting {said!r} of an answer.{near(said, names)}")
        name = names[said]
        if value is None:
            continue
        if name in found and found[name] != value:
            raise UsageError(f"{name} and {', '.join(known[name].aliases)} are one setting, and differ here.")
        found[name] = value
    return found


GREEDY = Sampling(temperature=0.0)
