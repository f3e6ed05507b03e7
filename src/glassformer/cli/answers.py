"""What the verbs that answer share: the options of an answer, and how its tokens are shown."""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from glassformer.cli.terminal import ReadingProgress, Wrapper, hanging, quiet_keys, width
from glassformer.errors import UsageError
from glassformer.generate.settings import settings

if TYPE_CHECKING:
    from glassformer.generate.constraints import Constraint
    from glassformer.generate.drafting import Drafter
    from glassformer.generate.tokens import GeneratedToken
    from glassformer.lm import Model

SHOWN = 5  # rejected alternatives beside each token
INTERRUPTED = 130
_INDENT = 27  # columns before the rejected alternatives

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
CacheBitsOption = Annotated[
    int | None,
    typer.Option(
        "--cache-bits",
        metavar="N",
        help="Bits of a kept key's or value's number: 8, 16 or 32.",
        show_default="what goes with the precision",
    ),
]
ShowOption = Annotated[
    bool, typer.Option("--show", "-s", help="Each token with its probability and the rejected alternatives.")
]


_TYPES: dict[str, Any] = {
    "number": float | None,
    "whole": int | None,
    "seed": int | None,
    "switch": bool,
    "ids": list[int] | None,
    "biases": list[str] | None,
}


def sampling_options(defaults: Mapping[str, Any]) -> list[inspect.Parameter]:
    """A command-line option for every sampling setting that has one; what is not given is None (False for a switch)."""
    found = []
    for name, one in settings().items():
        if not one.flags:
            continue
        shown: str | bool = False
        if one.in_files:
            usual = defaults.get(name)
            shown = f"the model's own, else {one.neutral if usual is None else usual:g}"
        switch = one.kind == "switch"
        option = typer.Option(*one.flags, metavar=None if switch else one.metavar, help=one.help, show_default=shown)
        found.append(_option(name, Annotated[_TYPES[one.kind], option], False if switch else None))
    return found


def _most(usual: int | None) -> Any:
    """The option for the answer's length, with the verb's own where neither the user nor the model says."""
    shown = f"the model's own, else {usual or 'all that fit'}"
    help = "Tokens of the answer; 0 for all that fit."
    return Annotated[int | None, typer.Option("--max-tokens", "-n", metavar="N", help=help, show_default=shown)]


def _option(name: str, annotation: object, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)


@dataclass(frozen=True)
class How:
    """How an answer is computed, chosen and shown: the options that every verb which answers takes, in their order.

    Attributes:
        given: sampling settings that the command line names.
        usual: the verb's own, for what neither the command line nor the model says. usual_tokens: the same of
            `max_tokens`.
    """

    max_tokens: int | None = None
    stop: StopOption = None
    precision: PrecisionOption = "exact"
    cache_bits: CacheBitsOption = None
    show: ShowOption = False
    given: dict[str, Any] = field(default_factory=dict)
    usual: dict[str, Any] = field(default_factory=dict)
    usual_tokens: int | None = None

    def options(self, model: Model) -> dict[str, Any]:
        """For `Model.generate`: what was said comes before what the model's files say, and that before the verb's own.

        Raises:
            UsageError: for a bias of another form.
        """
        said = {name: value for name, value in self.given.items() if value is not None and value is not False}
        if "logit_bias" in said:
            said["logit_bias"] = bias(said["logit_bias"])
        own = self.usual | model.generation.sampling
        most = self.max_tokens
        if most is None:
            most = model.generation.max_tokens or self.usual_tokens
        rest = {"stop": self.stop or model.generation.stop, "precision": self.precision, "max_tokens": most or None}
        return own | said | rest | {"cache_bits": self.cache_bits}


