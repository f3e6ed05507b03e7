"""What attention replaced: a recurrent language model behind the same trainer.

A GRU reads word by word, so each position waits for the one before it; attention reads the whole passage at once. Two
tables: tokens a second of a training step against the length of the passage, and held-out loss at equal parameters and
equal time. The GRU's recurrence is PyTorch's own; optimiser, loss, batches and evaluation are the trainer's.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from common import arguments, report, table
from peer_nanogpt import read_text


def gru(config: Any) -> Any:
    """A GRU with the transformer's width and as many layers as make its parameters equal, for the trainer."""
    import torch
    from torch import nn

    class Recurrent(nn.Module):
        """Answers to what the trainer asks of a transformer."""

        def __init__(self) -> None:
            super().__init__()
            self.config = config
            self.embed = nn.Embedding(config.vocab_size, config.d_model)
            self.recurrence = nn.GRU(config.d_model, config.d_model, config.n_layers, batch_first=True)
            self.unembed = nn.Linear(config.d_model, config.vocab_size, bias=False)
            for name, p in self.named_parameters():
                if p.ndim == 2:
                    nn.init.normal_(p, std=0.1 if "embed" in name else config.d_model**-0.5)
                if name == "unembed.weight":
                    nn.init.zeros_(p)

        def hidden(self, tokens: torch.Tensor, tap: Any = None, run_block: Any = None) -> torch.Tensor:
            return self.recurrence(self.embed(tokens))[0]

        @property
        def unembedding(self) -> torch.Tensor:
            return self.unembed.weight

        @property
        def device(self) -> torch.device:
            return self.embed.weight.device

    return Recurrent()


def engine(model: Any, recipe: Any) -> Any:
    """The trainer's engine around any model that answers to `hidden` and `unembedding`; float32 for both."""
    import torch

    from glassformer.train.torch_stepper import TorchStepper

    return TorchStepper(model, recipe, torch.float32)


def step(engine_: Any, x: Any, y: Any, rate: float) -> None:
    engine_.zero()
    engine_.accumulate(x, y, 1.0 / x.numel())
    engine_.finish()
    engine_.step(rate, 0.95)


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--text", help="tiny Shakespeare's text")
    parser.add_argument("--seconds", type=float, default=30.0, help="training time of each")
    parser.add_argument("--lengths", type=int, nargs="*", default=[32, 64, 128, 256, 512, 1024])
    options = parser.parse_args()
    import numpy as np
    import torch

    from glassformer.model import Transformer
    from glassformer.system import hardware
    from glassformer.train import schedule
    from glassformer.train.data import Order, Stream, held_out_batches
    from glassformer.train.recipe import Recipe
    from glassformer.train.torch_stepper import initialise

    torch.set_num_threads(options.threads)
    hardware.keep_freed_memory()
    text = read_text(options.text)
    letters = {letter: i for i, letter in enumerate(sorted(set(text)))}
    ids = np.array([letters[c] for c in text], dtype=np.uint16)

    class Array:
        def __init__(self, tokens: Any) -> None:
            self.tokens = tokens

        def __len__(self) -> int:
            return len(self.tokens)

        def slice(self, start: int, n: int) -> Any:
            return self.tokens[start : start + n]

    cut = int(0.9 * len(ids))
    recipe = Recipe().with_settings({"layers": 4, "width": 128, "heads": 4, "d_ff": 320, "context": 128, "batch": 12})

    def made(kind: str, context: int, layers: int) -> Any:
        config = recipe.with_settings({"context": context, "layers": layers}).config(len(letters))
        if kind == "GRU":
            return gru(config)
        model = Transformer.empty(config).to_empty(device="cpu")
        initialise(model, 1)
        return model

    def size(kind: str, layers: int) -> int:
        return sum(p.numel() for p in made(kind, 128, layers).parameters())

    wanted = size("transformer", 4)
    layers = {"transformer": 4, "GRU": min(range(1, 16), key=lambda n: abs(size("GRU", n) - wanted))}
    settings = {"transformer": recipe, "GRU": recipe.with_settings({"fused": False})}  # it has no blocks to fuse
    speeds: list[list[str]] = []
    for length in options.lengths:
        row = [str(length)]
        for kind in ("transformer", "GRU"):
            runner = engine(made(kind, length, layers[kind]), settings[kind])
            rows = max(1, 4096 // length)
            x = torch.randint(0, len(letters), (rows, length))
            step(runner, x, x, 0.0)
            times = []
            for _ in range(options.rounds):
                began = time.perf_counter()
                step(runner, x, x, 0.0)
                times.append(time.perf_counter() - began)
            row.append(f"{rows * length / statistics.median(times):,.0f}")
        speeds.append([*row, f"{float(row[1].replace(',', '')) / float(row[2].replace(',', '')):.2f}"])
    losses: list[list[str]] = []
    for kind in ("transformer", "GRU"):
        runner = engine(made(kind, 128, layers[kind]), settings[kind])
        order = Order(Stream(Array(ids[:cut])), 1, "random")
        pace = time.perf_counter()
        for _ in range(3):
            step(runner, *order.next(12, 128), 0.0)
        steps = max(10, int(options.seconds / ((time.perf_counter() - pace) / 3)))
        spec = recipe.with_settings({"steps": steps}).schedule
        began = time.perf_counter()
        for number in range(steps):
            step(runner, *order.next(12, 128), schedule.rate(number, spec))
        spent = time.perf_counter() - began
        total = count = 0.0
        with torch.no_grad():
            for x, y in held_out_batches(Stream(Array(ids[cut:])), 128, 32, 10**9):
                total += float(runner.loss(x, y))
                count += y.numel()
        losses.append([kind, f"{size(kind, layers[kind]):,}", str(steps), f"{spent:.1f} s", f"{total / count:.4f}"])
    body = table(["length", "transformer, tokens/s", "GRU, tokens/s", "ratio"], speeds) + "\n\n"
    body += table(["model", "parameters", "steps", "time", "held-out loss"], losses)
    notes = "4,096 tokens a step at every length; float32; Muon for matrices and AdamW for the rest in both."
    report("recurrent", "Attention against recurrence", body, options, notes)


if __name__ == "__main__":
    main()
