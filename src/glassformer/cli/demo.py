"""`glassformer demo`: the first thing a newcomer sees a model do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glassformer.cli.common import ModelOption, bar, open_model

if TYPE_CHECKING:
    from rich.console import Console

    from glassformer.lm import Model

SENTENCES = {
    "The capital of France is": "what it knows by heart",
    "The American shrew mole is a small": "a mole in the ground",
    "One mole of carbon dioxide contains about": "a mole in chemistry",
    "She sat on the bank of the": "a bank of a river",
    "He put his money in the bank and": "a bank with money",
}
NEXT = {
    'glassformer next "Once upon a"': "your own words",
    "glassformer count smollm2": "where its 134,515,008 parameters are",
    'glassformer why "The capital of France is"': "which words, heads and layers made it say Paris",
    'glassformer attention "The American shrew mole"': "where each head looks",
    "glassformer open": "all of it in the browser",
    "glassformer train": "a model of your own, from text",
}
TOP = 5
EXPANSIONS = 128  # continuations looked at for each sentence


def command(model: ModelOption = None) -> None:
    """Show the next words of a few sentences, and what to try next.

    Each word's probability is summed over every way to spell it in tokens; the light part of a bar is what was not
    looked at.
    """
    from glassformer.cli.common import console, note

    out = console()
    note("Opening the model …")
    loaded = open_model(model)
    c = loaded.config
    out.print()
    out.print(
        f"[bold]{loaded.name}[/bold] ({loaded.precision}): {c.n_layers} layers of {c.most_heads} heads, "
        f"{c.vocab_size:,} tokens. What comes next?"
    )
    for sentence, remark in SENTENCES.items():
        _show(out, loaded, sentence, remark)
    _what_next(out)


def _show(out: Console, model: Model, sentence: str, remark: str) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from glassformer.cli.next import visible

    words = model.next(sentence).words(TOP, max_expansions=EXPANSIONS)
    out.print()
    out.print(Text.assemble((sentence, "bold"), " …   ", (remark, "dim")))
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(min_width=14, no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for word in words:
        table.add_row(visible(word.word) or "(end)", f"{word.probability:.1%}", bar(word.probability, 40, word.upper))
    out.print(Padding(table, (0, 0, 0, 2)))


def _what_next(out: Console) -> None:
    import shutil

    from glassformer.cli.app import verbs

    out.print()
    out.print("What to try next" + ("" if shutil.which("glassformer") else ", after: source .venv/bin/activate"))
    known = {line: why for line, why in NEXT.items() if line.split()[1] in verbs()}
    width = max(map(len, known))
    for line, why in known.items():
        out.print(f"  {line:<{width}}  [dim]{why}[/dim]", highlight=False)
    out.print("  " + "glassformer --help".ljust(width) + "  [dim]everything else[/dim]")
