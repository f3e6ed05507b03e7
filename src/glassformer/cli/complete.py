"""`glassformer complete`: a text continued, streamed."""

from __future__ import annotations

import sys

import typer

from glassformer.cli.answers import (
    INTERRUPTED,
    SHOWN,
    BiasOption,
    DraftOption,
    FrequencyOption,
    LookupOption,
    MaxTokensOption,
    MinPOption,
    PrecisionOption,
    PresenceOption,
    RepetitionOption,
    SeedOption,
    ShowOption,
    StopOption,
    Teller,
    TemperatureOption,
    TopKOption,
    TopPOption,
    bias,
    guesser,
    tell,
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


def command(
    text: TextArgument,
    model: ModelOption = None,
    max_tokens: MaxTokensOption = 100,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repetition_penalty: RepetitionOption = 1.0,
    presence_penalty: PresenceOption = 0.0,
    frequency_penalty: FrequencyOption = 0.0,
    logit_bias: BiasOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    precision: PrecisionOption = "exact",
    lookup: LookupOption = False,
    draft: DraftOption = None,
    show: ShowOption = False,
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
    biases = bias(logit_bias)
    opened = open_model(model)
    pieces = opened.generate(
        text,
        max_tokens=max_tokens or None,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=biases,
        seed=seed,
        stop=stop or (),
        alternatives=SHOWN + 1 if show or as_json else 0,
        precision=precision,
        bos=bos,
        guesser=guesser(opened, lookup, draft),
    )
    teller = Teller(show, quiet=as_json)
    if sys.stdout.isatty() and not show and not as_json:
        typer.echo(typer.style(text, bold=True), nl=False)
    whole = tell(pieces, teller)
    teller.end()
    if as_json:
        print_json(
            {
                "model": opened.name,
                "precision": teller.precision,
                "text": text,
                "ids": opened.encode(text, bos),
                "answer": teller.text,
                "finish": teller.pieces[-1].finish if teller.pieces and whole else "cancelled",
                "pieces": [piece.to_dict() for piece in teller.pieces],
            }
        )
    note(teller.summary(opened))
    if not whole:
        raise typer.Exit(INTERRUPTED)
