"""What the tests of several processes run under torchrun: a run, its first gradients kept, perhaps one process killed.

worker.py RECIPE.json OUT GRADIENTS [--resume] [--kill RANK STEP]
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from glassformer.cli.app import main
from glassformer.cli.probes import standard
from glassformer.train import run as runs
from glassformer.train.loop import Run
from glassformer.train.recipe import Recipe


def go() -> None:
    recipe = Recipe.from_dict(json.loads(Path(sys.argv[1]).read_text()))
    out, kept = sys.argv[2], sys.argv[3]
    plain = Run._one_step

    def one_step(self: Run) -> tuple[float, float, int]:
        if self.step == 0 and kept != "-":
            step = self.stepper.step

            def first(rate: float, momentum: float) -> None:
                stepper = self.stepper
                grads = stepper.whole_grads() if stepper.sharded else stepper.weights.named_grads()
                if self.processes.rank == 0:
                    save_file({name: grad.clone().contiguous() for name, grad in grads.items()}, kept)
                step(rate, momentum)

            self.stepper.step = first
            result = plain(self)
            self.stepper.step = step
            return result
        if "--kill" in sys.argv:
            rank, step_number = map(int, sys.argv[sys.argv.index("--kill") + 1 :][:2])
            if self.processes.rank == rank and self.step == step_number:
                os.kill(os.getpid(), signal.SIGKILL)
        return plain(self)

    Run._one_step = one_step  # type: ignore[method-assign]
    torch.set_num_threads(1)
    resume = "--resume" in sys.argv
    import glassformer.cli.train as verb

    def command() -> None:
        result = runs.train(None if resume else recipe, None, out, resume, (standard(),), True, {})
        if int(os.environ["RANK"]) == 0:
            verb._say(result)

    from glassformer.cli import app

    app.load_verb = lambda name: __import__("typer").main.get_command(_one(command))  # type: ignore[assignment]
    main(["train"])


def _one(function: object) -> object:
    import typer

    single = typer.Typer(add_completion=False)
    single.command()(function)  # type: ignore[type-var]
    return single


if __name__ == "__main__":
    go()