def answering(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A verb whose parameter `how` stands for the sampling settings and the rest of `How`, with these defaults."""
    known = settings()
    usual = {name: value for name, value in defaults.items() if name in known}

    def decorated(verb: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(verb, eval_str=True)
        hints = get_type_hints(How, include_extras=True)
        names = ("max_tokens", "stop", "precision", "cache_bits", "show")
        most = defaults.get("max_tokens")
        hints["max_tokens"] = _most(most)
        plain = [_option(n, hints[n], None if n == "max_tokens" else defaults.get(n, getattr(How, n))) for n in names]
        shared = [plain[0], *sampling_options(usual), *plain[1:]]

        @functools.wraps(verb)
        def command(**given: Any) -> None:
            said = {name: given.pop(name) for name in known if name in given}
            how = How(**{name: given.pop(name) for name in names}, given=said, usual=usual, usual_tokens=most)
            verb(**given, how=how)

        parameters = [p for one in own.parameters.values() for p in (shared if one.name == "how" else [one])]
        command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorated


LookupOption = Annotated[
    bool, typer.Option("--lookup", help="Guess ahead from repeats in the text; quicker, the same answer.")
]
DraftOption = Annotated[
    str | None, typer.Option("--draft", metavar="SOURCE", help="Guess ahead with this smaller model.")
]


SchemaOption = Annotated[
    Path | None, typer.Option("--schema", metavar="FILE", help="The answer is JSON that follows the JSON schema in it.")
]
RegexOption = Annotated[
    str | None, typer.Option("--regex", metavar="RE", help="The answer matches a regular expression.")
]
GrammarOption = Annotated[
    Path | None, typer.Option("--grammar", metavar="FILE", help="The answer is of the Lark or GBNF grammar in it.")
]
ChoiceOption = Annotated[str | None, typer.Option("--choice", metavar="A,B", help="The answer is one of these texts.")]


def constraint(schema: Path | None, regex: str | None, grammar: Path | None, choice: str | None) -> Constraint | None:
    """The form that an answer must have, if one is asked for.

    Raises:
        UsageError: for several at once, a file that is no text, or a form that cannot be.
    """
    given = {"--schema": schema, "--regex": regex, "--grammar": grammar, "--choice": choice}
    said = [name for name, value in given.items() if value is not None]
    if not said:
        return None
    if len(said) > 1:
        raise UsageError(f"An answer has one form; give one of {' and '.join(said)}.")
    from glassformer.generate.constraints import Constraint

    if schema is not None:
        return Constraint.schema(_file(schema))
    if grammar is not None:
        return Constraint.grammar(_file(grammar))
    if regex is not None:
        return Constraint.regex(regex)
    assert choice is not None
    return Constraint.choice(choice.split(","))


def _file(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None


SteerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--steer",
        metavar="FILE[=X]",
        help="Add a saved direction X times (1 without); may be given several times.",
    ),
]


CircuitOption = Annotated[
    Path | None,
    typer.Option(
        "--circuit",
        metavar="FILE",
        help="Run only a circuit saved by `glassformer circuit -o`, all else as in its other prompt.",
    ),
]


def steered(model: Model, given: list[str] | None, circuit: Path | None = None) -> Model:
    """The model with `--circuit` and `--steer` options put in.

    Raises:
        CheckpointError: for a file that is no direction or circuit of this model.
    """
    from glassformer.interp.edits import steer

    taps: list[Any] = [] if circuit is None else [model.load_circuit(circuit)]
    for one in given or []:
        path, sign, strength = one.rpartition("=")
        try:
            times = float(strength) if sign else 1.0
        except ValueError:  # a path with the sign in it
            path, times = one, 1.0
        taps.append(steer(model.load_direction(path if sign else one), strength=times))
    return model.edited(*taps) if taps else model


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
    from glassformer.generate.drafting import NgramLookup

    if draft is None:
        return NgramLookup()
    if lookup:
        raise UsageError("--lookup and --draft both guess ahead; give one of them.")
    return drafting(model, open_model(draft), 1)


def drafting(model: Model, smaller: Model, slots: int) -> Drafter:
    """A smaller model that guesses ahead of another, for so many answers at once.

    Raises:
        UsageError: for one with other tokens.
    """
    from glassformer.generate.drafting import DraftModels
    from glassformer.generate.runners import EagerRunner

    if smaller.config.vocab_size != model.config.vocab_size:
        raise UsageError(
            f"A draft model must have the same tokens; {smaller.name} has {smaller.config.vocab_size} and "
            f"{model.name} {model.config.vocab_size}."
        )
    return DraftModels(EagerRunner(smaller.transformer, slots=slots), slots)


class Printer:
    """Writes an answer as it comes: text to standard output, or with `show` one line a token.

    On a terminal the text breaks between words, and a long prompt shows how much of it is read.

    Attributes:
        text: the answer so far.
        tokens: what it is made of.
        reading: is told how much of the prompt is read.
    """

    def __init__(self, show: bool = False, quiet: bool = False) -> None:
        self._show, self._quiet = show, quiet
        self.text = ""
        self.tokens: list[GeneratedToken] = []
        self._start = time.perf_counter()
        self._first: float | None = None
        self._columns = width() if sys.stdout.isatty() else None
        self._wrapper = None if self._columns is None or show else Wrapper(self._columns)
        self.reading = ReadingProgress()

    def write(self, token: GeneratedToken) -> None:
        """Take in one token and write it."""
        self._first = self._first or time.perf_counter()
        self.reading.clear()
        self.text += token.text
        self.tokens.append(token)
        if self._quiet:
            return
        if self._show:
            shown = line(token)
            sys.stdout.write((shown if self._columns is None else hanging(shown, self._columns, _INDENT)) + "\n")
        else:
            sys.stdout.write(token.text if self._wrapper is None else self._wrapper.push(token.text))
        sys.stdout.flush()

    def end(self) -> None:
        """The line break after an answer."""
        self.reading.close()
        if not self._quiet and self._wrapper is not None:
            sys.stdout.write(self._wrapper.finish())
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
    shown = f"{visible(token.token):<16} {token.probability:7.2%}   {others}".rstrip()
    if token.removed is not None and token.unconstrained is not None:
        own = token.unconstrained
        instead = "" if own.id == token.id else f", whose own choice is {visible(own.token)} ({own.probability:.1%})"
        shown += f"   [the form took {token.removed:.1%} from the model{instead}]"
    return shown


def print_answer(tokens: Any, printer: Printer) -> bool:
    """Write a whole answer; False when Ctrl-C ended it, which ends the computation too."""
    try:
        with quiet_keys():
            for token in tokens:
                printer.write(token)
    except KeyboardInterrupt:
        return False
    finally:
        tokens.close()
    return True
