"""Small runs: a byte tokenizer on disk, a little text, recipes of a few steps."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import glassformer
from glassformer.data.corpus import build_corpus
from glassformer.predict.score import score
from glassformer.train.data import rows_of
from glassformer.train.loop import Run
from glassformer.train.recipe import Recipe

WORDS = tuple(
    "the cat sat on the mat and the dog ran to the house by the sea while a bird sang in the tree".split()  # noqa: SIM905
)


def text(lines: int = 400) -> str:
    """Plain sentences that have something to learn."""
    return "".join(
        f"{WORDS[i % 7]} {WORDS[(i * 3) % 11]} {WORDS[(i * 5) % 13]} {WORDS[(i * i) % 19]}.\n" for i in range(lines)
    )


@pytest.fixture
def corpus_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text file, and a cache of its own for its shards."""
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text(text(), encoding="utf-8")
    return path


@pytest.fixture
def tokenizer_dir(tmp_path: Path) -> Path:
    """A tokenizer whose tokens are the 256 bytes."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    from glassformer.tokenizer.tokenizer import Tokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    Tokenizer(backend).save(directory)
    return directory


@pytest.fixture
def small(corpus_file: Path, tokenizer_dir: Path) -> Callable[..., Recipe]:
    """A recipe of a tiny model on the little text; settings by key."""

    def make(**settings: Any) -> Recipe:
        base: dict[str, Any] = {
            "layers": 2,
            "width": 32,
            "heads": 2,
            "context": 16,
            "data": (str(corpus_file),),
            "tokenizer": str(tokenizer_dir),
            "held_out": 0.1,
            "steps": 8,
            "batch": 4,
            "precision": "fp32",
            "threads": 1,
            "log_every": 1,
            "eval_every": 0,
            "save_every": 0,
            "eval_tokens": 256,
        }
        return Recipe(name="tiny").with_settings({**base, **settings})

    return make


@pytest.fixture
def out(tmp_path: Path) -> Callable[[], Path]:
    """A new place for a run, at each call."""
    numbers = itertools.count()
    return lambda: tmp_path / "runs" / str(next(numbers))


def loss_of_saved(place: Path, corpus_file: Path) -> float:
    """The held-out loss of a run's saved weights in float32, scored apart from the run (context 16, a tenth kept)."""
    opened = glassformer.load(place, dtype="float32")
    ids = build_corpus([str(corpus_file)], opened.tokenizer, held_out="tail", fraction=0.1).held_out
    count = len(rows_of(ids).grid(16)) * 16
    return score(opened.transformer, ids.slice(0, count + 1).astype(np.int64), 16, 16).loss


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """`with killed(3):` a run is told to end after that step, as by Ctrl-C."""

    @contextmanager
    def at(step: int) -> Iterator[None]:
        plain = Run._one_step

        def one_step(self: Run) -> tuple[float, float, int]:
            result = plain(self)
            if self.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return result

        with monkeypatch.context() as patched:
            patched.setattr(Run, "_one_step", one_step)
            yield

    return at
