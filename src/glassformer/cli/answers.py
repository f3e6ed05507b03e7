"""What the verbs that answer share: the options of an answer, and how its tokens are shown."""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from glassformer.errors import UsageError

if TYPE_CHECKING:
    from glassformer.generate.drafting import Drafter
    from glassformer.generate.tokens import GeneratedToken
    from glassformer.lm import Model

SHOWN = 5  # rejected alternatives beside each token
INTERRUPTED = 130

MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", "-n", metavar="N", help="Tokens of the answer; 0 for all that fit.")
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", "-t", metavar="T", help="Below 1 sharpens, 0 takes the likeliest token.")
]
TopKOption = Annotated[int | None, typer.Option("--top-k", metavar="K", help="Only the K likeliest tokens.")]
TopPOption = Annotated[
    float | None, typer.Option("--top-p", metavar="P", help="Only the likeliest tokens that reach P together.")
]
MinPOption = Annotated[
    float | None, typer.Option("--min-p", metavar="P", help="Only tokens at least P times as likely as the likeliest.")
]
RepetitionOption = Annotated[
    float, typer.Option("--repetition-penalty", metavar="X", help="Above 1: what was there before is less likely.")
]
PresenceOption = Annotated[
    float, typer.Option("--presence-penalty", metavar="X", help="Taken once from the scores of tokens in the answer.")
]
FrequencyOption = Annotated[
    float, typer.Option("--frequency-penalty", metavar="X", help="Taken as often as a token is in the answer.")
]
BiasOption = Annotated[
    list[str] | None,
    typer.Option("--logit-bias", metavar="ID=X", help="Added to a token's score; may be given several times."),
]
SeedOption = Annotated[int | None, typer.Option("--seed", metavar="N", help="The same seed gives the same answer.")]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="Ends the answer; may be given several times.")
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="P",
        help="exact (float32), fast (the file's own blocks, else int8), bfloat16, int8, int4.",
    ),
]
ShowOption = Annotated[
    bool, typer.Option("--show", "-s", help="Each token with its probability and the rejected alternatives.")
]


@dataclass(frozen=True)
class How:
    """How an answer is computed, chosen and shown: the options that every verb which answers takes, in their order."""

    max_tokens: MaxTokensOption = None
    temperature: TemperatureOption = 1.0
    top_k: TopKOption = None
    top_p: TopPOption = None
    min_p: MinPOption = None
    repetition_penalty: RepetitionOption = 1.0
    presence_penalty: PresenceOption = 0.0
    frequency_penalty: FrequencyOption = 0.0
    logit_bias: BiasOption = None
    seed: SeedOption = None
    stop: StopOption = None
    precision: PrecisionOption = "exact"
    show: ShowOption = False

    def options(self) -> dict[str, Any]:
        """For `Model.generate`.

        Raises:
            UsageError: for a bias of another form.
        """
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "show"}
        biases = {"logit_bias": bias(self.logit_bias), "stop": self.stop or ()}
        return given | biases | {"max_tokens": self.max_tokens or None}


def answering(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A verb whose parameter `how` stands for all of `How`'s options, with these defaults where they differ."""

    def decorated(verb: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(verb, eval_str=True)
        hints = get_type_hints(How, include_extras=True)
        shared = [
            inspect.Parameter(
                one.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=defaults.get(one.name, one.default),
                annotation=hints[one.name],
            )
            for one in fields(How)
        ]

        @functools.wraps(verb)
        def command(**given: Any) -> None:
            how = How(**{one.name: given.pop(one.name) for one in fields(How)})
            verb(**given, how=how)

        parameters = [p for one in own.parameters.values() for p in (shared if one.name == "how" else [one])]
        command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorated


LookupOption = Annotated[
    bool, typer.Option("--lookup", help="Guess ahead from repeats in the text; quicker, the same distribution.")
]
DraftOption = Annotated[
    str | None, typer.Option("--draft", metavar="SOURCE", help="Guess ahead with this smaller model.")
]


def bias(given: list[str] | None) -> dict[int, float]:
    """`ID=X` options as a logit bias.

    Raises:
        UsageError: for one of another form.
    """
    found: dict[int, float] = {}
    for one in given or []:
        id, sign, value = one.partition("=")
        try:
            found[int(id)] = float(value)
        except ValueError:
            sign = ""
        if not sign:
            raise UsageError(f"--logit-bias is a token's id and a number, such as 42=-100; {one!r} is not.")
    return found


def drafter(model: Model, lookup: bool, draft: str | None) -> Drafter | None:
    """The drafter that guesses ahead, if one is asked for.

    Raises:
        UsageError: for a draft model with other tokens.
    """
    if not (lookup or draft):
        return None
    from glassformer.cli.common import open_model
    from glassformer.generate.drafting import DraftModel, NgramLookup
    from glassformer.generate.runners import EagerRunner

    if draft is None:
        return NgramLookup()
    if lookup:
        raise UsageError("--lookup and --draft both guess ahead; give one of them.")
    smaller = open_model(draft)
    if smaller.config.vocab_size != model.config.vocab_size:
        raise UsageError(
            f"A draft model must have the same tokens; {smaller.name} has {smaller.config.vocab_size} and "
            f"{model.name} {model.config.vocab_size}."
        )
    return DraftModel(EagerRunner(smaller.transformer))


class Printer:
    """Writes an answer as it comes: text to standard output, or with `show` one line a token.

    Attributes:
        text: the answer so far.
        tokens: what it is made of.
    """

    def __init__(self, show: bool = False, quiet: bool = False) -> None:
        self._show, self._quiet = show, quiet
        self.text = ""
        self.tokens: list[GeneratedToken] = []
        self._start = time.perf_counter()
        self._first: float | None = None

    def write(self, token: GeneratedToken) -> None:
        """Take in one token and write it."""
        self._first = self._first or time.perf_counter()
        self.text += token.text
        self.tokens.append(token)
        if self._quiet:
            return
        sys.stdout.write(line(token) + "\n" if self._show else token.text)
        sys.stdout.flush()

    def end(self) -> None:
        """The line break after an answer."""
        if not self._quiet and not self._show and not self.text.endswith("\n"):
            print()
        sys.stdout.flush()

    @property
    def precision(self) -> str:
        """Of what computed the answer; several when it changed on the way."""
        return ", then ".join(dict.fromkeys(token.precision for token in self.tokens)) or "no token"

    def summary(self, model: Model) -> str:
        """Model, precision, tokens and speed, on one line."""
        count = len(self.tokens)
        parts = [model.name, self.precision, f"{count} token{'' if count == 1 else 's'}"]
        if self._first is not None:
            parts.append(f"first after {self._first - self._start:.2f} s")
            if count > 1:
                speed = (count - 1) / max(time.perf_counter() - self._first, 1e-9)
                parts.append(f"{speed:.{0 if speed >= 10 else 1}f} tokens/s")
        if self.tokens and self.tokens[-1].finish == "length":
            parts.append("cut at its length")
        return ", ".join(parts)


def line(token: GeneratedToken) -> str:
    """A token, its probability, and what was rejected for it."""
    from glassformer.cli.next import visible

    others = "  ".join(f"{visible(one.token)} {one.probability:.1%}" for one in token.rejected[:SHOWN])
    return f"{visible(token.token):<16} {token.probability:7.2%}   {others}".rstrip()


def print_answer(tokens: Any, printer: Printer) -> bool:
    """Write a whole answer; False when Ctrl-C ended it, which ends the computation too."""
    try:
        for token in tokens:
            printer.write(token)
    except KeyboardInterrupt:
        return False
    finally:
        tokens.close()
    return True
