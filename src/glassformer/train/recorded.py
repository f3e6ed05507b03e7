"""A recorded run, opened so that its steps can be taken again: its recipe, rows, passages and saved weights.

It knows run directories and text, and no gradients. `trained_again` really trains the run once more, with some passages
left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassformer.data.corpus import Corpus
from glassformer.errors import CheckpointError, TextError, TrainError, UnsupportedError, UsageError
from glassformer.model import Config
from glassformer.model.choices import Experts
from glassformer.system import files
from glassformer.train import checkpoint
from glassformer.train.data import Ints, Rows, rows_of
from glassformer.train.directory import CHECKPOINTS
from glassformer.train.journal import Journal
from glassformer.train.loss import IGNORE
from glassformer.train.recipe import Recipe
from glassformer.train.run_inputs import corpus_for

LARGEST = 20_000_000
"""Parameters from which on a run is not replayed: it would take hours."""
FEWEST = 20
"""Documents from which on they are the passages; fewer are cut into pieces."""
PIECE = 256
"""Tokens of a piece."""


class Tagged:
    """Rows of text whose targets say also which passage they are of: passage · vocab + token.

    Args:
        rows: of plain text.
        edges: where passages begin, and the end.
        vocab: tokens in the vocabulary.
        without: passages whose tokens do not count.
    """

    masked = False

    def __init__(self, rows: Rows, edges: Ints, vocab: int, without: Sequence[int] = (), tag: bool = True) -> None:
        self.rows, self.edges, self.vocab, self.tag = rows, edges, vocab, tag
        self.gone = np.zeros(len(edges) - 1, dtype=bool)
        self.gone[list(without)] = True
        self.masked = bool(self.gone.any())

    def grid(self, length: int) -> Ints:
        return self.rows.grid(length)

    def starts(self, numbers: Ints, length: int, seed: int, anywhere: bool) -> Ints:
        return self.rows.starts(numbers, length, seed, anywhere)

    def epoch(self, number: int, length: int) -> int:
        return self.rows.epoch(number, length)

    def borders(self, starts: Ints, length: int) -> list[list[tuple[int, bool]]]:
        return self.rows.borders(starts, length)

    def fetch(self, starts: Ints, length: int) -> tuple[Tensor, Tensor]:
        tokens, targets = self.rows.fetch(starts, length)
        places = starts[:, None] + np.arange(1, length + 1)
        passage = np.searchsorted(self.edges, places, side="right") - 1
        counts = torch.from_numpy(~self.gone[passage]) & (targets != IGNORE)
        tagged = targets + self.vocab * torch.from_numpy(passage) if self.tag else targets
        return tokens, torch.where(counts, tagged, IGNORE)


class Recorded:
    """A run on disk, with everything that its steps were made from.

    Args:
        path: the run directory.

    Raises:
        UsageError: there is no run.
        CheckpointError, TrainError, DataError, UnsupportedError: it cannot be replayed; one sentence says why.
    """

    def __init__(self, path: str | Path) -> None:
        from glassformer.tokenizer.tokenizer import Tokenizer

        self.path = Path(path)
        if not (self.path / "journal.jsonl").is_file():
            raise UsageError(
                f"{self.path} is no training run: glassformer train writes one, with a journal.jsonl in it."
            )
        if not checkpoint.all_steps(self.path / CHECKPOINTS):
            raise CheckpointError(
                f"The run {self.path} has saved no checkpoint, so there is nothing to hold a replay of it to."
            )
        saved = checkpoint.newest(self.path / CHECKPOINTS, lambda text: None)
        assert saved is not None
        self.saved, state = saved, saved.state
        self.recipe = Recipe.from_dict(state["recipe"], str(saved.path))
        self.config = Config.from_dict(state["config"])
        self.packed = bool(state.get("packed"))
        if reason := _refusal(self.recipe, self.config, state, saved.step):
            raise UnsupportedError(f"The run {self.path} is not differentiated through: {reason}.")
        self.tokenizer = Tokenizer.from_directory(saved.path if saved.has_tokenizer else self.path)
        self.corpus: Corpus = corpus_for(self.recipe, self.tokenizer, Journal(None))
        if self.corpus.hash != state["data_hash"]:
            raise TrainError(
                f"The text that {self.path} was trained on has changed since; its steps cannot be replayed."
            )
        separator = None if self.tokenizer.adds_bos else self.tokenizer.eos_id
        self.rows = rows_of(self.corpus.train, separator)
        documents = np.asarray(self.corpus.train.documents, dtype=np.int64)
        whole = len(documents) - 1 >= FEWEST
        self.edges: Ints = (
            documents if whole else np.append(np.arange(0, len(self.corpus.train), PIECE), len(self.corpus.train))
        )
        self.documents = documents
        self.micro_batch = int(state["micro_batch"])

    @property
    def steps(self) -> int:
        """Steps that the newest checkpoint has behind it."""
        return self.saved.step

    def weights(self) -> dict[str, Tensor]:
        """The weights that the newest checkpoint holds."""
        tensors = self.saved.tensors()
        return {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}

    def passage(self, number: int, characters: int = 240) -> dict[str, Any]:
        """Where a passage stands (`start` and `stop` in tokens, `origin`) and how its `text` begins."""
        start, stop = int(self.edges[number]), int(self.edges[number + 1])
        ids = self.corpus.train.slice(start, min(stop - start, characters)).tolist()
        document = int(np.searchsorted(self.documents, start, side="right")) - 1
        origin = self.corpus.origins(self.corpus.train, [document])[0]
        text = self.tokenizer.decode(ids, specials=False)[:characters]
        return {"number": number, "start": start, "stop": stop, "origin": origin, "text": text}

    def ids(self, text: str) -> list[int]:
        """A text as the run would read it at the beginning of a document.

        Raises:
            TextError: it holds nothing to foretell, is longer than a row, or has letters that the run has no token for.
        """
        ids = self.tokenizer.encode(text)
        if self.tokenizer.decode(ids, specials=False).strip() != text.strip():
            raise TextError(
                f"The run knows no tokens for all of {text[:40]!r}; ask about text in the letters it has read."
            )
        if self.tokenizer.eos_id is not None and not self.tokenizer.adds_bos:
            ids = [self.tokenizer.eos_id, *ids]
        if len(ids) < 2:
            raise TextError("The text must have at least 2 tokens, one to foretell from another.")
        if len(ids) > self.config.context:
            raise TextError(f"The text has {len(ids)} tokens; a row of this run has {self.config.context}.")
        return ids


def _refusal(recipe: Recipe, config: Config, state: dict[str, Any], step: int) -> str | None:
    parameters = sum(math.prod(c.shape) for c in config.components().values())
    reasons = {
        "its weights were sharded over several processes": bool(state.get("sharded")) or state.get("world", 1) != 1,
        "it began from another model, whose training is not recorded": bool(recipe.model.start),
        "it learned from conversations": recipe.data.chat,
        "its text came from standard input": "-" in recipe.data.data,
        "experts are chosen, which has no slope": any(isinstance(x.feed_forward, Experts) for x in config.layers),
        "it passed over batches": int(state["updates"]) != step,
        "weights that decay only where steps agree have no slope": recipe.optimizer.cautious
        and bool(recipe.optimizer.muon_decay),
        f"with {parameters / 1e6:.0f} M parameters it is too large to be replayed": parameters > LARGEST,
    }
    return next((reason for reason, there in reasons.items() if there), None)


def trained_again(run: Recorded, without: Sequence[int] = ()) -> dict[str, Tensor]:
    """The weights that really training again gives, by the run's own loop and stepper, where some passages' tokens
    count for nothing: with none left out, those that the run saved."""
    from glassformer.train.processes import Processes
    from glassformer.train.run import assemble

    device = torch.device("cpu")
    with files.scratch() as folder:
        again = assemble(run.recipe, folder, Processes(), device, Journal(None), None)
        again.directory = again.held_out = again.sample = None
        again.micro_batch = run.micro_batch
        again.order.rows = Tagged(again.order.rows, run.edges, run.config.vocab_size, without, tag=False)
        again.execute()
        return {name: tensor.clone() for name, tensor in again.stepper.whole().items()}
