"""The film of a run: about twenty frames, spaced by the logarithm of the step, of what one can see of a model learning.

A frame is one file `film/step-000123.safetensors`: every head's pattern on one short text, the likeliest next tokens
after it, and weights in 16 bits: the embedding first, then the others in the model's order as long as all frames
together stay within `BYTES`. Where every weight fits, a frame is a model that can be opened like a checkpoint. It is
for looking; a run is resumed from its checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glassformer.checkpoint.tensorfile import packed, unpacked
from glassformer.errors import TrainError
from glassformer.model import Transformer
from glassformer.model.config import Attention
from glassformer.model.sites import Where
from glassformer.system import files

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer

FOLDER = "film"
FORMAT = "glassformer.frame/1"
BYTES = 9_500_000
"""What all frames of a run may weigh together."""
TOKENS = 24
"""Tokens of the text that every frame is looked at with."""
LIKELIEST = 8
_NAME = re.compile(r"step-(\d{6,})\.safetensors")


def steps_of(frames: int, steps: int) -> list[int]:
    """The steps of the frames: the beginning, the end, and between them powers of one ratio, as far as they differ."""
    if frames < 2 or steps < 1:
        return []
    last = max(1, frames - 2)
    return sorted({0, *(round(steps ** (i / last)) for i in range(frames - 1))})


class Film:
    """Writes the frames of a run.

    Args:
        folder: the run directory.
        frames: how many are wanted, at most.
        steps: of the run.
        ids: a text's tokens; the first `TOKENS` are looked at.
        tokenizer: spells them.
        upto: on resuming, the step after which earlier frames are dropped; 0 drops all.
    """

    def __init__(
        self, folder: Path, frames: int, steps: int, ids: Sequence[int], tokenizer: Tokenizer, upto: int = 0
    ) -> None:
        self.folder = folder / FOLDER
        self.steps = frozenset(steps_of(frames, steps))
        self.ids = [int(i) for i in ids[:TOKENS]]
        self.tokenizer = tokenizer
        for step, path in frames_in(folder):
            if step > upto or not upto:
                files.remove(path)

    def due(self, step: int) -> bool:
        """Whether a frame is made at this step."""
        return step in self.steps and len(self.ids) > 1

    @torch.no_grad()
    def write(self, transformer: Transformer, weights: Mapping[str, Tensor], step: int, text: str | None) -> None:
        """Write the frame of a step.

        Args:
            transformer: as it computes now; the patterns are its own.
            weights: its weights in float32.
            text: what it wrote.

        Raises:
            TrainError: the disk is full or refuses.
        """
        ids = self.ids[: transformer.config.context]
        patterns = _Patterns(transformer)
        logits = transformer(torch.tensor([ids], device=transformer.device), tap=patterns, last=True)[0, -1].float()
        p, likeliest = logits.softmax(-1).topk(min(LIKELIEST, logits.numel()))
        tensors = {f"pattern.{layer}": seen.half() for layer, seen in patterns.seen.items()}
        left = BYTES // len(self.steps) - sum(x.nbytes for x in tensors.values())
        for name, tensor in weights.items():
            if 2 * tensor.numel() <= left:
                tensors[f"model.{name}"] = tensor.detach().to("cpu", torch.float16).contiguous()
                left -= 2 * tensor.numel()
        about = {
            "format": FORMAT,
            "step": step,
            "ids": ids,
            "tokens": [self.tokenizer.token_text(i) for i in ids],
            "next": [[self.tokenizer.token_text(i), q] for i, q in zip(likeliest.tolist(), p.tolist(), strict=True)],
            "text": text,
            "config": transformer.config.to_dict(),
            "whole": all(f"model.{name}" in tensors for name in weights),
        }
        data = packed(tensors, about)
        files.write_bytes(self.folder / f"step-{step:06d}.safetensors", data, raises=TrainError)


class _Patterns:
    """Keeps the pattern of every layer that has attention."""

    def __init__(self, transformer: Transformer) -> None:
        layers = transformer.config.layers
        named = {f"blocks.{i}.attn.pattern": i for i, one in enumerate(layers) if isinstance(one.mixer, Attention)}
        self.names = named
        self.reads, self.writes = frozenset(named), frozenset[str]()
        self.seen: dict[int, Tensor] = {}

    def __call__(self, site: str, x: Tensor, where: Where) -> None:
        self.seen[self.names[site]] = x[0].float().cpu()


def frames_in(folder: Path) -> list[tuple[int, Path]]:
    """The frames of a run directory, in order."""
    try:
        found = [(int(match[1]), path) for path in (folder / FOLDER).iterdir() if (match := _NAME.fullmatch(path.name))]
    except OSError:
        return []
    return sorted(found)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A frame: what it says of itself, and its tensors, as they are.

    Raises:
        CheckpointError: it is damaged.
    """
    return unpacked(path, FORMAT, "frame of a film")
