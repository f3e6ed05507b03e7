"""What the verbs share: their common options, reading text, printing, opening models.

A verb is a file `cli/<verb>.py` with one function `command(...)` whose docstring is its help, listed
in `app.py`. Data goes to standard output, progress to standard error; problems are raised as
`GlassformerError` and become one line there. Nothing heavy is imported at the top of a verb's file.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.errors import TextError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from glassformer.lm import Model

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="SOURCE",
        envvar="GLASSFORMER_MODEL",
        help="A path, a catalogue name, or org/name[@revision] on the Hugging Face hub; SOURCE+ADAPTER puts one in.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
BosOption = Annotated[
    bool | None,
    typer.Option("--bos/--no-bos", help="Put the beginning-of-text token first; by default as the tokenizer says."),
]
TokenOption = Annotated[
    str | None, typer.Option("--token", metavar="TOKEN", help="The token to explain; the first choice without.")
]
AgainstOption = Annotated[
    str | None, typer.Option("--against", metavar="TOKEN", help="Explain the difference to this token.")
]
PositionOption = Annotated[int, typer.Option("--position", "-p", help="After which position; negative from the end.")]
TextArgument = Annotated[str, typer.Argument(metavar="TEXT", help="The text; - reads standard input.")]

LensOption = Annotated[
    list[str] | None,
    typer.Option("--lens", metavar="NAME=FILE", help="A fitted lens (`readout`), asked for by its name in views."),
]

LayOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lay", metavar="NAME=PATH", help="A transcoder or SAE, laid over a layer of graphs by its name in views."
    ),
]


def named_lenses(given: list[str] | None) -> dict[str, Path]:
    """Names and files of fitted lenses, each given as NAME=FILE or as its file alone, which is called by its stem.

    Raises:
        UsageError: one that is no file, or two of one name.
    """
    return _named(
        given, "Lenses", Path.is_file, "There is no file {}; a lens is a file that `glassformer readout` wrote."
    )


def named_dictionaries(given: list[str] | None) -> dict[str, Path]:
    """Names and places of dictionaries, each given as NAME=PATH or as its path alone, which is called by its stem.

    Raises:
        UsageError: one that is not there, or two of one name.
    """
    told = "There is nothing at {}; a dictionary is a folder of SAELens's or a file layer_N.safetensors."
    return _named(given, "Dictionaries", Path.exists, told)


def named_directions(given: list[str] | None) -> dict[str, Path]:
    """Names and files of saved directions, each given as NAME=FILE or as its file alone, which is called by its stem.

    Raises:
        UsageError: one that is not there, or two of one name.
    """

    def there(path: Path) -> bool:
        return Path(str(path).removesuffix(".safetensors").removesuffix(".json") + ".json").is_file()

    told = "There is no direction at {}; one is two files that `glassformer direction --out` wrote."
    return _named(given, "Directions", there, told)


def _named(given: list[str] | None, what: str, there: Callable[[Path], bool], absent: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for one in given or ():
        name, mark, path = one.partition("=")
        file = Path(path if mark else one)
        name = name if mark else file.stem
        if not there(file):
            raise UsageError(absent.format(file))
        if not name or name in found:
            raise UsageError(f"{what} have names of their own; {one!r} has none, or one that is taken.")
        found[name] = file
    return found


def read_text(text: str) -> str:
    """The text of an argument; "-" reads standard input, less one final line break.

    Raises:
        TextError: when it is not UTF-8.
    """
    if text == "-":
        data = sys.stdin.buffer.read()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise TextError(
                f"Standard input is not UTF-8 text (its byte {error.start} cannot be decoded); convert it first, "
                "for example with iconv -t UTF-8."
            ) from None
        for end in ("\r\n", "\n"):
            if text.endswith(end):
                return text[: -len(end)]
        return text
    return characters(text)


def characters(text: str) -> str:
    """The same text, typed or given as an argument, once it is known to be one.

    Raises:
        TextError: when it is not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # the system hands undecodable bytes over as lone surrogates
        raise TextError(
            f"The text is not valid UTF-8 (its character {error.start} is not a character); give it in UTF-8."
        ) from None
    return text


def print_json(data: object) -> None:
    """Write `data` as JSON to standard output; NaN and infinities are refused, for JSON has none."""
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    print(json.dumps(data, ensure_ascii=plain, allow_nan=False, indent=2))


def console() -> Console:
    """The terminal for data: standard output, without guesses at what to colour."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def progress_console() -> Console:
    """The terminal for progress and remarks: standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def note(message: str) -> None:
    """A message for the person at the terminal, on standard error, broken between words where it is one."""
    if sys.stderr.isatty():
        from glassformer.cli.terminal import hanging, width

        message = "\n".join(hanging(line, width(), 0) for line in message.split("\n"))
    print(message, file=sys.stderr)


def bar(share: float, width: int, upper: float | None = None) -> Text:
    """`share` of `width` characters, in eighths: full up to what is sure, light up to what is possible.

    Anything above nothing shows.
    """
    from rich.text import Text

    eighths = max(round(share * width * 8), 1 if share > 0 else 0)
    full, part = divmod(eighths, 8)
    sure = "█" * full + ("▏▎▍▌▋▊▉"[part - 1] if part else "")
    rest = 0 if upper is None else max(0, round(upper * width) - len(sure))
    return Text.assemble((sure, "cyan"), ("░" * rest, "dim"))


def model_source(source: str | None) -> str:
    """The model asked for: the option, else `GLASSFORMER_MODEL`, else the catalogue's default."""
    from glassformer.fetch.catalogue import DEFAULT

    return source or os.environ.get("GLASSFORMER_MODEL") or DEFAULT


def open_model(source: str | None = None, **options: Any) -> Model:
    """Load the model asked for; `options` go to `glassformer.load`."""
    import glassformer

    plain_warnings()
    return glassformer.load(model_source(source), **options)


def plain_warnings() -> None:
    """From now on Glassformer's own warnings are one line each on standard error, said once."""
    import warnings

    before = warnings.showwarning
    said: set[str] = set()

    def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
        if not category.__module__.startswith("glassformer"):
            before(message, category, *where, **more)
        elif str(message) not in said:
            said.add(str(message))
            note(f"glassformer: note: {message}")

    warnings.showwarning = show
    warnings.filterwarnings("always", module="glassformer", category=UserWarning)


def need(module: str, *, verb: str, extra: str) -> None:
    """Refuse in one sentence when an optional dependency is missing.

    Raises:
        UsageError: naming the command that installs it.
    """
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise UsageError(
            f"glassformer {verb} needs the package {module}; install it with: pip install 'glassformer[{extra}]'"
        ) from None


def quiet_stdout() -> None:
    """Send what is still buffered for a reader that has gone to nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
