"""The table of verbs and the one place where errors become lines and exit codes.

A verb's file is imported when that verb is called, never to list it, so `glassformer --help` stays
quick however heavy a verb is. Exit codes: 0, 1 failure, 2 usage, 130 interrupt.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from glassformer import __version__
from glassformer.cli.common import quiet_stdout
from glassformer.errors import GlassformerError


class Verb(NamedTuple):
    """Where a verb lives and its one-line help (the first line of its function's docstring)."""

    target: str  # "module:name"; the name is a function, or a typer.Typer of subcommands
    help: str


VERBS: dict[str, Verb] = {
    "next": Verb("glassformer.cli.next:command", "Show how likely every next token and whole next word is."),
    "complete": Verb("glassformer.cli.complete:command", "Continue a text, streamed."),
    "chat": Verb("glassformer.cli.chat:command", "Talk with a model in the terminal."),
    "why": Verb("glassformer.cli.why:command", "Show which words, heads and layers made the model say that."),
    "attention": Verb("glassformer.cli.attention:command", "Show where each head looks."),
    "graph": Verb("glassformer.cli.graph:command", "Show which words, heads and neurons made a prediction."),
    "look": Verb("glassformer.cli.look:command", "Show why a head looks from one token at another."),
    "lens": Verb("glassformer.cli.lens:command", "Read every layer out as a next-token distribution."),
    "readout": Verb("glassformer.cli.readout:command", "Fit a lens to a text: tuned, Jacobian or relevance."),
    "heads": Verb("glassformer.cli.heads:command", "Score and name what each attention head does."),
    "neurons": Verb("glassformer.cli.neurons:command", "Show the feed-forward neurons behind a prediction."),
    "experts": Verb("glassformer.cli.experts:command", "Show which experts a text goes to, and what they write."),
    "meaning": Verb("glassformer.cli.meaning:command", "Follow one word's vector through several contexts."),
    "direction": Verb("glassformer.cli.direction:command", "Find a direction from examples, to steer by."),
    "patch": Verb("glassformer.cli.patch:command", "Find where two prompts part, by activation patching."),
    "circuit": Verb("glassformer.cli.circuit:command", "Find the edges that carry what makes two prompts differ."),
    "corpus": Verb("glassformer.cli.corpus:command", "Follow one part of the model through your own texts."),
    "neighbours": Verb("glassformer.cli.neighbours:command", "List the nearest tokens of a word or a direction."),
    "open": Verb("glassformer.cli.open:command", "Open the app in the browser."),
    "report": Verb(
        "glassformer.cli.report:command", "Write a text's every view into one HTML file that works offline."
    ),
    "site": Verb("glassformer.cli.site:command", "Write a folder of pages that any web host serves."),
    "train": Verb("glassformer.cli.train:command", "Train a model from raw text."),
    "eval": Verb("glassformer.cli.eval:command", "Measure loss, perplexity and bits per byte on a text."),
    "step": Verb("glassformer.cli.step:command", "Take one gradient step on a sentence and show what changed."),
    "influence": Verb(
        "glassformer.cli.influence:command", "Show which passages of its training text taught a run a text."
    ),
    "count": Verb("glassformer.cli.count:command", "Count the parameters, FLOPs and memory of a design."),
    "race": Verb("glassformer.cli.race:command", "Race one parallel forward against reading word by word."),
    "serve": Verb("glassformer.cli.serve:command", "Serve models over HTTP to programs of many kinds."),
    "export": Verb("glassformer.cli.export:command", "Write a model in the Hugging Face or GGUF layout."),
    "models": Verb("glassformer.cli.models:command", "List, fetch and delete the models kept on this machine."),
    "demo": Verb("glassformer.cli.demo:command", "Show the next words of a few sentences, and what to try next."),
}


class VerbGroup(TyperGroup):
    """A group that lists its verbs from a table and imports only the one that is called."""

    def list_commands(self, ctx: object) -> list[str]:
        return verbs()

    def get_command(self, ctx: object, cmd_name: str) -> Any:
        if cmd_name not in verbs():
            return None
        return TyperCommand(cmd_name, help=VERBS[cmd_name].help, rich_markup_mode=None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}  # for near matches
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None:
            command = load_verb(name)
        return name, command, rest


def verbs() -> list[str]:
    """The verbs whose file is there, in the table's order."""
    here = {path.stem for path in Path(__file__).parent.glob("*.py")}
    return [name for name, verb in VERBS.items() if verb.target.partition(":")[0].rpartition(".")[2] in here]


def load_verb(name: str) -> Any:
    """Import a verb and build its command."""
    module, _, attribute = VERBS[name].target.partition(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        single = _typer()
        single.command(name)(found)
        found = single
    command = typer.main.get_command(found)
    command.name = name
    if any(parameter.name in ("model", "source", "recipe", "opened") for parameter in command.params):
        command.params.append(_ignore_key())
    for part in (command, *getattr(command, "commands", {}).values()):
        part.context_settings.update(CONTEXT)
        part.rich_markup_mode = None
    return command


def _remember(names: list[str] | None) -> list[str] | None:
    if names:
        from glassformer.checkpoint.unread import ignore_everywhere

        ignore_everywhere(names)
    return names


IgnoreKeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-key",
        metavar="NAME",
        callback=_remember,
        help="Read a model's config.json as if this key, which is not understood, were not there.",
    ),
]


def _ignore_key() -> Any:
    """The option of every verb that opens a model: what the refusal of a key of config.json names."""

    def holder(ignore_key: IgnoreKeyOption = None) -> None: ...

    one = _typer()
    one.command()(holder)
    option = typer.main.get_command(one).params[0]
    option.expose_value = False
    return option


# Plain help: readable everywhere, and rich is not imported to print it.
CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _typer(**options: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, context_settings=CONTEXT, **options
    )


app = _typer(cls=VerbGroup, no_args_is_help=True, name="glassformer")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"glassformer {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """A transformer language model made of glass: train it, run it, and see why it says what it says.

    GLASSFORMER_MODEL names the model used when --model is not given; GLASSFORMER_DEBUG=1 shows where an error
    happened.
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a token that the terminal cannot show is no reason to fail
    code = _run(args)
    try:
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # a reader that left knows why; a full disk must be said
            _say(f"Standard output: {error.strerror}.")
        quiet_stdout()
        code = code or 1
    sys.exit(code)


def _run(args: list[str] | None) -> int:
    debug = os.environ.get("GLASSFORMER_DEBUG", "") not in ("", "0")
    try:
        app(args, prog_name="glassformer")
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else (0 if leave.code is None else 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        quiet_stdout()
        return 1
    except GlassformerError as error:
        if debug:
            raise
        _say(str(error))
        return error.exit_code
    except OSError as error:
        if debug:
            raise
        _say(f"{error.filename or 'The system says'}: {error.strerror or error}.")
        return 1
    except Exception as error:
        if debug:
            raise
        _say(
            f"This is a bug in Glassformer ({type(error).__name__}: {error}). "
            "Set GLASSFORMER_DEBUG=1 to see where it happened, and please report it."
        )
        return 1
    return 0


def _say(message: str) -> None:
    from glassformer.cli.common import note

    note("glassformer: " + " ".join(message.split()))
