"""`glassformer complete`: a text continued, streamed."""

from __future__ import annotations

import sys

import typer

from glassformer.cli.answers import (
    INTERRUPTED,
    SHOWN,
    ChoiceOption,
    CircuitOption,
    DraftOption,
    GrammarOption,
    How,
    LookupOption,
    Printer,
    RegexOption,
    SchemaOption,
    SteerOption,
    answering,
    constraint,
    drafter,
    print_answer,
    steered,
)
from glassformer.cli.common import (
    BosOption,
    JsonOption,
    ModelOption,
    TextArgument,
    note,
    open_model,
    print_json,
    read_text,
)
from glassformer.errors import TextError


@answering(max_tokens=100)
def command(
    text: TextArgument,
    model: ModelOption = None,
    how: How = How(),
    schema: SchemaOption = None,
    regex: RegexOption = None,
    grammar: GrammarOption = None,
    choice: ChoiceOption = None,
    lookup: LookupOption = False,
    draft: DraftOption = None,
    steer: SteerOption = None,
    circuit: CircuitOption = None,
    bos: BosOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a text, streamed.

    On a terminal the text stands before its continuation; in a pipe the continuation comes alone. Probabilities are
    the model's own, before temperature and filters. What computed the answer, and how quickly, is said at the end on
    standard error.
    """
    text = read_text(text)
    if not text:
        raise TextError("The text is empty; give at least one word.")
    form = constraint(schema, regex, grammar, choice)
    opened = steered(open_model(model), steer, circuit)
    printer = Printer(how.show, quiet=as_json)
    tokens = opened.generate(
        text,
        progress=printer.reading,
        alternatives=SHOWN + 1 if how.show or as_json else 0,
        bos=bos,
        constraint=form,
        drafter=drafter(opened, lookup, draft),
        **how.options(opened),
    )
    if sys.stdout.isatty() and not how.show and not as_json:
        typer.echo(typer.style(text, bold=True), nl=False)
    whole = print_answer(tokens, printer)
    printer.end()
    if as_json:
        print_json(
            {
                "model": opened.name,
                "precision": printer.precision,
                "text": text,
                "ids": opened.encode(text, bos),
                "answer": printer.text,
                "finish": printer.tokens[-1].finish if printer.tokens and whole else "cancelled",
                "pieces": [token.to_dict() for token in printer.tokens],
            }
        )
    note(printer.summary(opened))
    if not whole:
        raise typer.Exit(INTERRUPTED)
