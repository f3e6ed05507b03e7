"""Opening a checkpoint of a training run as a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from glassformer.errors import SourceError

if TYPE_CHECKING:
    from glassformer.lm import Model


def open_run(folder: str, source: str) -> Model:
    """The model of "run:NAME" (its newest checkpoint) or "run:NAME@STEP".

    Raises:
        SourceError, CheckpointError: no such run or step, or one that is damaged.
    """
    from glassformer.lm import Model
    from glassformer.model import Transformer
    from glassformer.tokenizer.tokenizer import Tokenizer
    from glassformer.train.reading import read_run

    name, at, step = source.removeprefix("run:").rpartition("@")
    if not at:
        name, step = step, ""
    if step and not step.isdecimal():
        raise SourceError(f"A checkpoint is asked for as run:NAME@STEP, such as run:{name}@100; got {source!r}.")
    stored = read_run(folder, name)
    taken, config, tensors = stored.weights(int(step) if step else None)
    transformer = Transformer.empty(config).load(tensors, dtype=torch.float32)
    tokenizer = Tokenizer.from_directory(stored.path)
    return Model(transformer, tokenizer, name=f"{name}, step {taken}", source=str(stored.path))
