"""What a run is made from: the checkpoint it starts at, its tokenizer, its corpus.

It knows sources, tokenizers and corpora, and tells the journal how far reading has come; no model and no step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from glassformer.data.corpus import Corpus, build_corpus
from glassformer.data.sources import Findings
from glassformer.errors import DataError, EmptyDataError, TooFewDocumentsError, UsageError
from glassformer.train.data import Conversations, Rows
from glassformer.train.journal import Journal
from glassformer.train.recipe import Recipe

if TYPE_CHECKING:
    from glassformer.checkpoint import Checkpoint
    from glassformer.tokenizer.tokenizer import Tokenizer

PLAIN_CHAT = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token + '\n' }}"
    "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""How conversations are written for a model that has no template of its own; it is saved with what is trained."""


def opened(source: str) -> Checkpoint:
    """The checkpoint behind a SOURCE."""
    from glassformer.checkpoint import open_checkpoint
    from glassformer.fetch.sources import resolve

    found = resolve(source)
    return open_checkpoint(found.path, adapters=found.adapters)


def tokenizer_for(recipe: Recipe, directory: Path | None, start: Checkpoint | None, journal: Journal) -> Tokenizer:
    """The run's own tokenizer (in `directory`), the starting model's, or the one that the recipe names.

    For conversations, one without a chat template is given a plain one, and a note says so.

    Raises:
        UsageError, DataError: when there is no such tokenizer, or no text to learn it from.
    """
    tokenizer = _tokenizer(recipe, directory, start, journal)
    if recipe.data.chat and tokenizer.chat_template is None and tokenizer.eos_id is not None:
        tokenizer.chat_template = PLAIN_CHAT
        journal.write(
            "note", 0, text="The model has no chat template: a plain one is used (User: …, Assistant: …) and saved."
        )
    return tokenizer


def _tokenizer(recipe: Recipe, directory: Path | None, start: Checkpoint | None, journal: Journal) -> Tokenizer:
    from glassformer.tokenizer.tokenizer import Tokenizer

    if directory is not None:
        return Tokenizer.from_directory(directory)
    wanted = recipe.data.tokenizer
    if start is None and (wanted in ("byte", "char") or wanted.startswith("bpe:")):
        from glassformer.data.corpus import text_iterator
        from glassformer.tokenizer import train

        if wanted == "byte":
            return train.byte_tokenizer()
        findings = Findings()
        told: Callable[[int], None] = lambda done: journal.progress("learning a tokenizer", done)  # noqa: E731
        texts = text_iterator(
            list(recipe.data.data) or None, findings, text_field=recipe.data.text_field or None, chat=recipe.data.chat
        )
        if wanted == "char":
            return _learned(lambda: train.char_tokenizer(texts), findings)
        size = wanted.removeprefix("bpe:")
        if not size.isdecimal():
            raise UsageError(f"A BPE tokenizer is asked for as bpe:SIZE, such as bpe:4096; got {wanted!r}.")
        return _learned(lambda: train.train_bpe(texts, int(size), progress=told), findings)
    if start is None and (Path(wanted) / "tokenizer.json").is_file():
        return Tokenizer.from_directory(wanted)
    from glassformer.checkpoint import tokenizer_of

    return tokenizer_of(start or opened(wanted))


def _learned(learn: Callable[[], Tokenizer], findings: Findings) -> Tokenizer:
    """A tokenizer learned from texts, or why there are none."""
    try:
        return learn()
    except DataError:
        if findings.bytes or not findings.problems:
            raise
        raise EmptyDataError(
            f"There is nothing to learn a tokenizer from in this data. {' '.join(findings.sentences())}"
        ) from None


def answers_lost(rows: Rows, held_out: Rows | None, recipe: Recipe, corpus: Corpus) -> list[str]:
    """What of conversations does not fit into rows, as sentences for the journal.

    Raises:
        DataError: no answer is left to learn from.
    """
    if not isinstance(rows, Conversations):
        return []
    told = []
    lengths = sorted({recipe.model.context, *(value for _, value in recipe.schedule.length_stages)}, reverse=True)
    for length in lengths:
        partly, wholly = rows.lost(length)
        sentences = []
        for numbers, what in ((partly, "answers are cut off in part"), (wholly, "answers do not fit at all")):
            if numbers:
                named = ", ".join(corpus.origins(corpus.train, numbers[:3]))
                more = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
                sentences.append(f"{len(numbers)} conversations whose {what}: {named}{more}.")
        if not len(rows.grid(length)):
            raise DataError(
                f"There is nothing to learn from: no conversation has an answer within its first {length + 1} tokens; "
                f"set a larger context (now {recipe.model.context}). {' '.join(sentences)}"
            )
        if sentences:
            told.append(f"In rows of {length} tokens: {' '.join(sentences)} A larger context would take them.")
    if isinstance(held_out, Conversations):
        partly, wholly = held_out.lost(recipe.model.context)
        if partly or wholly:
            told.append(
                f"Of the held-out conversations {len(partly)} are measured in part and {len(wholly)} not at all, for "
                "their answers do not fit."
            )
    return told


def corpus_for(recipe: Recipe, tokenizer: Tokenizer, journal: Journal) -> Corpus:
    """The recipe's data as tokens, split into what is trained on and what is held out.

    Where whole documents cannot be held out because there are too few, the end of the text is, and a note says so.

    Raises:
        DataError: when nothing is left to train on, or the data are not what the recipe says.
    """
    spec, chat = list(recipe.data.data) or None, recipe.data.chat

    def build(split: str) -> Corpus:
        share = recipe.data.held_out
        field = recipe.data.text_field or None
        return build_corpus(
            spec, tokenizer, held_out=split, fraction=share, progress=journal.progress, text_field=field, chat=chat
        )

    one = len(recipe.data.data) == 1 and (recipe.data.data[0] == "-" or Path(recipe.data.data[0]).is_file())
    split = "document" if chat else "tail" if one else recipe.data.split
    try:
        corpus = build(split)
    except EmptyDataError:
        if spec != ["-"]:
            raise
        raise DataError("Nothing came from standard input; pipe the text in, also to resume a run of it.") from None
    except TooFewDocumentsError:
        if chat:
            raise DataError(
                f"There are too few conversations to hold out {recipe.data.held_out:g} of them; give more, or set "
                "held_out=0."
            ) from None
        journal.write("note", 0, text="Too few documents to hold whole ones out: the end of the text is held out.")
        corpus = build("tail")
    if chat and not corpus.train.masked:
        raise DataError(
            'chat=true needs conversations: rows with {"messages": [...]} (or conversations, instruction and output, '
            "prompt and completion); this data has none."
        )
    if len(corpus.train) < 2:
        raise DataError("No training text is left after holding some out; give more, or set held_out=0.")
    return corpus
